"""Whether masks cover what the source's cover: a person's outline, what is in the foreground, a line of text.

Energy says little of that. A thin object is a small part of a picture's energy, and a map that is a little lower
everywhere has lost what was barely above the threshold.

A mask agrees where the two overlap by three quarters, intersection over union: the stricter of the two thresholds that
are in use for segments (COCO's AP75; Lin et al., 2014). Masks of nothing, and of the whole picture, say nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from edgekit.artifact.task import Task

if TYPE_CHECKING:
    from edgekit.types import Array

OVERLAP = 0.75
_NAMES = ("mask", "matte", "alpha", "foreground", "saliency")
_TASKS = ("mask", "matting", "segmentation", "saliency", "background-removal", "text-detection")
_FEWEST = 8
"""A map of fewer rows or columns is no picture, unless it is called a mask."""
_DECIDED, _MOSTLY = 0.1, 0.9
"""Without being called so it is a mask where 0.9 of its values are within 0.1 of 0 or 1: a depth map, too, lies between
0 and 1."""
_PIXELS, _SHARE = 4, 0.001
"""Smaller masks, in pixels and of the picture, are left out: one pixel would be a quarter of them."""
LIKELY_OVERLAP = 0.5
"""Of maps that may be logits of masks: a signal that was kept keeps more of what is above zero."""
_FEWEST_LIKELY = 8
"""So many masks tell that maps were lost."""
_MOST_ABOVE = 0.4
"""A signal about zero (a residual, an image less its mean) is above it in half of its places."""
_TOGETHER = 0.4
"""Of the neighbours of a place in a mask, along rows or columns: lines two places wide have half."""
_AWAY, _ABOVE = 0.3, 0.1
"""Of the root mean square, how far a background is below zero and a mask above it in the mean: of peaks on a flat
ground most places are about zero, and their sign says nothing."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """``threshold``: above it a place belongs to the mask; 0.5 of probabilities, 0 of scores of both signs."""

    threshold: float


def layout_of(name: str, ref: Array, task: Task) -> Layout | None:
    """How ``ref`` (``[batch, height, width]``, or with an axis of channels before or behind, each a mask of its own)
    holds masks; ``None`` where it does not look like any.

    Several channels are masks only where the output's name says so: of a segmentation they are scores of classes.
    """
    if ref.dtype.kind != "f" or ref.ndim not in (3, 4) or not ref.size or not np.isfinite(ref).all():
        return None
    named = any(word in name.lower() for word in _NAMES)
    called = named or any(word in task.name for word in _TASKS)
    maps = _maps(ref)
    if not named and (len(maps) != ref.shape[0] or min(maps.shape[1:]) < _FEWEST):
        return None
    if ref.min() >= 0 and ref.max() <= 1:
        decided = ((ref <= _DECIDED) | (ref >= 1 - _DECIDED)).mean() >= _MOSTLY
        return Layout(threshold=0.5) if called or decided else None
    return Layout(threshold=0.0) if called and ref.min() < 0 < ref.max() else None


def _maps(array: Array) -> Array:
    """``[masks, height, width]``. Of four axes the smaller of second and last counts channels."""
    if array.ndim == 3:
        return array
    if array.shape[3] < array.shape[1]:
        array = np.moveaxis(array, 3, 1)
    return array.reshape(-1, *array.shape[2:])


@dataclass(kw_only=True)
class LikelyTally:
    """Maps of one channel that nobody calls masks, and that look like logits of some."""

    maps: bool = True
    pixels: int = 0
    above: int = 0
    beside: int = 0
    neighbours: int = 0
    positive: float = 0.0
    negative: float = 0.0
    squares: float = 0.0
    masks: int = 0
    overlap: float = 0.0

    def add(self, ref: Array, out: Array) -> None:
        """One sample of the source's and the artifact's."""
        single = (
            ref.dtype.kind == "f" and ref.ndim in (3, 4) and bool(ref.size) and bool(np.isfinite(ref).all())
        )
        maps = _maps(ref) if single and self.maps else ref
        self.maps &= single and len(maps) == ref.shape[0] and min(maps.shape[1:], default=0) >= _FEWEST
        if not self.maps:
            return
        was, came = maps > 0, _maps(out) > 0
        wide = maps.astype(np.float64)
        self.pixels += was.size
        self.above += int(was.sum())
        along = [(was[:, :, 1:], was[:, :, :-1]), (was[:, 1:], was[:, :-1])]
        pair = max(along, key=lambda p: int((p[0] & p[1]).sum()))
        self.beside += int((pair[0] & pair[1]).sum())
        self.neighbours += int(pair[0].sum())
        self.positive += float(wide[was].sum())
        self.negative -= float(wide[~was].sum())
        self.squares += float((wide * wide).sum())
        some = was.any(axis=(1, 2))
        overlaps = _overlaps(was[some], came[some])
        self.masks += overlaps.size
        self.overlap += float(overlaps.sum())

    def figures(self) -> dict[str, float]:
        """The mean overlap of what is above zero; nothing where that is no likely mask."""
        below = self.pixels - self.above
        if not self.maps or self.masks < _FEWEST_LIKELY or not 0 < self.above <= _MOST_ABOVE * self.pixels:
            return {}
        size = float(np.sqrt(self.squares / self.pixels))
        whole = self.beside >= _TOGETHER * self.neighbours
        away = self.negative / below >= _AWAY * size and self.positive / self.above >= _ABOVE * size
        return {LIKELY: self.overlap / self.masks} if whole and away else {}


LIKELY = "likely_mask_iou"


@dataclass(kw_only=True)
class MaskTally:
    """Masks over the samples of one output. The first sample tells the layout, and all have to have it."""

    layout: Layout | None = None
    masks: int = 0
    agreeing: int = 0
    overlap: float = 0.0
    samples: int = 0
    likely: LikelyTally = field(default_factory=LikelyTally)

    def add(self, name: str, ref: Array, out: Array, task: Task) -> None:
        """One sample of the source's and the artifact's."""
        found = layout_of(name, ref, task)
        self.layout = found if not self.samples or found == self.layout else None
        self.samples += 1
        if self.layout is None:
            self.likely.add(ref, out)
            return
        overlaps = _overlaps(_maps(ref) > self.layout.threshold, _maps(out) > self.layout.threshold)
        self.masks += overlaps.size
        self.agreeing += int((overlaps >= OVERLAP).sum())
        self.overlap += float(overlaps.sum())

    def figures(self) -> dict[str, float]:
        """The share of masks that agree, and their mean overlap; nothing where these are no masks."""
        if self.layout is None:
            return self.likely.figures()
        if not self.masks:
            return {}
        return {"masks": self.agreeing / self.masks, "mask_iou": self.overlap / self.masks}


def _overlaps(before: Array, after: Array) -> Array:
    """Intersection over union of each pair that says something: of a mask that the source has, and of one that it
    does not have while the artifact does."""
    pixels = before.shape[1] * before.shape[2]
    was, came = before.sum(axis=(1, 2)), after.sum(axis=(1, 2))
    common, union = (before & after).sum(axis=(1, 2)), (before | after).sum(axis=(1, 2))
    least = max(_PIXELS, _SHARE * pixels)
    telling = (np.maximum(was, came) >= least) & (was < pixels)
    return np.asarray(common[telling] / union[telling])
