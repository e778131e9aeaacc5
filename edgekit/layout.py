"""Channels first or last: between what the source takes and what an artifact's runtime takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekit.types import TensorSpec

if TYPE_CHECKING:
    from edgekit.devices.arrays import ArrayFile
    from edgekit.types import Array


def channels_last(spec: TensorSpec) -> bool:
    """Whether the artifact's tensor is the source's with channels (axis 1) moved to the end."""
    return spec.layout in ("NWC", "NHWC", "NDHWC")


def to_runtime(inputs: Mapping[str, Array], specs: tuple[TensorSpec, ...]) -> dict[str, Array]:
    """Inputs in the source's layout → in the artifact's."""
    import numpy as np

    moved = {s.name for s in specs if channels_last(s)}
    return {n: np.ascontiguousarray(np.moveaxis(a, 1, -1)) if n in moved else a for n, a in inputs.items()}


def from_runtime(outputs: Mapping[str, Array], specs: tuple[TensorSpec, ...]) -> dict[str, Array]:
    """Outputs in the artifact's layout → in the source's."""
    import numpy as np

    moved = {s.name for s in specs if channels_last(s)}
    return {n: np.moveaxis(a, -1, 1) if n in moved else a for n, a in outputs.items()}


@dataclass(frozen=True)
class Restored:
    """A runtime's outputs in the source's layout; every iteration reads the file anew."""

    outputs: ArrayFile
    specs: tuple[TensorSpec, ...]

    def __iter__(self) -> Iterator[dict[str, Array]]:
        return (from_runtime(row, self.specs) for row in self.outputs)
