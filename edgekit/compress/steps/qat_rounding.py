"""Integers without training: each weight is rounded up or down such that the layer's outputs stay near.

The objective is that of AdaRound (Nagel et al., "Up or down? Adaptive rounding for post-training quantization", ICML
2020): the squared error of a layer's outputs on some data, a quadratic form of the weights' errors with the inputs'
second moments. It is made smaller weight by weight, each to the integer that is best with the others as they are,
until none moves (cyclic coordinate descent, as in Behdin et al., "QuantEase", arXiv 2309.01885); the scale of each
row is then that of least squares, and both take turns. A bias takes up the mean of what is left.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from edgekit.compress import constraints
from edgekit.compress.hooks import Weighted
from edgekit.compress.input_moments import Moments, observed
from edgekit.compress.step import Context
from edgekit.compress.steps.qat_layers import LearnedWeight, Levels

_SWEEPS = 20
_TURNS = 3
_DAMPING = 0.01
"""Of the mean of the moments' diagonal, as in GPTQ: what the data never moved is not free to change."""
_TINY = 1e-30


def choose(model: nn.Module, layers: Iterable[str], context: Context, batches: int, *, step: str) -> None:
    """Give the layers, which have quantizers, weights that are integers times their scale already; in place.

    Layers of shared values or with a scale a column, transposed convolutions and layers that are never called keep the
    nearest integers. Raises ``UsageError`` without a task.
    """
    able: dict[str, Weighted] = {}
    for name in layers:
        module = model.get_submodule(name)
        if isinstance(module, Weighted) and _quantizer(module).axis in (0, None):
            able[name] = module
    for name, moments in observed(model, able, context, batches, step=step):
        _round(able[name], moments)


def _quantizer(module: nn.Module) -> LearnedWeight:
    quantizer = module.get_submodule("parametrizations.weight.0")
    assert isinstance(quantizer, LearnedWeight)
    return quantizer


@torch.no_grad()
def _round(module: Weighted, read: Moments) -> None:
    quantizer = _quantizer(module)
    original = module.get_parameter("parametrizations.weight.original")
    wanted = original.detach().reshape(len(original), -1).double().cpu()
    levels = Levels.of_weight(quantizer.bits)
    scale = quantizer.step().detach().double().cpu().reshape(-1, 1).expand(len(wanted), 1).clone()
    gone = constraints.zeros(module)
    zeros = (original == 0) if gone is None else gone.to(original.device) | (original == 0)
    zeros = zeros.reshape(wanted.shape).cpu()
    values = (wanted / scale).round().clamp(levels.low, levels.high).masked_fill(zeros, 0)
    each = len(wanted) // read.groups
    hessians, means = zip(*(_centred(m, read) for m in read.moments), strict=True)
    for _ in range(_TURNS):
        for group, hessian in enumerate(hessians):
            rows = slice(group * each, (group + 1) * each)
            _descend(wanted[rows], values[rows], scale[rows], hessian, levels, zeros[rows])
        _rescale(wanted, values, scale, hessians, whole=quantizer.axis is None)
    for group, hessian in enumerate(hessians):
        rows = slice(group * each, (group + 1) * each)
        _descend(wanted[rows], values[rows], scale[rows], hessian, levels, zeros[rows])
        if read.bias and module.bias is not None:
            left = (wanted[rows] - values[rows] * scale[rows]) @ means[group]
            module.bias[rows] += left.to(module.bias)
    quantizer.step.start.copy_(
        (scale[:1] if quantizer.axis is None else scale).reshape(quantizer.step.start.shape)
    )
    original.copy_((values * scale).reshape(original.shape))


def _centred(moments: torch.Tensor, read: Moments) -> tuple[torch.Tensor, torch.Tensor]:
    """The inputs' second moments, without their mean where a bias takes it up, damped; and the mean."""
    hessian = moments[: read.width, : read.width] / read.seen
    mean = torch.zeros(read.width, dtype=torch.float64)
    if read.bias:
        mean = moments[: read.width, -1] / read.seen
        hessian = hessian - torch.outer(mean, mean)
    hessian = hessian.clone()
    diagonal = hessian.diagonal()
    diagonal += _DAMPING * diagonal.mean().clamp_min(0) + _TINY
    return hessian, mean


def _descend(
    wanted: torch.Tensor,
    values: torch.Tensor,
    scale: torch.Tensor,
    hessian: torch.Tensor,
    levels: Levels,
    zeros: torch.Tensor,
) -> None:
    """Move ``values``, in place, to where no single one can be better."""
    slope = (wanted - values * scale) @ hessian
    step = scale[:, 0]
    for _ in range(_SWEEPS):
        moved = False
        for column in range(wanted.shape[1]):
            best = values[:, column] + slope[:, column] / (hessian[column, column] * step)
            best = best.round_().clamp_(levels.low, levels.high).masked_fill_(zeros[:, column], 0)
            change = (best - values[:, column]) * step
            if bool(change.any()):
                moved = True
                slope -= torch.outer(change, hessian[column])
                values[:, column] = best
        if not moved:
            return


def _rescale(
    wanted: torch.Tensor,
    values: torch.Tensor,
    scale: torch.Tensor,
    hessians: Iterable[torch.Tensor],
    *,
    whole: bool,
) -> None:
    """The scales of least squares for integers that stay, in place; ``whole``: one for all rows."""
    parts = list(hessians)
    each = len(wanted) // len(parts)
    above, below = (
        torch.zeros(len(wanted), dtype=torch.float64),
        torch.zeros(len(wanted), dtype=torch.float64),
    )
    for group, hessian in enumerate(parts):
        rows = slice(group * each, (group + 1) * each)
        seen = values[rows] @ hessian
        above[rows], below[rows] = (seen * wanted[rows]).sum(1), (seen * values[rows]).sum(1)
    if whole:
        above, below = above.sum().expand(len(above)), below.sum().expand(len(below))
    better = (above > 0) & (below > 0)
    scale[better, 0] = above[better] / below[better]
