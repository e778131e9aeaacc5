"""How much the loss minds a change of each weight: its curvature, layer by layer, from gradients on some data.

The Fisher matrix of a layer is taken as a Kronecker product of the inputs' second moments, summed over positions,
and of the outputs' squared gradients (Martens & Grosse, "Optimizing neural networks with Kronecker-factored
approximate curvature", 2015; for convolutions Grosse & Martens 2016). Of the second factor only the diagonal is
kept, so that rows of weights stay independent of each other, and of that the mean over a layer's outputs: which of a
thousand classes a few hundred samples happened to touch says nothing about the others. Where a layer has a bias, it
takes up the mean of the error, and only the inputs' variance counts. Layers whose inputs are not seen (never called as
a module, transposed convolutions) have the diagonal of the Fisher matrix alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from edgekit.compress.hooks import ROWS, Weighted, patches, removed
from edgekit.compress.step import Context

_BLOCK = 2304
"""Columns whose moments are taken together: a matrix of 21 MB."""
_DAMPING = 0.01
_TINY = 1e-30
_ROUNDING = 1e-5
"""Of what is left of the moments when the mean was taken from them."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """A part of a layer's weights, as a matrix: the loss grows by ``½ Σ_r e[r]ᵀ moments e[r]`` for errors ``e``
    ``[rows, columns]`` if the bias of each row grows by ``(weight - new weight) · mean``."""

    rows: slice
    columns: slice
    moments: torch.Tensor
    mean: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class Curvature:
    """Of one layer: blocks that cover its weight matrix ``[outputs, rest]``, and the diagonal in that shape."""

    blocks: tuple[Block, ...]
    diagonal: torch.Tensor


def curvature(
    model: nn.Module,
    targets: Mapping[str, Weighted],
    context: Context,
    batches: int,
    *,
    step: str,
) -> dict[str, Curvature]:
    """The curvature of every target's weight from the task's first ``batches`` training batches.

    The model is left as it was, without gradients. Raises ``UsageError`` without a task.
    """
    task = context.needs_task(step)
    model.eval()
    trainable = {p: p.requires_grad for p in model.parameters()}
    watchers = {name: _Watcher(module) for name, module in targets.items()}
    try:
        with removed(watcher.handle for watcher in watchers.values()):
            for parameter in trainable:
                parameter.requires_grad_(False)
            for module in targets.values():
                module.weight.requires_grad_(True)
            for _, batch in zip(range(batches), task.batches(0, context.seed), strict=False):
                task.loss(model, batch).backward()  # type: ignore[no-untyped-call]
                for watcher in watchers.values():
                    watcher.after()
    finally:
        for parameter, before in trainable.items():
            parameter.requires_grad_(before)
            parameter.grad = None
    return {name: watcher.curvature() for name, watcher in watchers.items()}


class _Watcher:
    """Collects one layer's moments and gradients."""

    def __init__(self, module: Weighted) -> None:
        self.module = module
        weight = module.weight
        self.outputs, self.width = weight.shape[0], weight[0].numel()
        self.groups = getattr(module, "groups", 1)
        self.plain = not getattr(module, "transposed", False)
        self.cuts = _cuts(self.width)
        self.moments = [
            [torch.zeros(c.stop - c.start, c.stop - c.start, dtype=torch.float64) for c in self.cuts]
            for _ in range(self.groups if self.plain else 0)
        ]
        self.sums = [[torch.zeros(len(m), dtype=torch.float64) for m in part] for part in self.moments]
        self.seen = 0
        self.gradient = 0.0
        self.squares = torch.zeros(self.outputs, self.width, dtype=torch.float64)
        self.positions, self.calls = 0, 0
        self.handle = module.register_forward_hook(self.look)

    def look(self, module: Weighted, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        del module
        if self.plain and output.requires_grad:
            self._inputs(args[0].detach())
            self.calls += 1
            output.register_hook(self._outputs)  # type: ignore[no-untyped-call]

    def after(self) -> None:
        """Take the gradient of the weight, and forget it."""
        grad = self.module.weight.grad
        if grad is not None:
            self.squares += grad.detach().reshape(self.squares.shape).double().cpu().square()
            self.module.weight.grad = None

    def _inputs(self, x: torch.Tensor) -> None:
        if not isinstance(self.module, nn.Linear):
            rows, each = patches(self.module, x)
        else:
            rows = x.reshape(-1, 1, self.width)
            each = -(-len(rows) // ROWS)
            rows = rows[::each]
        for group in range(self.groups):
            some = rows[:, group].float()
            for moments, sums, cut in zip(self.moments[group], self.sums[group], self.cuts, strict=True):
                part = some[:, cut]
                moments += (part.T @ part).double().cpu() * each
                sums += part.sum(0).double().cpu() * each
        self.seen += len(rows) * each

    def _outputs(self, grad: torch.Tensor) -> None:
        self.gradient += float(grad.detach().double().square().sum())
        self.positions += grad.numel()

    def curvature(self) -> Curvature:
        """Damped, so that what the data never moved is not free to change."""
        if not self.calls:
            return Curvature(blocks=(), diagonal=_damped(self.squares, self.squares.mean()))
        scale = max(self.gradient / max(1, self.positions), _TINY)
        each = self.outputs // self.groups
        blocks, diagonal = [], torch.empty_like(self.squares)
        for group, parts in enumerate(self.moments):
            rows = slice(group * each, (group + 1) * each)
            for cut, part, sums in zip(self.cuts, parts, self.sums[group], strict=True):
                mean = sums / self.seen if self.module.bias is not None else torch.zeros_like(sums)
                moments = scale * (part - self.seen * torch.outer(mean, mean))
                diagonals = moments.diagonal()
                diagonals += _ROUNDING * scale * part.diagonal()
                diagonals.copy_(_damped(diagonals, diagonals.mean()))
                blocks.append(Block(rows=rows, columns=cut, moments=moments, mean=mean))
                diagonal[rows, cut] = moments.diagonal()
        return Curvature(blocks=tuple(blocks), diagonal=diagonal)


def _damped(x: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    return x + _DAMPING * mean.clamp_min(0) + _TINY


def _cuts(width: int) -> list[slice]:
    """Equal runs of at most ``_BLOCK`` columns."""
    count = -(-width // _BLOCK)
    edges = [width * i // count for i in range(count + 1)]
    return [slice(a, b) for a, b in itertools.pairwise(edges)]
