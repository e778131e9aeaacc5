"""Compression as the user asks for it: by a recipe, or searched under a budget; the plan is delivered as a folder."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from edgekit.compress import recipes
from edgekit.compress.recipes import Recipe
from edgekit.compress.step import StepReport
from edgekit.compress.training.settings import is_first_process
from edgekit.errors import UsageError
from edgekit.load.source import Source
from edgekit.pipeline import compress as stage
from edgekit.pipeline.stages import BuildContext
from edgekit.search import budget as budgets
from edgekit.search.limits import Limits, search_options
from edgekit.search.run import SearchResult, refuse_others, search
from edgekit.search.ship import Shipped, check, ship


@dataclass(frozen=True, kw_only=True)
class Delivered:
    """A plan folder, the recipe that made it, what each step did (none after a search), and what was shipped."""

    folder: Path
    recipe: Recipe
    metric: str
    steps: tuple[StepReport, ...] = ()
    shipped: Shipped | None = None
    search: SearchResult | None = None


def compress(
    context: BuildContext,
    source: str | Path,
    *,
    recipe: str | None = None,
    budget: str | None = None,
    limits: Limits | None = None,
    seed: int | None = None,
) -> Delivered:
    """By a recipe, or under a budget (for ten minutes, where no limits are given)."""
    if (recipe is None) == (budget is None):
        raise UsageError(
            "say what to do: a recipe, or a budget to search under",
            hint="recipe='prune(sparsity=0.5)' or budget='drop<=1pt'",
        )
    context = replace(context, options=search_options(context.options))
    model = opened(context, source)
    if recipe is not None:
        return by_recipe(context, model, recipe, seed=seed)
    assert budget is not None
    return under_budget(context, model, budget, limits or Limits(seconds=600.0, seed=seed or 0))


def opened(context: BuildContext, source: str | Path) -> Source:
    """A SOURCE text. Raises :class:`UsageError` for an object in memory."""
    if not isinstance(source, str | Path):
        raise UsageError(
            "a compressed model names the source that it was made from, and this one is an object in memory",
            hint="give a factory (file.py:factory), or apply the steps yourself (edgekit.compress.step.run)",
        )
    return stage.named(context, str(source))


def by_recipe(context: BuildContext, source: Source, text: str, *, seed: int | None = None) -> Delivered:
    """Run the recipe that ``text`` is or names, deliver the plan to ``context.options.out``, ship what it ships.

    Of several processes that train together only the first delivers.
    """
    recipe = recipes.read(text, seed=seed)
    refuse_others(Path(context.options.out))
    if recipe.ship is not None:
        check(context.options, recipe.ship)
    result = stage.compress(context, source, recipe)
    if not is_first_process():
        return Delivered(
            folder=result.folder, recipe=recipe, metric=result.report.metric, steps=result.report.steps
        )
    folder = stage.deliver(result, recipe, source, context.options.out)
    shipped = ship(context, result.source, recipe.ship) if recipe.ship is not None else None
    return Delivered(
        folder=folder, recipe=recipe, metric=result.report.metric, steps=result.report.steps, shipped=shipped
    )


def under_budget(context: BuildContext, source: Source, budget: str, limits: Limits) -> Delivered:
    """Search for a recipe that holds ``budget``. Raises :class:`UsageError` where processes are to train together."""
    if context.options.processes > 1:
        raise UsageError(
            "a search trains each candidate in one process", hint="leave --processes out, or give a recipe"
        )
    asked = budgets.parse(budget)
    if limits.workers > 1 and asked.latency_ms is not None:
        raise UsageError(
            "candidates are timed for a latency limit, and others at work beside them would be in their times",
            hint="leave --workers out, or the latency limit",
        )
    found = search(context, source, asked, limits)
    return Delivered(
        folder=context.options.out,
        recipe=found.recipe,
        metric=found.metric,
        shipped=found.shipped,
        search=found,
    )
