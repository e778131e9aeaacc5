"""The masks of ``prune``: parametrizations while training runs, folded into the weights at the end.

What is masked gets no gradient.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from edgekit.compress import constraints, normalization
from edgekit.compress.constraints import Zeros
from edgekit.compress.hooks import Weighted
from edgekit.compress.step import Context, Tensors
from edgekit.compress.steps import patterns, prune_refit, saliency
from edgekit.compress.steps.prune import Prune, parse_layers, parse_pattern
from edgekit.compress.training.teacher import taught
from edgekit.compress.training.train import fit

_MASK = ".mask"
_SHORT = 1.0
"""Epochs up to which it was measured that a ramp costs more than it gives (docs/compression.md)."""


def apply(step: Prune, model: nn.Module, context: Context) -> nn.Module:
    """Prune in place and return ``model``; the masks are recorded. Raises ``SourceError`` if nothing can be pruned."""
    targets = constraints.float_layers(model, step.NAME)
    own = _own_sparsities(step, tuple(targets))
    masks = {name: saliency.Mask(module, step.criterion) for name, module in targets.items()}
    dense = {name: module.weight.detach().clone() for name, module in targets.items()}
    for name, module in targets.items():
        parametrize.register_parametrization(module, "weight", masks[name])
    try:
        # Before anything is cut: snip's scores are of the whole network.
        scores = saliency.initial(model, targets, step, context)
        _train(model, context, _Masks(step=step, targets=targets, masks=masks, own=own, scores=scores))
    finally:
        for module in targets.values():
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
    kept = {name: mask.mask.bool() for name, mask in masks.items()}
    if step.refit and not step.training.epochs and context.task is not None:
        _refit(step, model, targets, dense, kept, context)
    context.record({f"{name}{_MASK}": mask for name, mask in kept.items()})
    for name, module in targets.items():
        constraints.lay(module, _zeros(step, kept[name]))
    return model


def _refit(
    step: Prune,
    model: nn.Module,
    targets: Mapping[str, Weighted],
    dense: Tensors,
    kept: Tensors,
    context: Context,
) -> None:
    """Let the weights that stay, and the batch norms behind them, make up for those that go."""
    for name, module in targets.items():
        module.weight.data.copy_(dense[name])
    with normalization.preserved(model, context, step.batches, step=step.NAME, wanted=True) as settle:
        found = prune_refit.compensated(model, targets, kept, context, step.batches, step=step.NAME)
        for name, module in targets.items():
            module.weight.data.mul_(kept[name])
            if name in found:
                prune_refit.install(module, found[name])
        settle(None)


def restore(step: Prune, model: nn.Module, tensors: Tensors) -> nn.Module:
    """The masks that were recorded, for what trains later."""
    for name, mask in tensors.items():
        constraints.lay_on(model, name.removesuffix(_MASK), _zeros(step, mask))
    return model


def rehearse(step: Prune, model: nn.Module, context: Context) -> nn.Module:
    """Masks that leave everything, for what later steps would refuse."""
    del context
    for module in constraints.float_layers(model, step.NAME).values():
        constraints.lay(module, _zeros(step, torch.ones_like(module.weight, dtype=torch.bool)))
    return model


def _zeros(step: Prune, mask: torch.Tensor) -> Zeros:
    keep, of = parse_pattern(step.pattern)
    regular = bool(step.pattern) and saliency.has_runs(mask, of)
    return Zeros(zeros=~mask.cpu(), pattern=(keep, of) if regular else (1, 1))


def _own_sparsities(step: Prune, names: tuple[str, ...]) -> dict[str, float]:
    """Sparsity by layer where one is given or the scope is the layer."""
    rules = parse_layers(step.layers)
    patterns.check((pattern for pattern, _ in rules), names, "pruned")
    if step.scope == "layer":
        rules.append(("*", step.sparsity))
    return {name: share for name in names if (share := patterns.first(rules, name, -1.0)) >= 0}


def _train(model: nn.Module, context: Context, masks: _Masks) -> None:
    """Cut and train as the schedule says; everything is cut at the end."""
    step = masks.step
    masks.update(1.0 if not step.training.epochs else 0.0)
    if not step.training.epochs:
        return
    task = taught(step.NAME, step.training, context)
    schedule = scheduled(step, model)
    if schedule == "gradual":
        fit(model, task, step.training, seed=context.seed, each_step=_rising(masks, step.ramp))
        masks.update(1.0)
        return
    rounds = step.rounds if schedule == "iterative" else 1
    part = dataclasses.replace(step.training, epochs=step.training.epochs / rounds)
    for number in range(1, rounds + 1):
        masks.update(1 - (1 - number / rounds) ** 3)
        fit(model, task, part, seed=context.seed + number - 1)


def scheduled(step: Prune, model: nn.Module) -> str:
    """The schedule of ``step``, with what ``auto`` comes to: in a short training a network of batch norms is cut
    before it, as it does not heal behind a ramp; others, and criteria that follow the training, are cut meanwhile."""
    if step.schedule != "auto":
        return step.schedule
    short = step.training.epochs <= _SHORT and step.criterion != "movement"
    return "one-shot" if short and any(isinstance(m, _BatchNorm) for m in model.modules()) else "gradual"


@dataclass(frozen=True, kw_only=True)
class _Masks:
    """The masks of all layers. ``own`` are the sparsities of layers that have one of their own; ``scores`` those from
    before training, where the criterion has any."""

    step: Prune
    targets: Mapping[str, Weighted]
    masks: Mapping[str, saliency.Mask]
    own: Mapping[str, float]
    scores: Mapping[str, torch.Tensor]

    def update(self, share: float) -> None:
        """Set all masks to ``share`` of the final sparsity."""
        scores = {name: self._score(name) for name in self.targets}
        if self.step.pattern:
            self._regular(scores, share)
            return
        free = {name: score for name, score in scores.items() if name not in self.own}
        self._cut(free, self.step.sparsity * share)
        for name, sparsity in self.own.items():
            self._cut({name: scores[name]}, sparsity * share)

    def _cut(self, scores: Mapping[str, torch.Tensor], share: float) -> None:
        """Mask the ``share`` of the lowest scores in these layers together."""
        if not scores:
            return
        flat = torch.cat([score.flatten() for score in scores.values()])
        limit = _threshold(flat, share)
        kept = flat > limit
        shared = any(constraints.values(self.targets[name]) is not None for name in scores)
        if shared or (torch.isfinite(limit) and limit > 0):
            # Shared values have equal scores: of those at the limit the first ones stay, not none.
            spare = len(flat) - int(share * len(flat)) - int(kept.sum())
            kept[torch.nonzero(flat == limit)[:spare]] = True
        sizes = [score.numel() for score in scores.values()]
        for (name, score), mask in zip(scores.items(), torch.split(kept, sizes), strict=True):
            self.masks[name].mask.copy_(mask.view(score.shape))

    def _regular(self, scores: Mapping[str, torch.Tensor], share: float) -> None:
        keep, of = parse_pattern(self.step.pattern)
        for name, score in scores.items() if share > 0 else ():
            mask = saliency.n_of_m(score, keep, of)
            if mask is not None:
                self.masks[name].mask.copy_(mask)

    def _score(self, name: str) -> torch.Tensor:
        weight = saliency.original(self.targets[name]).detach()
        score = weight.abs()
        if self.step.criterion == "movement":
            score = self.masks[name].movement(weight)
        elif self.step.criterion != "magnitude":
            running = self.masks[name].score
            # Until training has collected something, the scores from before it count.
            started = running is not None and bool(running.any())
            score = running if running is not None and started else self.scores[name].to(weight.device)
        if self.step.block > 1:
            score = saliency.blocks(score.clamp_min(0), self.step.block)
        if self.step.normalize:
            score = score / score.square().mean().sqrt().clamp_min(1e-12)
        gone = constraints.zeros(self.targets[name])
        return score if gone is None else score.masked_fill(gone.to(score.device), -math.inf)


def _rising(masks: _Masks, ramp: float) -> Callable[[float], None]:
    """Called with the progress of the training: raises the sparsity in steps of a hundredth of the ramp."""
    last = -1.0

    def each_step(progress: float) -> None:
        nonlocal last
        risen = min(1.0, progress / ramp) if ramp else 1.0
        if risen - last >= 0.01 or (risen == 1.0 and last < 1.0):
            last = risen
            masks.update(1 - (1 - risen) ** 3)

    return each_step


def _threshold(score: torch.Tensor, share: float) -> torch.Tensor:
    """The value that ``share`` of the scores do not exceed."""
    count = int(share * len(score))
    return score.kthvalue(count).values if count else score.new_tensor(-1.0)
