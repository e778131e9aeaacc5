"""Unstructured pruning: single weights, blocks of them, or N of every M, at once or while training goes on.

The gradual schedule is that of Zhu & Gupta, "To prune, or not to prune" (2017): the sparsity rises as
``1 - (1 - t)³``. The iterative one cuts and trains in rounds (Han et al., 2015). Masks are parametrizations
while training runs (what is masked gets no gradient) and are folded into the weights at the end. The global
threshold compares weights of all layers, each divided by its layer's root mean square when ``normalize`` is
set (a cheap form of LAMP, Lee et al. 2021). Criteria are in :mod:`edgekit.compress.saliency`.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from edgekit.compress import saliency
from edgekit.compress.training.train import Training, fit
from edgekit.errors import ConfigError, SourceError

if TYPE_CHECKING:
    import torch

    from edgekit.compress.step import Context

SCOPES = ("global", "layer")
SCHEDULES = ("gradual", "iterative", "one-shot")


@dataclass(frozen=True, kw_only=True)
class Prune:
    """Set the least important weights of linear and convolution layers to zero.

    ``sparsity``: share of zeros in the pruned layers together (``scope="global"``) or in each
    (``"layer"``). ``layers``: sparsities of single layers, ``"fc1=0.97,head*=0.5"``, instead. ``ramp``:
    the share of the training in which the sparsity rises; the rest trains what is left. Without
    training everything is cut at once. ``criterion``: ``magnitude``, ``taylor``, ``snip``, ``movement`` or
    ``random``. ``schedule``: ``gradual``, ``iterative`` (``rounds`` times cut and train) or ``one-shot`` (cut,
    then train). ``block`` > 1: neighbouring inputs are cut together, by their L2 norm. ``pattern``: ``"2:4"``
    keeps 2 of every 4 input channels of each output, whatever ``sparsity`` says; layers whose inputs are no
    multiple of 4 stay dense.
    """

    NAME: ClassVar[str] = "prune"

    sparsity: float = 0.5
    scope: str = "global"
    layers: str = ""
    ramp: float = 0.6
    normalize: bool = False
    criterion: str = "magnitude"
    schedule: str = "gradual"
    rounds: int = 5
    block: int = 1
    pattern: str = ""
    training: Training = field(default_factory=lambda: Training(epochs=0.0))

    def __post_init__(self) -> None:
        if not 0 <= self.sparsity < 1 or not 0 <= self.ramp <= 1:
            raise ConfigError(
                f"prune with sparsity {self.sparsity} and ramp {self.ramp}",
                hint="the sparsity is a share from 0 to below 1, the ramp a share from 0 to 1",
            )
        for name, known in (("scope", SCOPES), ("criterion", saliency.CRITERIA), ("schedule", SCHEDULES)):
            if getattr(self, name) not in known:
                raise ConfigError(
                    f"unknown {name} {getattr(self, name)!r} of prune", hint=f"use {', '.join(known)}"
                )
        if self.rounds < 1 or self.block < 1:
            raise ConfigError(
                f"prune with {self.rounds} rounds and blocks of {self.block}", hint="both are 1 or more"
            )
        parse_layers(self.layers)
        parse_pattern(self.pattern)

    def apply(self, model: torch.nn.Module, context: Context) -> torch.nn.Module:
        """Prune in place and return ``model``. Raises ``SourceError`` if nothing can be pruned."""
        from torch.nn.utils import parametrize

        targets = prunable(model)
        if not targets:
            raise SourceError("the model has no linear or convolution layer", hint="leave this step out")
        wanted = self._wanted(tuple(targets))
        masks = {name: saliency.mask_module(module, self.criterion) for name, module in targets.items()}
        for name, module in targets.items():
            parametrize.register_parametrization(module, "weight", masks[name])
        try:
            scores = saliency.initial(model, targets, self.criterion, context)
            self._train(
                model, context, _Masks(step=self, targets=targets, masks=masks, wanted=wanted, scores=scores)
            )
        finally:
            for module in targets.values():
                parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
        context.record({f"{name}.mask": mask.get_buffer("mask").bool() for name, mask in masks.items()})
        return model

    def _train(self, model: torch.nn.Module, context: Context, masks: _Masks) -> None:
        """Cut and train as the schedule says; everything is cut at the end."""
        masks.update(1.0 if not self.training.epochs else 0.0)
        if not self.training.epochs:
            return
        task = context.needs_task(self.NAME)
        if self.schedule == "gradual":
            fit(model, task, self.training, seed=context.seed, each_step=_rising(masks, self.ramp))
            masks.update(1.0)
            return
        rounds = self.rounds if self.schedule == "iterative" else 1
        part = dataclasses.replace(self.training, epochs=self.training.epochs / rounds)
        for number in range(1, rounds + 1):
            masks.update(1 - (1 - number / rounds) ** 3)
            fit(model, task, part, seed=context.seed + number - 1)

    def _wanted(self, names: tuple[str, ...]) -> dict[str, float]:
        """Sparsity by layer where one is given or the scope is the layer."""
        rules = parse_layers(self.layers)
        for pattern, _ in rules:
            if not fnmatch.filter(names, pattern):
                raise ConfigError(
                    f"no layer is called {pattern!r}", hint=f"layers that can be pruned: {', '.join(names)}"
                )
        out = {}
        for name in names:
            match = [value for pattern, value in rules if fnmatch.fnmatchcase(name, pattern)]
            if match:
                out[name] = match[0]
            elif self.scope == "layer":
                out[name] = self.sparsity
        return out


@dataclass(frozen=True, kw_only=True)
class _Masks:
    """The masks of all layers. ``scores`` are those from before training, where the criterion has any."""

    step: Prune
    targets: dict[str, torch.nn.Module]
    masks: dict[str, torch.nn.Module]
    wanted: dict[str, float]
    scores: dict[str, torch.Tensor]

    def update(self, share: float) -> None:
        """Set all masks to ``share`` of the final sparsity."""
        import torch

        scores = {name: self._score(name) for name in self.targets}
        if self.step.pattern:
            self._regular(scores, share)
            return
        free = [scores[name].flatten() for name in self.targets if name not in self.wanted]
        common = _threshold(torch.cat(free), self.step.sparsity * share) if free else None
        for name in self.targets:
            limit = common
            if name in self.wanted:
                limit = _threshold(scores[name].flatten(), self.wanted[name] * share)
            assert limit is not None
            self.masks[name].get_buffer("mask").copy_(scores[name] > limit)

    def _regular(self, scores: dict[str, torch.Tensor], share: float) -> None:
        keep, of = parse_pattern(self.step.pattern)
        for name, score in scores.items() if share > 0 else ():
            mask = saliency.n_of_m(score, keep, of)
            if mask is not None:
                self.masks[name].get_buffer("mask").copy_(mask)

    def _score(self, name: str) -> torch.Tensor:
        weight = self.targets[name].get_parameter("parametrizations.weight.original").detach()
        score = weight.abs()
        if self.step.criterion != "magnitude":
            score = self.scores[name].to(weight.device)
            running = dict(self.masks[name].named_buffers()).get("score")
            if running is not None and bool(running.any()):
                score = running
        if self.step.block > 1:
            score = saliency.blocks(score, self.step.block)
        if not self.step.normalize:
            return score
        return score / score.square().mean().sqrt().clamp_min(1e-12)


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


def parse_pattern(text: str) -> tuple[int, int]:
    """``"2:4"`` to (2, 4); empty to (1, 1). Raises ``ConfigError``."""
    keep, colon, of = (text or "1:1").partition(":")
    if not (colon and keep.isdigit() and of.isdigit() and 0 < int(keep) <= int(of) <= 64):
        raise ConfigError(f"{text!r} is no pattern", hint="write KEEP:OF, for example 2:4")
    return int(keep), int(of)


def parse_layers(text: str) -> list[tuple[str, float]]:
    """``"fc1=0.97,head*=0.5"`` to pairs. Raises ``ConfigError``."""
    out = []
    for item in filter(None, text.split(",")):
        name, _, value = item.partition("=")
        try:
            share = float(value)
        except ValueError:
            share = -1.0
        if not name or not 0 <= share < 1:
            raise ConfigError(
                f"{item!r} gives no layer a sparsity", hint="write NAME=SHARE, for example fc1=0.9"
            )
        out.append((name, share))
    return out


def prunable(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """Linear and convolution layers by name, but for those whose weights are integers already."""
    import torch

    kinds = (torch.nn.Linear, torch.nn.modules.conv._ConvNd)
    return {n: m for n, m in model.named_modules() if isinstance(m, kinds) and "weight" in m._parameters}


def _threshold(score: torch.Tensor, share: float) -> torch.Tensor:
    """The value that ``share`` of the scores do not exceed."""
    count = int(share * len(score))
    return score.kthvalue(count).values if count else score.new_tensor(-1.0)
