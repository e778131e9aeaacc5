"""Losses and fake quantization that the exporter lacks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from edgekit.graph.export.decompositions.table import decomposes

aten = torch.ops.aten

_MEAN, _SUM = 1, 2


def _soft(node: Node) -> bool:
    """Whether the target is shares of classes, or labels are smoothed."""
    target = node.args[1].meta["val"]  # type: ignore[union-attr]
    smoothing = node.args[5] if len(node.args) > 5 else node.kwargs.get("label_smoothing")
    return bool(target.is_floating_point() or smoothing)


@decomposes(aten.cross_entropy_loss.default, where=_soft)
def cross_entropy(
    self: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: int = _MEAN,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Shares of classes times logarithms; a label is all of one share."""
    axis = 1 if self.dim() > 1 else 0
    classes = self.shape[axis]
    logarithms = self.log_softmax(axis)
    shape = [classes if i == axis else 1 for i in range(self.dim())]
    each = torch.ones_like(self) if weight is None else weight.reshape(shape).expand(self.shape)
    if target.is_floating_point():
        shares = target * (1 - label_smoothing) + label_smoothing / classes
        losses = -(logarithms * shares * each).sum(axis)
        return _reduced(losses, reduction, torch.ones_like(losses))
    kept = target != ignore_index
    label = torch.where(kept, target, 0).unsqueeze(axis)
    hard = -(logarithms * each).gather(axis, label).squeeze(axis)
    even = -(logarithms * each).sum(axis) / classes
    losses = torch.where(kept, hard * (1 - label_smoothing) + even * label_smoothing, 0.0)
    return _reduced(losses, reduction, torch.where(kept, each.gather(axis, label).squeeze(axis), 0.0))


def _reduced(losses: Tensor, reduction: int, weights: Tensor) -> Tensor:
    if reduction == _MEAN:
        return losses.sum() / weights.sum()
    return losses.sum() if reduction == _SUM else losses


@decomposes(aten.fake_quantize_per_channel_affine.default)
def fake_quantize(
    self: Tensor, scale: Tensor, zero_point: Tensor, axis: int, quant_min: int, quant_max: int
) -> Tensor:
    """Rounded to the grid of each channel, and back."""
    shape = [-1 if i == axis else 1 for i in range(self.dim())]
    step, zero = scale.reshape(shape), zero_point.reshape(shape).to(self.dtype)
    return ((self / step).round() + zero).clamp(quant_min, quant_max).sub(zero) * step


def _rounded(
    self: Tensor, on: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int, axis: int
) -> tuple[Tensor, Tensor]:
    """``self`` on its grid and whether it is inside of it, where the rounding is switched on."""
    shape = [-1 if i == axis else 1 for i in range(self.dim())]
    step, zero = scale.reshape(shape), zero_point.reshape(shape).to(self.dtype)
    whole = (self / step).round() + zero
    inside = (whole >= low) & (whole <= high)
    rounded = whole.clamp(low, high).sub(zero) * step
    return torch.where(on == 1, rounded, self), torch.where(on == 1, inside, torch.ones_like(inside))


@decomposes(aten.fused_moving_avg_obs_fake_quant.default)
def fused(*args: Any, **kwargs: Any) -> Tensor:
    """The first result of :func:`observed`."""
    result: Tensor = observed(*args, **kwargs)[0]
    return result


@decomposes(aten._fused_moving_avg_obs_fq_helper_functional.default)
def observed(
    self: Tensor,
    observer_on: Tensor,
    fake_quant_on: Tensor,
    running_min: Tensor,
    running_max: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    averaging_const: float,
    quant_min: int,
    quant_max: int,
    ch_axis: int,
    per_row_fake_quant: bool = False,
    symmetric_quant: bool = False,
) -> Any:
    """The rounding of torch.ao's fused observers, which observe nothing in a model that is loaded."""
    del observer_on, averaging_const, symmetric_quant
    axis = ch_axis if per_row_fake_quant else -1
    result, mask = _rounded(self, fake_quant_on, scale, zero_point, quant_min, quant_max, axis)
    return result, mask, running_min, running_max, scale, zero_point
