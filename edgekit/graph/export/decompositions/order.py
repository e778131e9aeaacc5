"""Sorting, the k-th value, and running products and extremes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from edgekit.graph.export.decompositions.table import decomposes, static

aten = torch.ops.aten


@decomposes(aten.sort.stable)
def sort_stable(self: Tensor, *, stable: bool | None, dim: int = -1, descending: bool = False) -> Any:
    """ONNX's TopK, which puts the lower index first among equals."""
    del stable
    if self.dim() == 0 or not static(self.shape[dim]):
        return NotImplemented
    return aten.topk.default(self, self.shape[dim], dim, descending, True)


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


def _last(t: Tensor, dim: int, index: int, keepdim: bool) -> Tensor:
    return t.narrow(dim, index, 1) if keepdim else t.select(dim, index)


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
