"""An artifact's form whose graph begins with the preprocessing: it takes the source's inputs all the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from edgekit.diff.forms import Form, Layer
from edgekit.pipeline.pixels import Pixels

if TYPE_CHECKING:
    from edgekit.types import Array


class PixelForm:
    """``form`` behind :meth:`Pixels.fed`. Its image input is no counterpart of the source's: one
    holds pixels, the other what the contract makes of them."""

    def __init__(self, form: Form, pixels: Pixels) -> None:
        self._form, self._pixels = form, pixels
        self.title = form.title
        self.outputs = form.outputs
        self.weight_bits, self.float_bits = form.weight_bits, form.float_bits
        self.layers: tuple[Layer, ...] = tuple(
            layer for layer in form.layers if layer.tensor != pixels.contract.input
        )

    def free(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """One inference: every layer's tensor, and the outputs."""
        return self._form.free(self._pixels.fed(inputs))

    def forced(self, inputs: Mapping[str, Array], values: Mapping[str, Array]) -> dict[str, Array]:
        """One inference in which readers of the tensors in ``values`` get those values."""
        return self._form.forced(self._pixels.fed(inputs), values)

    def received(self, values: Mapping[str, Array]) -> dict[str, Array]:
        """Replaced tensors as their readers get them."""
        return self._form.received(values)
