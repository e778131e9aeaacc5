"""Unstructured pruning by magnitude, at once or gradually while training goes on.

The schedule is that of Zhu & Gupta, "To prune, or not to prune" (2017): the sparsity rises as
``1 - (1 - t)³``. Masks are parametrizations while training runs (what is masked gets no gradient) and
are folded into the weights at the end. The global threshold compares weights of all layers, each
divided by its layer's root mean square when ``normalize`` is set (a cheap form of LAMP, Lee et al. 2021).
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from edgekit.compress.train import Training, fit
from edgekit.errors import ConfigError, SourceError

if TYPE_CHECKING:
    import torch

    from edgekit.compress.step import Context

SCOPES = ("global", "layer")


@dataclass(frozen=True, kw_only=True)
class Prune:
    """Set the smallest weights of linear and convolution layers to zero.

    ``sparsity``: share of zeros in the pruned layers together (``scope="global"``) or in each
    (``"layer"``). ``layers``: sparsities of single layers, ``"fc1=0.97,head*=0.5"``, instead. ``ramp``:
    the share of the training in which the sparsity rises; the rest trains what is left. Without
    training everything is cut at once.
    """

    NAME: ClassVar[str] = "prune"

    sparsity: float = 0.5
    scope: str = "global"
    layers: str = ""
    ramp: float = 0.6
    normalize: bool = False
    training: Training = field(default_factory=lambda: Training(epochs=0.0))

    def __post_init__(self) -> None:
        if not 0 <= self.sparsity < 1 or not 0 <= self.ramp <= 1:
            raise ConfigError(
                f"prune with sparsity {self.sparsity} and ramp {self.ramp}",
                hint="the sparsity is a share from 0 to below 1, the ramp a share from 0 to 1",
            )
        if self.scope not in SCOPES:
            raise ConfigError(f"unknown scope {self.scope!r} of prune", hint=f"use {' or '.join(SCOPES)}")
        parse_layers(self.layers)

    def apply(self, model: torch.nn.Module, context: Context) -> torch.nn.Module:
        """Prune in place and return ``model``. Raises ``SourceError`` if nothing can be pruned."""
        from torch.nn.utils import parametrize

        targets = prunable(model)
        if not targets:
            raise SourceError("the model has no linear or convolution layer", hint="leave this step out")
        wanted = self._wanted(tuple(targets))
        masks = {name: _mask(module) for name, module in targets.items()}
        for name, module in targets.items():
            parametrize.register_parametrization(module, "weight", masks[name])
        try:
            self._update(masks, targets, wanted, 1.0 if not self.training.epochs else 0.0)
            if self.training.epochs:
                self._train(model, context, lambda share: self._update(masks, targets, wanted, share))
        finally:
            for module in targets.values():
                parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
        context.record({f"{name}.mask": mask.get_buffer("mask").bool() for name, mask in masks.items()})
        return model

    def _train(
        self,
        model: torch.nn.Module,
        context: Context,
        update: Callable[[float], None],
    ) -> None:
        last = -1.0

        def each_step(progress: float) -> None:
            nonlocal last
            risen = min(1.0, progress / self.ramp) if self.ramp else 1.0
            if risen - last >= 0.01 or (risen == 1.0 and last < 1.0):
                last = risen
                update(1 - (1 - risen) ** 3)

        fit(model, context.needs_task(self.NAME), self.training, seed=context.seed, each_step=each_step)
        update(1.0)

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

    def _update(
        self,
        masks: dict[str, torch.nn.Module],
        targets: dict[str, torch.nn.Module],
        wanted: dict[str, float],
        share: float,
    ) -> None:
        """Set all masks to ``share`` of the final sparsity."""
        import torch

        scores = {name: _score(module, self.normalize) for name, module in targets.items()}
        free = [scores[name].flatten() for name in targets if name not in wanted]
        common = _threshold(torch.cat(free), self.sparsity * share) if free else None
        for name in targets:
            limit = _threshold(scores[name].flatten(), wanted[name] * share) if name in wanted else common
            assert limit is not None
            masks[name].get_buffer("mask").copy_(scores[name] > limit)


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
    """Linear and convolution layers by name."""
    import torch

    kinds = (torch.nn.Linear, torch.nn.modules.conv._ConvNd)
    return {name: m for name, m in model.named_modules() if isinstance(m, kinds)}


def _mask(module: torch.nn.Module) -> torch.nn.Module:
    import torch

    class Mask(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mask", torch.ones_like(module.get_parameter("weight")))

        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return weight * self.get_buffer("mask")

    return Mask()


def _score(module: torch.nn.Module, normalize: bool) -> torch.Tensor:
    weight = module.get_parameter("parametrizations.weight.original").detach()
    score = weight.abs()
    return score / weight.square().mean().sqrt().clamp_min(1e-12) if normalize else score


def _threshold(score: torch.Tensor, share: float) -> torch.Tensor:
    """The value that ``share`` of the scores do not exceed."""
    count = int(share * len(score))
    return score.kthvalue(count).values if count else score.new_tensor(-1.0)
