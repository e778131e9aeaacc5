"""Whether a detector's boxes are where the source's are. Energy says little of that: in coordinates up to 640 pixels,
20 dB are an error of some dozens, which is a box beside the object.

A box agrees where the two overlap by half, intersection over union: the criterion of PASCAL VOC (Everingham et al.,
2010).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgekit.artifact.task import Task

if TYPE_CHECKING:
    from edgekit.types import Array

OVERLAP = 0.5
_FEWEST = 8
"""Of fewer rows four numbers may be anything, unless they are called boxes."""
_FEWEST_IN_A_HEAD = 64
_PIXELS = 2.0
_VALID = 0.99
"""The share of the source's boxes that have to be boxes: those of a regression of four values are some of the time."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How an output holds boxes: along ``axis`` their four numbers, ``corners`` (x1, y1, x2, y2) or centre and size,
    and with ``scores`` those of the classes behind them."""

    axis: int
    corners: bool
    scores: bool


def layout_of(name: str, ref: Array, task: Task) -> Layout | None:
    """The layout of the boxes in ``ref`` (``[batch, boxes, 4]``, or ``[batch, 4 + classes, boxes]`` and its transpose,
    as YOLO heads give them); ``None`` where it does not look like boxes."""
    if ref.dtype.kind != "f":
        return None
    called = "box" in name.lower() or "detection" in task.name
    if ref.ndim in (2, 3) and ref.shape[-1] == 4 and (called or (ref.ndim == 3 and ref.shape[1] >= _FEWEST)):
        forms = (True, False) if called else (True,)
        found = (Layout(axis=ref.ndim - 1, corners=c, scores=False) for c in forms)
        return next((layout for layout in found if _are_boxes(ref, layout)), None)
    if ref.ndim == 3:
        layout = Layout(axis=1 if ref.shape[1] < ref.shape[2] else 2, corners=False, scores=True)
        return layout if _is_head(ref, layout, called=called) else None
    return None


def _is_head(ref: Array, layout: Layout, *, called: bool) -> bool:
    """Whether boxes and scores are in one output. Without being called so they are in pixels: what is between 0 and 1
    may be anything."""
    width, count = ref.shape[layout.axis], ref.shape[3 - layout.axis]
    if width <= 4 or count < _FEWEST_IN_A_HEAD or not _are_boxes(ref, layout):
        return False
    return called or float(_rows(ref, layout)[:, :4].max()) > _PIXELS


def _are_boxes(ref: Array, layout: Layout) -> bool:
    rows = _rows(ref, layout)
    if not rows.size or not np.isfinite(rows).all():
        return False
    if layout.scores and not bool(((rows[:, 4:] >= 0) & (rows[:, 4:] <= 1)).all()):
        return False
    if not layout.scores and bool((np.diff(rows, axis=1) >= 0).all(axis=1).mean() >= _VALID):
        return False  # four quantiles
    return bool(_valid(rows, layout).mean() >= _VALID)


def _rows(array: Array, layout: Layout) -> Array:
    """One row a box."""
    return np.moveaxis(array, layout.axis, -1).reshape(-1, array.shape[layout.axis]).astype(np.float64)


def _valid(rows: Array, layout: Layout) -> Array:
    """Which of the rows have an area."""
    sizes = rows[:, 2:4] - rows[:, :2] if layout.corners else rows[:, 2:4]
    return np.asarray((sizes > 0).all(axis=1))


@dataclass(kw_only=True)
class BoxTally:
    """Boxes over the samples of one output. The first sample tells the layout, and all have to have it."""

    layout: Layout | None = None
    boxes: int = 0
    agreeing: int = 0
    overlap: float = 0.0
    samples: int = 0

    def add(self, name: str, ref: Array, out: Array, task: Task) -> None:
        """One sample of the source's and the artifact's."""
        layout = layout_of(name, ref, task) if self.layout is None and not self.samples else self.layout
        self.layout = layout if layout is not None and _are_boxes(ref, layout) else None
        self.samples += 1
        if self.layout is None:
            return
        before, after = _rows(ref, self.layout), _rows(out, self.layout)
        kept = _valid(before, self.layout) & _counting(before, self.layout)
        overlaps = _overlaps(before[kept], after[kept], self.layout)
        self.boxes += overlaps.size
        self.agreeing += int((overlaps >= OVERLAP).sum())
        self.overlap += float(overlaps.sum())

    def figures(self) -> dict[str, float]:
        """The share of boxes that agree, and their mean overlap; nothing where these are no boxes."""
        if self.layout is None or not self.boxes:
            return {}
        return {"boxes": self.agreeing / self.boxes, "iou": self.overlap / self.boxes}


def _counting(rows: Array, layout: Layout) -> Array:
    """Boxes that a detector would report: those with half of the highest score. Without scores beside them, all."""
    if not layout.scores:
        return np.ones(len(rows), bool)
    best = rows[:, 4:].max(axis=1)
    return np.asarray(best >= 0.5 * best.max())


def _overlaps(a: Array, b: Array, layout: Layout) -> Array:
    """Intersection over union of each pair; 0 where one has no area or is not finite."""
    (low_a, high_a), (low_b, high_b) = (_corners(rows, layout) for rows in (a, b))
    with np.errstate(all="ignore"):
        common = np.clip(np.minimum(high_a, high_b) - np.maximum(low_a, low_b), 0, None).prod(axis=1)
        areas = np.clip(high_a - low_a, 0, None).prod(axis=1) + np.clip(high_b - low_b, 0, None).prod(axis=1)
        union = areas - common
        found = np.where(union > 0, common / union, 0.0)
    return np.nan_to_num(found, nan=0.0, posinf=0.0, neginf=0.0)


def _corners(rows: Array, layout: Layout) -> tuple[Array, Array]:
    if layout.corners:
        return rows[:, :2], rows[:, 2:4]
    return rows[:, :2] - rows[:, 2:4] / 2, rows[:, :2] + rows[:, 2:4] / 2
