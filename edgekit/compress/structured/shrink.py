"""The step ``shrink``: structured pruning that really makes the module and its exported graph smaller."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from edgekit.compress.training.train import Training, fit
from edgekit.errors import ConfigError, SourceError, UsageError

if TYPE_CHECKING:
    import torch

    from edgekit.compress.step import Context
    from edgekit.compress.structured.cut import Plan
    from edgekit.compress.structured.groups import Analysis, Group
    from edgekit.compress.structured.select import Goal

CRITERIA = ("l2", "l1", "taylor", "bn", "random")
SCOPES = ("global", "layer")


@dataclass(frozen=True, kw_only=True)
class Shrink:
    """Cut channels, features, heads and hidden units that matter least.

    ``macs`` and ``parameters``: the shares that may remain (1: no limit). ``criterion``: ``l2``, ``l1``,
    ``taylor`` (needs a task), ``bn`` or ``random``. ``scope``: ``global`` or ``layer``. ``multiple``: what is
    kept of a layer is a multiple of so many channels. ``most``: largest share of one group to cut. ``leave``:
    layers not to touch, ``"head*,stem*"``. ``widths``: also cut what a layer norm or a softmax counts (the
    width of a transformer), which changes more than setting it to zero would. ``refit``: on ``batches`` of the
    task's data the layers that lost inputs learn to answer as before, by least squares; without a task they
    stay as they were cut. ``rounds``: cut a part, train, cut the next; ``training`` is divided among them.
    """

    NAME: ClassVar[str] = "shrink"

    macs: float = 0.5
    parameters: float = 1.0
    criterion: str = "l2"
    scope: str = "global"
    multiple: int = 8
    most: float = 0.9
    leave: str = ""
    widths: bool = False
    rounds: int = 1
    refit: bool = True
    batches: int = 16
    training: Training = field(default_factory=lambda: Training(epochs=0.0))

    def __post_init__(self) -> None:
        for name, known in (("criterion", CRITERIA), ("scope", SCOPES)):
            if getattr(self, name) not in known:
                raise ConfigError(
                    f"unknown {name} {getattr(self, name)!r} of shrink", hint=f"use {', '.join(known)}"
                )
        if not (0 < self.macs <= 1 and 0 < self.parameters <= 1 and 0 < self.most < 1):
            raise ConfigError(
                f"shrink to {self.macs} of the MACs and {self.parameters} of the parameters, most {self.most}",
                hint="macs and parameters are shares above 0 up to 1, most is a share between 0 and 1",
            )
        for name in ("multiple", "rounds", "batches"):
            if getattr(self, name) < 1:
                raise ConfigError(f"shrink with {name}={getattr(self, name)}", hint=f"{name} is 1 or more")

    def apply(self, model: torch.nn.Module, context: Context) -> torch.nn.Module:
        """Cut in place and return ``model``.

        Each cut is run and compared with the same units set to zero; groups for which this fails stay.
        Raises ``UsageError`` without example inputs or if the goal cannot be reached, ``SourceError`` if
        nothing can be cut.
        """
        from edgekit.compress.structured import attention, cut, groups

        if not context.example_inputs:
            raise UsageError(
                "shrink needs example inputs to follow", hint="let the factory return (module, inputs)"
            )
        model = attention.replace(model).eval()
        analysis = groups.analyse(model, context.example_inputs, inexact=self.widths)
        everything = analysis.everything()
        costs = analysis.count_macs(everything), analysis.count_parameters(everything)
        total = cut.Plan(kept={}, attributes={})
        for number in range(1, self.rounds + 1):
            if number > 1:
                analysis = groups.analyse(model, context.example_inputs, inexact=self.widths)
            total = total.then(self._round(model, context, analysis, self._goal(costs, number / self.rounds)))
            if self.training.epochs:
                part = dataclasses.replace(self.training, epochs=self.training.epochs / self.rounds)
                fit(model, context.needs_task(self.NAME), part, seed=context.seed + number - 1)
        context.record(total.tensors())
        return model

    def restore(self, model: torch.nn.Module, tensors: Mapping[str, torch.Tensor]) -> torch.nn.Module:
        """Cut a fresh module as ``apply`` cut the first."""
        from edgekit.compress.structured import attention, cut

        model = attention.replace(model)
        cut.apply(model, cut.Plan.from_tensors(tensors))
        return model.eval()

    def _goal(self, costs: tuple[int, int], share: float) -> Goal:
        """Costs after ``share`` of the way."""
        from edgekit.compress.structured import select

        return select.Goal(
            macs=costs[0] * (1 - (1 - self.macs) * share),
            parameters=costs[1] * (1 - (1 - self.parameters) * share),
            scope=self.scope,
            multiple=self.multiple,
            most=self.most,
        )

    def _round(self, model: torch.nn.Module, context: Context, analysis: Analysis, goal: Goal) -> Plan:
        """Cut until the goal is met; what was cut."""
        from edgekit.compress.structured import cut, importance, refit, select, verify

        candidates = self._candidates(analysis)
        scores = importance.score(model, analysis, self.criterion, context)
        checker = verify.Checker(model, context.example_inputs, analysis)
        alive = select.select(analysis, candidates, scores, goal)
        if not checker.works(alive):
            bad = checker.failing(candidates)
            context.record({f"{g.name}|left": _units(g) for g in bad})
            alive = select.select(analysis, tuple(g for g in candidates if g not in bad), scores, goal)
            if not checker.works(alive):
                raise SourceError(
                    "the model cannot be cut: what runs after the cut computes something else",
                    hint=f"leave layers out one by one (leave=…): {', '.join(g.name for g in candidates)}",
                )
        checker.refine(alive)
        plan = cut.plan(model, analysis, alive, checker.leave)
        fits = self.refit and context.task is not None
        fitted = refit.fit(model, plan, context, self.batches, step=self.NAME) if fits else {}
        cut.apply(model, plan)
        refit.install(model, fitted)
        return plan

    def _candidates(self, analysis: Analysis) -> tuple[Group, ...]:
        patterns = [p.strip() for p in self.leave.split(",") if p.strip()]
        names = {name for name, _ in analysis.places}
        for pattern in patterns:
            if not fnmatch.filter(names, f"{pattern}*"):
                raise ConfigError(
                    f"no layer is called {pattern!r}", hint=f"layers: {', '.join(sorted(names))}"
                )
        out = tuple(
            g
            for g in analysis.groups
            if not any(fnmatch.fnmatchcase(name, f"{p}*") for name, _ in g.places for p in patterns)
        )
        if not out:
            raise SourceError(
                "nothing in this model can be cut",
                hint="operators that cannot be followed: " + (", ".join(sorted(analysis.unknown)) or "none"),
            )
        return out


def _units(group: Group) -> torch.Tensor:
    """How many units a group has, as a tensor for the plan."""
    import torch

    return torch.tensor(len(group.units))
