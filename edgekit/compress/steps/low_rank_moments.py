"""What the layers that ``low-rank`` factors read: second moments and means of their inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import nn
from torch.nn import functional

from edgekit.compress.hooks import Weighted, grouped, removed
from edgekit.compress.step import Context

Factorable: TypeAlias = Weighted | nn.Embedding

_MEMORY = 512 << 20
"""Bytes of moments that are taken in one pass; more layers take more passes."""
_PATCH = 2304
"""Columns up to which whole patches of a convolution are taken: the matrix then has 42 MB."""


@dataclass(frozen=True, kw_only=True)
class InputMoments:
    """Of a layer's inputs: second moments ``[D, D]`` and mean ``[D]``; of an embedding's: how often each row."""

    moments: torch.Tensor | None = None
    mean: torch.Tensor | None = None
    counts: torch.Tensor | None = None


def observe(
    model: nn.Module, targets: Mapping[str, Factorable], context: Context, batches: int, *, step: str
) -> dict[str, InputMoments]:
    """Moments and counts of every target's inputs over the task's first batches; memory is bounded."""
    moments: dict[str, InputMoments] = {}
    sizes = {name: 8 * _width(module) ** 2 for name, module in targets.items()}
    for group in grouped(sizes, _MEMORY):
        watchers = {name: _Watcher(targets[name]) for name in group}
        with removed(watcher.handle for watcher in watchers.values()):
            context.observe(model, batches, step=step)
        moments |= {name: watcher.moments() for name, watcher in watchers.items()}
    return moments


def _width(module: Factorable) -> int:
    """Side of the moments' matrix: with whole patches where that is not too large, else channels only."""
    if isinstance(module, nn.Embedding):
        return 1
    patch = module.weight[0].numel()
    return patch if patch <= _PATCH else module.weight.shape[1]


class _Watcher:
    """Adds up what one layer reads."""

    def __init__(self, module: Factorable) -> None:
        self.module, self.width = module, _width(module)
        embedding = isinstance(module, nn.Embedding)
        rows = module.num_embeddings if isinstance(module, nn.Embedding) else self.width
        self.sum = torch.zeros(rows, dtype=torch.float64)
        self.products = torch.zeros(0 if embedding else rows, rows, dtype=torch.float64)
        self.count = 0
        self.handle = module.register_forward_pre_hook(self.look)

    def look(self, module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        x = args[0].detach()
        if isinstance(module, nn.Embedding):
            self.sum += torch.bincount(x.flatten().cpu(), minlength=len(self.sum)).double()
            return
        if x.ndim > 2 and isinstance(module, nn.modules.conv._ConvNd):
            x = self._patches(module, x)
        x = x.reshape(-1, self.width).float()
        self.sum += x.sum(0).double().cpu()
        self.products += (x.T @ x).double().cpu()
        self.count += len(x)

    def _patches(self, m: nn.modules.conv._ConvNd, x: torch.Tensor) -> torch.Tensor:
        """``[rows, channels × kernel]``, or ``[rows, channels]``."""
        if self.width == m.weight.shape[1]:
            return x.movedim(1, -1)
        if x.ndim == 3:
            x = x.unsqueeze(2)
        # unfold knows two dimensions: one is put before those of a one-dimensional convolution
        before = 2 - len(m.kernel_size)
        size, dilation, stride = (
            (1,) * before + tuple(value) for value in (m.kernel_size, m.dilation, m.stride)
        )
        padding = (0,) * before + tuple(_padding(m, axis) for axis in range(len(m.kernel_size)))
        return functional.unfold(x, size, dilation, padding, stride).transpose(1, 2)

    def moments(self) -> InputMoments:
        """What was seen so far."""
        if isinstance(self.module, nn.Embedding):
            return InputMoments(counts=self.sum)
        count = max(1, self.count)
        return InputMoments(moments=self.products / count, mean=self.sum / count)


def _padding(m: nn.modules.conv._ConvNd, axis: int) -> int:
    """Zeros on each side of ``axis`` (``same`` with an even kernel has one more behind; the moments do without)."""
    if isinstance(m.padding, str):
        return int(m.dilation[axis] * (m.kernel_size[axis] - 1) // 2) if m.padding == "same" else 0
    return int(m.padding[axis])
