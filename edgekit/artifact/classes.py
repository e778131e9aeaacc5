"""Agreement of classes at places: pixels of a segmentation, tokens of a text.

A background that is the same on every sample agrees whatever an artifact does; such places are left out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from edgekit.artifact.task import Task

if TYPE_CHECKING:
    from edgekit.types import Array

_PIXELS = ("segmentation",)
_TOKENS = ("token-classification", "masked-lm", "fill-mask", "text-generation", "causal-lm")


def class_axis(name: str, ref: Array, task: Task) -> int | None:
    """The axis of ``ref``, of three dimensions and more, that counts classes: where the task says that there are some
    at every place, the axis that is as long as its classes, else the second of pixels, the last of tokens."""
    pixels, tokens = (any(t in task.name for t in kind) for kind in (_PIXELS, _TOKENS))
    named = task.scores is not None and name in task.scores
    if ref.dtype.kind != "f" or ref.ndim < 3 or not (pixels or tokens or named):
        return None
    if task.scores is not None and not named:
        return None
    fitting = [k for k in range(1, ref.ndim) if ref.shape[k] == len(task.classes) > 1]
    if len(fitting) == 1:
        return fitting[0]
    axis = ref.ndim - 1 if tokens or ref.ndim == 3 else 1
    return axis if ref.shape[axis] > 1 else None


@dataclass(kw_only=True)
class ClassTally:
    """Places whose highest score is the same, over the samples of one output."""

    places: int = 0
    agreeing: int = 0
    shape: tuple[int, ...] | None = None
    first: Array | None = None
    varies: Array | None = None
    by_place: list[Array] = field(default_factory=list)

    def add(self, ref: Array, out: Array, axis: int) -> None:
        """One sample of scores, ``axis`` counting classes; a place with a NaN of the artifact's never agrees."""
        classes = ref.argmax(axis=axis)
        broken = ~np.isfinite(out).all(axis=axis) & np.isfinite(ref).all(axis=axis)
        same = (classes == out.argmax(axis=axis)) & ~broken
        self.places += classes.size
        self.agreeing += int(same.sum())
        self._by_place(classes, same)

    def _by_place(self, classes: Array, same: Array) -> None:
        """Counts a place, as long as all samples have the same ones."""
        if self.shape is None:
            self.shape, self.first = classes.shape[1:], classes[0]
            self.varies = np.zeros(self.shape, bool)
            self.by_place = [np.zeros(self.shape, np.int64), np.zeros(self.shape, np.int64)]
        if classes.shape[1:] != self.shape or self.first is None or self.varies is None:
            self.varies = None
            return
        self.varies |= (classes != self.first).any(axis=0)
        self.by_place[0] += len(classes)
        self.by_place[1] += same.sum(axis=0)

    def share(self) -> float | None:
        """The share that agrees, of places whose class varies; of all where the samples have other sizes. ``None``
        where nothing varies: agreement then says nothing."""
        if self.varies is None:
            return self.agreeing / self.places if self.places else None
        compared = int(self.by_place[0][self.varies].sum())
        return int(self.by_place[1][self.varies].sum()) / compared if compared else None
