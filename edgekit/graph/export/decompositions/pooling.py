"""Adaptive pooling to sizes that do not divide, and averages with a divisor of their own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from edgekit.graph.export.decompositions.table import decomposes, static

aten = torch.ops.aten


def _windows(size: int, out: int) -> list[tuple[int, int]]:
    """Where the windows of adaptive pooling begin, and how long they are."""
    starts = [i * size // out for i in range(out)]
    return [(s, -(-(i + 1) * size // out) - s) for i, s in enumerate(starts)]


def _largest(x: Tensor, places: Tensor, dim: int, out: int) -> tuple[Tensor, Tensor]:
    """The largest of each window along ``dim`` and its entry of ``places``."""
    values, found = [], []
    for start, length in _windows(x.shape[dim], out):
        part, index = x.narrow(dim, start, length), places.narrow(dim, start, length)
        best, at = part.max(dim, keepdim=True)
        values.append(best)
        found.append(index.gather(dim, at))
    return torch.cat(values, dim), torch.cat(found, dim)


@decomposes(aten.adaptive_max_pool2d.default, aten.adaptive_max_pool3d.default)
def adaptive_max_pool(self: Tensor, output_size: Sequence[int]) -> Any:
    """One axis after the other, the last first: so the first of equals wins, as PyTorch counts."""
    axes = range(self.dim() - len(output_size), self.dim())
    if not static(*(self.shape[a] for a in axes), *output_size):
        return NotImplemented
    spatial = [self.shape[a] for a in axes]
    lead = [1] * (self.dim() - len(spatial))
    places = torch.arange(math.prod(spatial), device=self.device).reshape(lead + spatial).expand(self.shape)
    values = self
    for axis, out in zip(reversed(axes), reversed(output_size), strict=True):
        values, places = _largest(values, places, axis, out)
    return values, places


@decomposes(aten.adaptive_max_pool1d.default)
def adaptive_max_pool1d(self: Tensor, output_size: Sequence[int]) -> Any:
    """The same over one axis."""
    return adaptive_max_pool(self, output_size)


@decomposes(aten._adaptive_avg_pool3d.default, aten.adaptive_avg_pool3d.default)
def adaptive_avg_pool3d(self: Tensor, output_size: Sequence[int]) -> Any:
    """A mean after the other: windows along one axis do not depend on the others."""
    axes = range(self.dim() - len(output_size), self.dim())
    if not static(*(self.shape[a] for a in axes), *output_size):
        return NotImplemented
    for axis, out in zip(axes, output_size, strict=True):
        parts = [self.narrow(axis, s, n).mean(axis, keepdim=True) for s, n in _windows(self.shape[axis], out)]
        self = torch.cat(parts, axis)
    return self


def _avg_pool(
    self: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    *,
    rank: int,
) -> Any:
    spatial = self.shape[-rank:]
    del count_include_pad  # a divisor of its own counts nothing
    if divisor_override is None or not static(*spatial):
        return NotImplemented
    kernel, pads = (list(v) * (rank if len(v) == 1 else 1) for v in (kernel_size, padding))
    steps = list(stride) * (rank if len(stride) == 1 else 1) or kernel
    margins: list[int] = []
    for size, k, s, p in zip(spatial, kernel, steps, pads, strict=True):
        places = size + 2 * p - k
        count = (-(-places // s) if ceil_mode else places // s) + 1
        if ceil_mode and (count - 1) * s >= size + p:  # a window may not begin in the margin behind
            count -= 1
        margins = [p, max((count - 1) * s + k - size - p, -p), *margins]
    padded = torch.nn.functional.pad(self, margins)
    pool = {1: aten.avg_pool1d, 2: aten.avg_pool2d, 3: aten.avg_pool3d}[rank]
    return pool.default(padded, kernel, steps) * (math.prod(kernel) / divisor_override)


def _own_divisor(node: Node) -> bool:
    divisor = node.args[6] if len(node.args) > 6 else node.kwargs.get("divisor_override")
    return divisor is not None


@decomposes(aten.avg_pool2d.default, where=_own_divisor)
def avg_pool2d(*args: Any, **kwargs: Any) -> Any:
    """With a divisor of its own: the mean over whole windows, zeros around, times a number."""
    return _avg_pool(*args, rank=2, **kwargs)


@decomposes(aten.avg_pool3d.default, where=_own_divisor)
def avg_pool3d(*args: Any, **kwargs: Any) -> Any:
    """As :func:`avg_pool2d`."""
    return _avg_pool(*args, rank=3, **kwargs)


def _starts(size: int, out: int, kernel: int, sample: Tensor) -> Tensor:
    """Where fractional pooling's windows begin along an axis, ``[..., out]``, by one random number (Graham, 2014)."""
    if out == 1:
        return torch.full((*sample.shape, 1), size - kernel, device=sample.device)
    step = (size - kernel) / (out - 1)
    steps = torch.arange(out - 1, device=sample.device, dtype=sample.dtype)
    offset = sample.unsqueeze(-1)
    starts = ((steps + offset) * step).to(torch.int64) - (offset * step).to(torch.int64)
    last = torch.full((*sample.shape, 1), size - kernel, device=sample.device)
    return torch.cat([starts, last], -1)


@decomposes(aten.fractional_max_pool2d.default, aten.fractional_max_pool3d.default)
def fractional_max_pool(
    self: Tensor, kernel_size: Sequence[int], output_size: Sequence[int], random_samples: Tensor
) -> Any:
    """The largest of windows that begin where given random numbers say; of equals the first."""
    rank = len(output_size)
    spatial = list(self.shape[-rank:])
    if not static(*spatial, *output_size):
        return NotImplemented
    x = self if self.dim() == rank + 2 else self.unsqueeze(0)
    places = torch.zeros((*x.shape[:2], *[1] * rank), dtype=torch.int64, device=x.device)
    for axis in range(rank):
        # Of an image the first number is the width's, of a volume the depth's.
        sample = random_samples[..., axis if rank == 3 else 1 - axis].expand(x.shape[:2])
        starts = _starts(spatial[axis], output_size[axis], kernel_size[axis], sample)
        inside = starts.unsqueeze(-1) + torch.arange(kernel_size[axis], device=x.device)
        shape = [1] * (2 * rank)
        shape[axis], shape[rank + axis] = output_size[axis], kernel_size[axis]
        places = places.reshape(*x.shape[:2], *places.shape[2:], *[1] * (2 * rank - places.dim() + 2))
        places = places * spatial[axis] + inside.reshape(*x.shape[:2], *shape)
    count = math.prod(output_size)
    flat = places.reshape(*x.shape[:2], -1)
    windows = x.reshape(*x.shape[:2], -1).gather(-1, flat).reshape(*x.shape[:2], count, -1)
    values, best = windows.max(-1, keepdim=True)
    found = flat.reshape(windows.shape).gather(-1, best)
    shape = [*self.shape[:-rank], *output_size]
    return values.reshape(shape), found.reshape(shape)
