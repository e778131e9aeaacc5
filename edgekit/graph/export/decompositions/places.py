"""Scatters, searches and bags: what goes where."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from edgekit.graph.export.decompositions.table import decomposes, static

aten = torch.ops.aten

_NEUTRAL = {"sum": 0.0, "mean": 0.0, "prod": 1.0, "amax": -torch.inf, "amin": torch.inf}


def _odd_reduction(node: Node) -> bool:
    reduce = node.args[4] if len(node.args) > 4 else node.kwargs.get("reduce")
    return reduce == "mean" or node.kwargs.get("include_self") is False


@decomposes(aten.scatter_reduce.two, where=_odd_reduction)
def scatter_reduce(
    self: Tensor, dim: int, index: Tensor, src: Tensor, reduce: str, *, include_self: bool = True
) -> Any:
    """A mean is a sum over a count; what is not included begins with the value that changes nothing."""
    if not self.is_floating_point():
        return NotImplemented
    ones = torch.ones_like(src)
    count = torch.zeros_like(self).scatter_add(dim, index, ones)
    base = self if include_self else torch.where(count > 0, _NEUTRAL[reduce], self)
    if reduce != "mean":
        return base.scatter_reduce(dim, index, src, reduce)
    return base.scatter_add(dim, index, src) / (count + 1 if include_self else count.clamp(min=1))


@decomposes(aten.index_reduce.default)
def index_reduce(
    self: Tensor, dim: int, index: Tensor, source: Tensor, reduce: str, *, include_self: bool = True
) -> Any:
    """The same, whole slices at a time."""
    shape = [-1 if i == dim % self.dim() else 1 for i in range(self.dim())]
    wide = index.reshape(shape).expand(source.shape)
    return scatter_reduce(self, dim, wide, source, reduce, include_self=include_self)


@decomposes(aten.diagonal_scatter.default)
def diagonal_scatter(self: Tensor, src: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Any:
    """The two axes last and flat: the diagonal is a stride there."""
    moved = self.movedim((dim1, dim2), (-2, -1))
    height, width = moved.shape[-2:]
    if not static(height, width):
        return NotImplemented
    first = max(-offset, 0) * width + max(offset, 0)
    places = torch.arange(src.shape[-1], device=self.device) * (width + 1) + first
    index = places.expand(*moved.shape[:-2], src.shape[-1])
    flat = moved.flatten(-2).scatter(-1, index, src)
    return flat.reshape(moved.shape).movedim((-2, -1), (dim1, dim2))


@decomposes(aten.masked_scatter.default, misread=True)
def masked_scatter(self: Tensor, mask: Tensor, source: Tensor) -> Tensor:
    """Each place's number among those of the mask: no tensor's size depends on values."""
    self, mask = torch.broadcast_tensors(self, mask)  # type: ignore[no-untyped-call]
    number = mask.reshape(-1).to(torch.int64).cumsum(0) - 1
    taken = source.reshape(-1)[number.clamp(0, source.numel() - 1)].reshape(self.shape)
    return torch.where(mask, taken, self)


@decomposes(aten.searchsorted.Tensor, aten.searchsorted.Scalar)
def searchsorted(
    sequence: Tensor,
    values: Any,
    *,
    out_int32: bool = False,
    right: bool = False,
    side: str | None = None,
    sorter: Tensor | None = None,
) -> Tensor:
    """How many are smaller, or not larger."""
    if sorter is not None:
        sequence = sequence.gather(-1, sorter)
    wanted = values if isinstance(values, Tensor) else torch.full((), values, device=sequence.device)
    each = sequence.unsqueeze(-2) if sequence.dim() > 1 else sequence
    wide = wanted.unsqueeze(-1)
    before = each <= wide if right or side == "right" else each < wide
    return before.to(torch.int32 if out_int32 else torch.int64).sum(
        -1, dtype=torch.int32 if out_int32 else None
    )


# --- bags -----------------------------------------------------------------------------------------------

_SUM, _MEAN, _MAX = 0, 1, 2


@decomposes(aten.embedding_bag.default, aten.embedding_bag.padding_idx, misread=True)
def embedding_bag(
    weight: Tensor,
    indices: Tensor,
    offsets: Tensor,
    scale_grad_by_freq: bool = False,
    mode: int = _SUM,
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Which row is in which bag, as a matrix; the exporter writes a loop over a sequence."""
    del scale_grad_by_freq, sparse
    places = torch.arange(indices.shape[0], device=indices.device)
    starts = offsets[:-1] if include_last_offset else offsets
    bag = (starts <= places.unsqueeze(1)).to(torch.int64).sum(1) - 1
    inside = bag == torch.arange(starts.shape[0], device=indices.device).unsqueeze(1)
    if padding_idx is not None:
        inside = inside & (indices != padding_idx % weight.shape[0])
    rows = weight[indices]
    share = inside.to(weight.dtype)
    count = share.sum(1, keepdim=True)
    if mode == _MAX:
        best = torch.where(inside.unsqueeze(-1), rows, -torch.inf).amax(1)
        result = torch.where(count > 0, best, 0.0)
    else:
        share = share if per_sample_weights is None else share * per_sample_weights
        result = share @ rows
        result = result / count.clamp(min=1) if mode == _MEAN else result
    return result, bag, count.squeeze(1).to(indices.dtype), torch.zeros_like(starts)


@decomposes(aten.embedding_renorm_.default, aten.embedding_renorm.default)
def embedding_renorm(weight: Tensor, indices: Tensor, max_norm: float, norm_type: float) -> Tensor:
    """The rows that are looked up, at most as long as ``max_norm``."""
    rows = torch.arange(weight.shape[0], device=weight.device)
    found = (indices.reshape(-1, 1) == rows).any(0).unsqueeze(1)
    length = torch.linalg.vector_norm(weight, norm_type, -1, keepdim=True)
    return torch.where(found & (length > max_norm), weight * (max_norm / (length + 1e-7)), weight)
