"""Looking at a module while it runs: hooks that go when a block ends, what convolutions read, memory in bounds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeAlias

import torch
from torch import nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

Weighted: TypeAlias = nn.Linear | nn.modules.conv._ConvNd
"""Layers with a weight ``[out, in]`` or ``[out, in / groups, *kernel]``."""

ROWS = 1 << 15
"""Positions a batch that are looked at: enough for moments of any block, and a bound for the memory."""


@contextmanager
def removed(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Take hooks away when the block ends."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def grouped(sizes: Mapping[str, int], limit: int) -> Iterator[list[str]]:
    """Names in order, so many together that their ``sizes`` stay within ``limit``; one alone may be larger."""
    group: list[str] = []
    used = 0
    for name, size in sizes.items():
        if group and used + size > limit:
            yield group
            group, used = [], 0
        group.append(name)
        used += size
    if group:
        yield group


def first_input(args: tuple[torch.Tensor, ...], kwargs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """What a layer reads, by position or by name."""
    return args[0] if args else next(iter(kwargs.values()))


def prunable(model: nn.Module) -> dict[str, Weighted]:
    """Linear and convolution layers by name, but for those whose weights are integers already."""
    return {n: m for n, m in model.named_modules() if isinstance(m, Weighted) and "weight" in m._parameters}


def patches(module: nn.modules.conv._ConvNd, x: torch.Tensor) -> tuple[torch.Tensor, int]:
    """What a convolution of any number of dimensions multiplies, ``[positions, groups, columns]``: every so
    many-th position (the second result), so that there are not more than ``ROWS``."""
    dims = len(module.kernel_size)
    if x.ndim == dims + 1:
        x = x[None]
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    # unfold along each axis instead of functional.unfold, which knows two dimensions and makes all positions at once
    x = functional.pad(x, module._reversed_padding_repeated_twice, mode=mode)
    for axis in range(dims):
        size, dilation = module.kernel_size[axis], module.dilation[axis]
        windows = x.unfold(2 + axis, dilation * (size - 1) + 1, module.stride[axis])
        x = windows[..., ::dilation]
    sizes = (x.shape[0], *x.shape[2 : 2 + dims])
    count = math.prod(sizes)
    each = -(-count // ROWS)
    sample, *position = torch.unravel_index(torch.arange(0, count, each, device=x.device), sizes)
    x = x.movedim(1, 1 + dims)[(sample, *position)]  # [positions, channels, *kernel]
    return x.reshape(len(x), module.groups, -1), each
