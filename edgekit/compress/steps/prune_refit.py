"""Pruning without training: the weights that stay make up for those that go, on some of the task's data.

With the inputs' second moments ``H`` of a layer, the weights that stay are those that come nearest to its outputs: the
update of the optimal brain surgeon (Hassibi & Stork 1993) for all weights of a row that go together, which SparseGPT
(Frantar & Alistarh, arXiv 2301.00774) approximates column by column; the rows are solved exactly here, by conjugate
gradients. A bias takes up the mean of the error. ``wanda`` (Sun et al., "A simple and effective pruning approach for
large language models", arXiv 2306.11695) scores ``|w| ‖x‖`` within each row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from edgekit.compress.hooks import Weighted, removed
from edgekit.compress.input_moments import Moments, observed, readable
from edgekit.compress.least_squares import solved
from edgekit.compress.step import Context, Tensors

_DAMPING = 1e-3


@dataclass(frozen=True, kw_only=True)
class Compensated:
    """A layer's weight and bias after the cut."""

    weight: torch.Tensor
    bias: torch.Tensor | None


def compensated(
    model: nn.Module,
    targets: Mapping[str, Weighted],
    masks: Tensors,
    context: Context,
    batches: int,
    *,
    step: str,
) -> dict[str, Compensated]:
    """What the weights that ``masks`` (true where they stay) leave should be, from the inputs that ``model``, which
    is not cut yet, gives each layer. Layers of shared values, transposed convolutions and layers that are never
    called are left out. Raises ``UsageError`` without a task."""
    cut = {n: m for n, m in targets.items() if not bool(masks[n].all())}
    found: dict[str, Compensated] = {}
    for name, moments in observed(model, cut, context, batches, step=step):
        fitted = _fitted(moments, masks[name])
        if fitted is not None:
            found[name] = fitted
    return found


def install(module: Weighted, found: Compensated) -> None:
    """Give a layer what was found for it."""
    module.weight.data.copy_(found.weight)
    if module.bias is not None and found.bias is not None:
        module.bias.data.copy_(found.bias)


def column_norms(
    model: nn.Module, targets: Mapping[str, Weighted], context: Context, batches: int, *, step: str
) -> dict[str, torch.Tensor]:
    """The root mean square of what each weight is multiplied with, in the weights' shapes; ones where that is not
    seen."""
    watchers = {n: Moments(m, squares_only=True) for n, m in targets.items() if readable(m)}
    with removed(w.handle for w in watchers.values()):
        context.observe(model, batches, step=step)
    norms = {name: torch.ones_like(m.weight) for name, m in targets.items()}
    return norms | {name: w.norms() for name, w in watchers.items() if w.seen}


def _fitted(read: Moments, mask: torch.Tensor) -> Compensated | None:
    """The weights with what goes at zero; none if the inputs say nothing."""
    weight = read.module.weight.detach()
    dense = weight.reshape(len(weight), -1).double().cpu()
    free = mask.reshape(dense.shape).double().cpu()
    bias = read.module.bias
    if read.bias and bias is not None:
        dense = torch.cat([dense, bias.detach().double().cpu()[:, None]], 1)
        free = torch.cat([free, torch.ones_like(free[:, :1])], 1)
    each = len(dense) // read.groups
    new = dense * free
    for group, moments in enumerate(read.moments):
        rows = slice(group * each, (group + 1) * each)
        missing = (dense[rows] - new[rows]) @ moments
        damped = moments.clone()
        diagonal = damped.diagonal()
        diagonal += _DAMPING * diagonal.mean() + torch.finfo(torch.float64).tiny
        new[rows] += solved(damped, missing, free[rows])
    if not bool(torch.isfinite(new).all()):
        return None
    return Compensated(
        weight=new[:, : read.width].reshape(weight.shape).to(weight),
        bias=new[:, -1].to(weight) if read.bias else None,
    )
