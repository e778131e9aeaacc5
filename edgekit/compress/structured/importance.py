"""How much each unit matters: one number a label, from all parameters that would go with it.

- ``l1``, ``l2``: norm of the parameters (Li et al., "Pruning Filters for Efficient ConvNets", 2017, over all
  coupled layers as in Fang et al., "DepGraph", 2023).
- ``bn``: the scale of normalisation layers (Liu et al., "Network Slimming", 2017); ``l2`` where there is none.
- ``taylor``: the squared change of the loss to first order, ``(gradient · weight)²``, summed (Molchanov et al.,
  "Importance Estimation for Neural Network Pruning", 2019). Needs a task.
- ``random``: the floor that every other criterion has to beat.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from edgekit.compress.step import Context
from edgekit.compress.structured.groups import Analysis

_BATCHES = 16

Scores = NDArray[np.float64]


def score(model: torch.nn.Module, analysis: Analysis, criterion: str, context: Context) -> Scores:
    """Importance by label; only comparable within a group."""
    if criterion == "random":
        random = np.random.default_rng(context.seed)
        return random.random(analysis.labels)
    parameters = {n: p.detach() for n, p in model.named_parameters()}
    if criterion == "taylor":
        return _sum(analysis, taylor(model, context))
    if criterion == "l1":
        return _sum(analysis, {n: p.abs() for n, p in parameters.items()})
    squares = np.sqrt(_sum(analysis, {n: p.square() for n, p in parameters.items()}))
    if criterion == "l2":
        return squares
    scales = _sum(analysis, {n: p.abs() for n, p in parameters.items() if n in _scales(model)})
    for group in analysis.groups:
        if not scales[group.units].any():
            scales[group.units] = squares[group.units]
    return scales


def taylor(model: torch.nn.Module, context: Context) -> dict[str, torch.Tensor]:
    """``Σ (g · w)²`` over the first training batches, entry by entry. Raises ``UsageError`` without a task."""
    task = context.needs_task("the criterion taylor")
    model.eval()
    parameters = {n: p for n, p in model.named_parameters() if p.is_floating_point()}
    total = {n: torch.zeros_like(p) for n, p in parameters.items()}
    for _, batch in zip(range(_BATCHES), task.batches(0, context.seed), strict=False):
        loss = task.loss(model, batch)
        grads = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        for (name, p), grad in zip(parameters.items(), grads, strict=True):
            if grad is not None:
                total[name] += (grad * p.detach()).square()
    return total


def _sum(analysis: Analysis, values: dict[str, torch.Tensor]) -> Scores:
    out = np.zeros(analysis.labels)
    for (name, dim), ids in analysis.places.items():
        value = values.get(name)
        if value is not None and value.is_floating_point():
            others = [d for d in range(value.ndim) if d != dim]
            along = value.double().sum(others) if others else value.double()
            np.add.at(out, ids, along.cpu().numpy())
    return out


def _scales(model: torch.nn.Module) -> set[str]:
    nn = torch.nn
    kinds = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
    return {f"{name}.weight".lstrip(".") for name, m in model.named_modules() if isinstance(m, kinds)}
