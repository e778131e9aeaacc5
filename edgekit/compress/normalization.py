"""Batch norms after a cut that no training follows: their statistics move as far as the cut moved what they read.

A layer that lost weights or inputs gives its batch norm another mean and another spread, and what stands behind was
trained on the old ones. So each batch norm's mean and variance are set such that what it gives has the mean and the
spread, channel by channel, that it had before the cut on the same batches (Jordan et al., "REPAIR: REnormalizing
Permuted Activations for Interpolation Repair", arXiv 2211.08403). Setting them to the statistics of a few batches, as
is often done ("adaptive batch normalization", Li et al., EagleEye, 2020), also undoes what training knew of them: of
a ResNet-20 that is not cut at all it takes points. Whether it helps is asked: the task's loss on the batches decides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgekit.compress.hooks import removed
from edgekit.compress.step import Context

_Kept = Callable[[str], torch.Tensor | None]


@dataclass
class _Moments:
    """Of what one batch norm reads, call by call: mean and variance of each channel."""

    means: list[torch.Tensor] = field(default_factory=list)
    variances: list[torch.Tensor] = field(default_factory=list)

    def add(self, x: torch.Tensor) -> None:
        axes = [axis for axis in range(x.dim()) if axis != 1]
        x = x.detach().float()
        self.means.append(x.mean(axes))
        self.variances.append(x.var(axes, correction=0))

    def whole(self, calls: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and variance over the first ``calls`` together."""
        means, variances = torch.stack(self.means[:calls]), torch.stack(self.variances[:calls])
        return means.mean(0), variances.mean(0) + means.var(0, correction=0)


Seen = Mapping[str, _Moments]


@contextmanager
def preserved(
    model: nn.Module, context: Context, batches: int, *, step: str, wanted: bool
) -> Iterator[Callable[[_Kept | None], None]]:
    """Look at ``model`` before a cut; call what is given after it, with a function that says which channels of a batch
    norm stayed (``None``: all). Does nothing unless ``wanted``, and without a task or batch norms with statistics."""
    active = wanted and context.task is not None and bool(_norms(model))
    seen = _seen(model, context, batches, step) if active else {}

    def after(kept: _Kept | None = None) -> None:
        if seen:
            _restore(model, seen, context, batches, step, kept or (lambda _: None))

    yield after


def _norms(model: nn.Module) -> dict[str, _BatchNorm]:
    return {n: m for n, m in model.named_modules() if isinstance(m, _BatchNorm) and m.running_var is not None}


def _seen(model: nn.Module, context: Context, batches: int, step: str) -> Seen:
    seen: dict[str, _Moments] = {name: _Moments() for name in _norms(model)}

    def look(name: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
        return lambda _, args: seen[name].add(args[0])

    hooks = [norm.register_forward_pre_hook(look(name)) for name, norm in _norms(model).items()]
    with removed(hooks):
        context.observe(model, batches, step=step)
    return seen


def _restore(model: nn.Module, seen: Seen, context: Context, batches: int, step: str, kept: _Kept) -> None:
    """Move the statistics while the batches pass, so that what stands behind reads what it will read; keep them if the
    loss is lower."""
    norms = {name: norm for name, norm in _norms(model).items() if name in seen}
    before = {name: (_mean(norm).clone(), _variance(norm).clone()) for name, norm in norms.items()}
    now: dict[str, _Moments] = {name: _Moments() for name in norms}

    def move(name: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
        picked = kept(name)

        def hook(_: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            call = len(now[name].means)
            now[name].add(args[0])
            if call < len(seen[name].means):
                was = seen[name].means[call], seen[name].variances[call]
                _set(norms[name], before[name], was, (now[name].means[-1], now[name].variances[-1]), picked)

        return hook

    old = _loss(model, context, batches)
    with removed([norm.register_forward_pre_hook(move(name)) for name, norm in norms.items()]):
        context.observe(model, batches, step=step)
    for name, norm in norms.items():
        calls = min(len(now[name].means), len(seen[name].means))
        if calls:
            _set(norm, before[name], seen[name].whole(calls), now[name].whole(calls), kept(name))
    new = _loss(model, context, batches)
    if not new < old:
        for name, norm in norms.items():
            _mean(norm).copy_(before[name][0])
            _variance(norm).copy_(before[name][1])


def _set(
    norm: _BatchNorm,
    before: tuple[torch.Tensor, torch.Tensor],
    was: tuple[torch.Tensor, torch.Tensor],
    now: tuple[torch.Tensor, torch.Tensor],
    picked: torch.Tensor | None,
) -> None:
    """``was`` is what the norm read when it had the statistics ``before`` (of the channels that stayed)."""
    if picked is not None:
        was = was[0][picked.to(was[0].device)], was[1][picked.to(was[1].device)]
    ratio = ((now[1] + norm.eps) / (was[1] + norm.eps)).sqrt()
    _mean(norm).copy_(now[0] + (before[0] - was[0]) * ratio)
    _variance(norm).copy_(((before[1] + norm.eps) * ratio.square() - norm.eps).clamp_min(0))


def _mean(norm: _BatchNorm) -> torch.Tensor:
    assert norm.running_mean is not None
    return norm.running_mean


def _variance(norm: _BatchNorm) -> torch.Tensor:
    assert norm.running_var is not None
    return norm.running_var


def _loss(model: nn.Module, context: Context, batches: int) -> float:
    """The task's mean loss on the batches; infinite where it is no number."""
    task = context.task
    assert task is not None
    model.eval()
    with torch.no_grad():
        pairs = zip(range(batches), task.batches(0, context.seed), strict=False)
        losses = [float(task.loss(model, batch)) for _, batch in pairs]
    mean = math.fsum(losses) / max(1, len(losses))
    return mean if math.isfinite(mean) else math.inf
