"""A model in one of its forms, with every tensor between its layers open to reading and to replacing."""

from __future__ import annotations

import abc
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar, runtime_checkable

from edgekit.core.foreign import translated

if TYPE_CHECKING:
    from edgekit.artifact.manifest import Artifact
    from edgekit.quantize.rescaled import Factors
    from edgekit.types import Array

T = TypeVar("T")

INPUT = "input"
"""The operator of a layer that is an input of the model."""

MODULE = "module"
"""The operator of a layer that is a PyTorch module's output."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One tensor that depends on the inputs, and what makes it.

    ``names`` are what the same tensor may be called in an earlier form, the likeliest first. ``bits`` is the
    width of its integers (0: it is float). ``owner`` is the node that a user would blame: of a tensor
    behind ``Conv → Relu`` the convolution. ``activated`` names the tensor behind a Relu or Clip that is this
    one's only reader: quantized forms leave it out where the integers' range clips already. ``factors`` is
    what a correction multiplied its channels by.
    """

    tensor: str
    node: str
    op: str
    module: str
    names: tuple[str, ...]
    bits: int = 0
    owner: str = ""
    owner_module: str = ""
    activated: str = ""
    factors: Factors | None = None


@runtime_checkable
class Forms(Protocol):
    """A backend's module that opens its artifacts for a comparison; ``INFO.form`` names it."""

    def form(self, artifact: Artifact) -> Form | None:
        """The artifact's tensors as its runtime computes them; ``None`` where they cannot be read."""
        ...


class Form(Protocol):
    """What can be compared. Values are real numbers: integers come dequantized, in the form's own layout."""

    @property
    def title(self) -> str:
        """For people: ``"optimized ONNX"``."""
        ...

    @property
    def layers(self) -> tuple[Layer, ...]:
        """In the order of execution."""
        ...

    @property
    def outputs(self) -> tuple[str, ...]:
        """The model's outputs, in order."""
        ...

    @property
    def weight_bits(self) -> int:
        """Width of the coarsest weights: 32, 16, 8 or 4."""
        ...

    @property
    def float_bits(self) -> int:
        """Significant bits of what is computed in floating point: 24, 11 or 8."""
        ...

    def free(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """One inference: every layer's tensor, and the outputs."""
        ...

    def forced(self, inputs: Mapping[str, Array], values: Mapping[str, Array]) -> dict[str, Array]:
        """One inference in which readers of the tensors in ``values`` get those values.

        Gives what the layers themselves compute for the tensors in ``values``, and the outputs.
        """
        ...

    def received(self, values: Mapping[str, Array]) -> dict[str, Array]:
        """Replaced tensors as their readers get them: rounded where the form keeps integers."""
        ...


class CutForm(abc.ABC, Generic[T]):
    """Base of the forms whose graph is cut at tensors: those to read become outputs, those to replace inputs.

    ``T`` is what the runtime makes of such a graph.
    """

    title: str
    _latest: tuple[tuple[tuple[str, ...], tuple[str, ...]], T] | None = None

    @property
    @abc.abstractmethod
    def layers(self) -> tuple[Layer, ...]:
        """See :attr:`Form.layers`."""

    def free(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See :meth:`Form.free`."""
        with self._refused():
            return dict(inputs) | self._run(inputs, {}, [x.tensor for x in self.layers if x.op != INPUT])

    def forced(self, inputs: Mapping[str, Array], values: Mapping[str, Array]) -> dict[str, Array]:
        """See :meth:`Form.forced`."""
        with self._refused():
            return self._run(inputs, values, [])

    def received(self, values: Mapping[str, Array]) -> dict[str, Array]:
        """See :meth:`Form.received`; as they are, where operators round for themselves."""
        return dict(values)

    def _refused(self) -> AbstractContextManager[None]:
        """What the runtime raises of a graph that it does not take, as an error that names the form."""
        return translated(
            f"{self.title} cannot be run layer by layer",
            hint="compare another form of the model; edgekit verify runs an artifact as it is",
        )

    def _prepared(self, cut: Iterable[str], read: Iterable[str]) -> T:
        key = tuple(cut), tuple(read)
        if self._latest is None or self._latest[0] != key:
            self._latest = None  # two programs of a large model are one too many
            self._latest = key, self._prepare(*key)
        return self._latest[1]

    @abc.abstractmethod
    def _prepare(self, cut: tuple[str, ...], read: tuple[str, ...]) -> T:
        """The runtime's program of the graph, cut at the tensors ``cut``, with ``read`` among its outputs."""

    @abc.abstractmethod
    def _run(
        self, inputs: Mapping[str, Array], values: Mapping[str, Array], read: Iterable[str]
    ) -> dict[str, Array]:
        """One inference with the tensors of ``values`` replaced: what makes them gives, ``read``, and the outputs."""
