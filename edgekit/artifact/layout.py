"""Channels first or last: between what the source takes and what an artifact's runtime takes."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgekit.devices.arrays import ArrayFile
    from edgekit.types import Array


def to_runtime(inputs: Mapping[str, Array], moved: Collection[str]) -> dict[str, Array]:
    """Inputs in the source's layout → in the artifact's; ``moved`` names those with channels last."""
    import numpy as np

    return {n: np.ascontiguousarray(np.moveaxis(a, 1, -1)) if n in moved else a for n, a in inputs.items()}


def from_runtime(outputs: Mapping[str, Array], moved: Collection[str]) -> dict[str, Array]:
    """Outputs in the artifact's layout → in the source's."""
    import numpy as np

    return {n: np.moveaxis(a, -1, 1) if n in moved else a for n, a in outputs.items()}


@dataclass(frozen=True)
class Restored:
    """A runtime's outputs in the source's layout; every iteration reads the file anew."""

    outputs: ArrayFile
    moved: Collection[str]

    def __iter__(self) -> Iterator[dict[str, Array]]:
        return (from_runtime(row, self.moved) for row in self.outputs)
