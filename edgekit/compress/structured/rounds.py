"""The rounds of ``shrink``: score, select, check by running, cut, refit, train."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from edgekit.compress import constraints, normalization
from edgekit.compress.constraints import Zeros
from edgekit.compress.step import Context, Tensors
from edgekit.compress.steps import patterns
from edgekit.compress.structured import attention, cut, groups, importance, refit, select, verify
from edgekit.compress.structured.groups import Analysis, Group
from edgekit.compress.structured.shrink import Shrink
from edgekit.compress.training.teacher import taught
from edgekit.compress.training.train import fit
from edgekit.errors import SourceError


def apply(step: Shrink, model: nn.Module, context: Context) -> nn.Module:
    """Cut in place and return ``model``.

    Each cut is run and compared with the same units set to zero; groups for which this fails stay.
    Raises ``UsageError`` without example inputs or if the goal cannot be reached, ``SourceError`` if
    nothing can be cut.
    """
    context.needs_example(step.NAME)
    _refuse(model)
    model = attention.replace(model).eval()
    analysis = groups.analyse(model, context.example_inputs, inexact=step.widths)
    everything = analysis.everything()
    costs = analysis.count_macs(everything), analysis.count_parameters(everything)
    total = cut.Plan(kept={}, attributes={})
    for number in range(1, step.rounds + 1):
        if number > 1:
            analysis = groups.analyse(model, context.example_inputs, inexact=step.widths)
        total = total.then(_round(step, model, context, analysis, _goal(step, costs, number / step.rounds)))
        if step.training.epochs:
            part = dataclasses.replace(step.training, epochs=step.training.epochs / step.rounds)
            fit(model, taught(step.NAME, step.training, context), part, seed=context.seed + number - 1)
    context.record(total.tensors())
    return model


def restore(_: Shrink, model: nn.Module, tensors: Tensors) -> nn.Module:
    """Cut a fresh module as the plan says."""
    model = attention.replace(model)
    cut.apply(model, cut.Plan.from_tensors(tensors))
    return model.eval()


def rehearse(step: Shrink, model: nn.Module, context: Context) -> nn.Module:
    """What would be refused. Nothing is cut."""
    del step, context
    _refuse(model)
    return model


def _refuse(model: nn.Module) -> None:
    """Raises ``ComposeError`` for weights that a cut would take out of their pattern, and that are no floats."""
    laid = constraints.laid(model)
    regular = [
        n for n, found in laid.items() if any(isinstance(c, Zeros) and c.pattern[1] > 1 for c in found)
    ]
    constraints.refuse(
        regular,
        "shrink takes out single channels, and what it leaves of layers pruned N of M is no such pattern",
        hint="put shrink before prune(pattern=…)",
    )
    constraints.refuse(
        constraints.integer_layers(model),
        "shrink judges channels by float weights, and a step before it made integers of them",
        hint="put shrink before qat",
    )


def _goal(step: Shrink, costs: tuple[int, int], share: float) -> select.Goal:
    """Costs after ``share`` of the way."""
    return select.Goal(
        macs=costs[0] * (1 - (1 - step.macs) * share),
        parameters=costs[1] * (1 - (1 - step.parameters) * share),
        scope=step.scope,
        multiple=step.multiple,
        most=step.most,
    )


def _round(
    step: Shrink, model: nn.Module, context: Context, analysis: Analysis, goal: select.Goal
) -> cut.Plan:
    """Cut until the goal is met; what was cut."""
    candidates = _candidates(step, analysis)
    scores = importance.score(model, analysis, step.criterion, context)
    checker = verify.Checker(model, context.example_inputs, analysis)
    alive = select.select(analysis, candidates, scores, goal)
    if not checker.works(alive):
        bad = checker.failing(candidates)
        context.record({f"{g.name}|left": torch.tensor(len(g.units)) for g in bad})
        alive = select.select(analysis, tuple(g for g in candidates if g not in bad), scores, goal)
        if not checker.works(alive):
            raise SourceError(
                "the model cannot be cut: what runs after the cut computes something else",
                hint=f"leave layers out one by one (leave=…): {', '.join(g.name for g in candidates)}",
            )
    checker.refine(alive)
    plan = cut.plan(model, analysis, alive, checker.leave)
    fits = step.refit and context.task is not None
    last = fits and not step.training.epochs
    with normalization.preserved(model, context, step.batches, step=step.NAME, wanted=last) as settle:
        fitted = refit.fit(model, plan, context, step.batches, step=step.NAME) if fits else {}
        cut.apply(model, plan)
        refit.install(model, fitted)
        settle(lambda norm: _stayed(plan, norm))
    return plan


def _stayed(plan: cut.Plan, norm: str) -> torch.Tensor | None:
    """The channels of a batch norm that the plan leaves; none where it leaves all."""
    kept = plan.kept.get((f"{norm}.running_mean", 0))
    return None if kept is None else torch.from_numpy(kept)


def _candidates(step: Shrink, analysis: Analysis) -> tuple[Group, ...]:
    """Groups of which no place is to be left alone."""
    leave = [f"{pattern}*" for pattern in patterns.split(step.leave)]
    patterns.check(leave, sorted({name for name, _ in analysis.places}), "cut")
    candidates = tuple(
        g for g in analysis.groups if not any(patterns.matches(name, leave) for name, _ in g.places)
    )
    if not candidates:
        raise SourceError(
            "nothing in this model can be cut",
            hint="operators that cannot be followed: " + (", ".join(sorted(analysis.unknown)) or "none"),
        )
    return candidates
