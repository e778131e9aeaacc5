"""Sorting, the k-th value, and running products and extremes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from edgekit.graph.export.decompositions.table import decomposes, static

aten = torch.ops.aten


_SMALL = (torch.bool, torch.uint8, torch.int8, torch.int16)
"""Types that ONNX Runtime's TopK does not take."""


@decomposes(aten.sort.stable)
def sort_stable(self: Tensor, *, stable: bool | None, dim: int = -1, descending: bool = False) -> Any:
    """ONNX's TopK, which puts the lower index first among equals."""
    del stable
    if self.dim() == 0 or not static(self.shape[dim]):
        return NotImplemented
    wide = self.to(torch.int32) if self.dtype in _SMALL else self
    values, indices = aten.topk.default(wide, self.shape[dim], dim, descending, True)
    return values.to(self.dtype), indices


def _of_small(node: Node) -> bool:
    return node.args[0].meta["val"].dtype in _SMALL  # type: ignore[union-attr]


@decomposes(aten.sort.default, where=_of_small)
def sort(self: Tensor, dim: int = -1, descending: bool = False) -> Any:
    """:func:`sort_stable`, of types that have to be widened."""
    return sort_stable(self, stable=True, dim=dim, descending=descending)


@decomposes(aten.argsort.stable)
def argsort_stable(self: Tensor, *, stable: bool | None, dim: int = -1, descending: bool = False) -> Any:
    """The indices of :func:`sort_stable`."""
    result = sort_stable(self, stable=stable, dim=dim, descending=descending)
    return result if result is NotImplemented else result[1]


@decomposes(aten.kthvalue.default)
def kthvalue(self: Tensor, k: int, dim: int = -1, keepdim: bool = False) -> Any:
    """The last of the ``k`` smallest."""
    if self.dim() == 0:
        return NotImplemented
    values, indices = aten.topk.default(self, k, dim, False, True)
    return tuple(_last(t, dim, k - 1, keepdim) for t in (values, indices))


@decomposes(aten.median.dim)
def median(self: Tensor, dim: int = -1, keepdim: bool = False) -> Any:
    """The lower of the two in the middle; a NaN wins."""
    if self.dim() == 0 or not static(self.shape[dim]) or not self.is_floating_point():
        return NotImplemented
    values, indices = kthvalue(self, (self.shape[dim] + 1) // 2, dim, True)
    strange = torch.isnan(self)
    first = strange.to(torch.float32).argmax(dim, keepdim=True)
    some = strange.any(dim, keepdim=True)
    values = torch.where(some, torch.full_like(values, float("nan")), values)
    indices = torch.where(some, first, indices)
    return (values, indices) if keepdim else (values.squeeze(dim), indices.squeeze(dim))


@decomposes(aten.median.default)
def median_of_all(self: Tensor) -> Any:
    """The same over everything."""
    result = median(self.reshape(-1), 0)
    return result if result is NotImplemented else result[0]


@decomposes(aten.nanmedian.dim)
def nanmedian(self: Tensor, dim: int = -1, keepdim: bool = False) -> Any:
    """The lower of the two in the middle of those that are numbers."""
    if self.dim() == 0 or not static(self.shape[dim]) or not self.is_floating_point():
        return NotImplemented
    strange = torch.isnan(self)
    sorted_, indices = sort_stable(torch.where(strange, math.inf, self), stable=True, dim=dim)
    count = (~strange).to(torch.int64).sum(dim, keepdim=True)
    middle = ((count - 1) // 2).clamp(min=0)
    values = torch.where(count > 0, sorted_.gather(dim, middle), float("nan"))
    places = indices.gather(dim, middle)
    return (values, places) if keepdim else (values.squeeze(dim), places.squeeze(dim))


@decomposes(aten.nanmedian.default)
def nanmedian_of_all(self: Tensor) -> Any:
    """The same over everything."""
    result = nanmedian(self.reshape(-1), 0)
    return result if result is NotImplemented else result[0]


@decomposes(aten.mode.default)
def mode(self: Tensor, dim: int = -1, keepdim: bool = False) -> Any:
    """The most frequent, the least of several; and where it is last."""
    if self.dim() == 0 or not static(self.shape[dim]):
        return NotImplemented
    values, _ = sort_stable(self, stable=True, dim=dim)
    moved = values.movedim(dim, -1)
    counts = (moved.unsqueeze(-1) == moved.unsqueeze(-2)).to(torch.int32).sum(-1)
    best = moved.gather(-1, counts.argmax(-1, keepdim=True)).movedim(-1, dim)
    shape = [-1 if i == dim % self.dim() else 1 for i in range(self.dim())]
    places = torch.arange(self.shape[dim], device=self.device).reshape(shape)
    last = torch.where(self == best, places, -1).amax(dim, keepdim=True)
    return (best, last) if keepdim else (best.squeeze(dim), last.squeeze(dim))


def _last(t: Tensor, dim: int, index: int, keepdim: bool) -> Tensor:
    return t.narrow(dim, index, 1) if keepdim else t.select(dim, index)


def _without_axes(node: Node) -> bool:
    return len(node.args) < 2 or not node.args[1]


def _of_everything(overload: Any) -> Callable[..., Any]:
    def whole(self: Tensor, dim: Sequence[int] = (), keepdim: bool = False) -> Any:
        """With every axis named: the exporter knows no other."""
        if dim:
            return NotImplemented
        return overload(self, tuple(range(self.dim())), keepdim) if self.dim() else self.clone()

    return whole


for _overload in (aten.amax.default, aten.amin.default):
    decomposes(_overload, where=_without_axes)(_of_everything(_overload))


# --- along an axis ----------------------------------------------------------------------------------


def _before(t: Tensor, dim: int, by: int, fill: float) -> Tensor:
    """Moved by ``by`` towards the end, ``fill`` in front."""
    shape = list(t.shape)
    shape[dim] = by
    front = torch.full(shape, fill, dtype=t.dtype, device=t.device)
    return torch.cat([front, t.narrow(dim, 0, t.shape[dim] - by)], dim)


@decomposes(aten.cumprod.default)
def cumprod(self: Tensor, dim: int, *, dtype: torch.dtype | None = None) -> Any:
    """By doubling (Hillis and Steele, 1986): log2(n) products with shifted copies."""
    wide = dtype or (self.dtype if self.is_floating_point() else torch.int64)
    t = self.to(wide)
    if t.dim() == 0:
        return t.clone()
    if not static(t.shape[dim]):
        return NotImplemented
    step = 1
    while step < t.shape[dim]:
        t = t * _before(t, dim, step, 1)
        step *= 2
    return t


@decomposes(aten.vander.default)
def vander(self: Tensor, count: int | None = None, increasing: bool = False) -> Any:
    """Powers side by side."""
    count = self.shape[-1] if count is None else count
    if not static(count):
        return NotImplemented
    powers = [torch.ones_like(self)]
    for _ in range(1, count):
        powers.append(powers[-1] * self)
    return torch.stack(powers if increasing else powers[::-1], -1)


def _running(self: Tensor, dim: int, better: Callable[[Tensor, Tensor], Tensor], worst: float) -> Any:
    if self.dim() == 0 or not static(self.shape[dim]) or not self.is_floating_point():
        return NotImplemented
    size = self.shape[dim]
    shape = [size if i == dim % self.dim() else 1 for i in range(self.dim())]
    indices = torch.arange(size, device=self.device).reshape(shape).expand(self.shape)
    values, step = self, 1
    while step < size:
        earlier, where = _before(values, dim, step, worst), _before(indices, dim, step, 0)
        # The later one wins among equals, and a NaN stays.
        later = (better(values, earlier) | torch.isnan(values)) & ~torch.isnan(earlier)
        later = later | (torch.isnan(values) & torch.isnan(earlier))
        inside = torch.arange(size, device=self.device).reshape(shape) < step
        later = later | inside
        values, indices = torch.where(later, values, earlier), torch.where(later, indices, where)
        step *= 2
    return values, indices


@decomposes(aten.cummax.default)
def cummax(self: Tensor, dim: int) -> Any:
    """The largest so far and where it is, by doubling."""
    return _running(self, dim, torch.ge, -math.inf)


@decomposes(aten.cummin.default)
def cummin(self: Tensor, dim: int) -> Any:
    """The smallest so far and where it is, by doubling."""
    return _running(self, dim, torch.le, math.inf)
