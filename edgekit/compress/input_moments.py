"""Second moments of what a layer's weights are multiplied with, on some data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeGuard

import torch
from torch import nn

from edgekit.compress import constraints
from edgekit.compress.hooks import ROWS, Weighted, first_input, grouped, patches, removed
from edgekit.compress.step import Context, Tensors

_MEMORY = 512 << 20
"""Bytes of moments that are taken in one pass; more layers take more passes."""
_WIDEST = 6144
"""Columns up to which a layer is solved: its moments take 300 MB."""


def observed(
    model: nn.Module, layers: Mapping[str, Weighted], context: Context, batches: int, *, step: str
) -> Iterator[tuple[str, Moments]]:
    """The moments of each of the ``layers`` that :func:`solvable` tells, from the task's first batches, so many
    together that memory is bounded. Layers that are never called are left out. Raises ``UsageError`` without a task."""
    able = {n: m for n, m in layers.items() if solvable(m)}
    sizes = {n: 8 * getattr(m, "groups", 1) * (m.weight[0].numel() + 1) ** 2 for n, m in able.items()}
    for group in grouped(sizes, _MEMORY):
        found = {name: Moments(able[name]) for name in group}
        with removed(m.handle for m in found.values()):
            context.observe(model, batches, step=step)
        yield from ((name, moments) for name, moments in found.items() if moments.seen)


def readable(module: nn.Module) -> TypeGuard[Weighted]:
    """Whether what the module's weights are multiplied with can be told from what it is called with."""
    return isinstance(module, Weighted) and not getattr(module, "transposed", False)


def solvable(module: nn.Module) -> bool:
    """Whether its weights can be chosen anew, one by one."""
    return readable(module) and module.weight[0].numel() <= _WIDEST and constraints.values(module) is None


class Moments:
    """Adds up ``Σ x xᵀ`` of what a layer's weights are multiplied with, group by group, a column of ones for a bias."""

    def __init__(self, module: Weighted, *, squares_only: bool = False) -> None:
        self.module, self.squares_only = module, squares_only
        self.groups: int = getattr(module, "groups", 1)
        self.width = module.weight[0].numel()
        self.bias = module.bias is not None and not squares_only
        side = self.width + self.bias
        shape = (self.groups, side) if squares_only else (self.groups, side, side)
        self.moments = torch.zeros(shape, dtype=torch.float64)
        self.seen = 0
        self.handle = module.register_forward_pre_hook(self.look, with_kwargs=True)

    def look(self, module: Weighted, args: tuple[torch.Tensor, ...], kwargs: Tensors) -> None:
        """Add up what one call shows."""
        x = first_input(args, kwargs).detach()
        if isinstance(module, nn.Linear):
            rows = x.reshape(-1, 1, self.width)
            rows = rows[:: -(-len(rows) // ROWS)]
        else:
            rows, _ = patches(module, x)
        for group in range(self.groups):
            some = rows[:, group].float()
            if self.squares_only:
                self.moments[group] += some.square().sum(0).double().cpu()
                continue
            if self.bias:
                some = torch.cat([some, some.new_ones(len(some), 1)], 1)
            self.moments[group] += (some.T @ some).double().cpu()
        self.seen += len(rows)

    def norms(self) -> torch.Tensor:
        """The root mean square of what each weight is multiplied with, in the weight's shape."""
        weight = self.module.weight
        each = (self.moments / self.seen).sqrt().repeat_interleave(len(weight) // self.groups, 0)
        return each.reshape(weight.shape).to(weight)
