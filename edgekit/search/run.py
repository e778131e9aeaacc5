"""``edgekit compress --budget``: search, confirm what wins on data that the search did not see, deliver it.

The evaluation data is halved: the search sees one half, the winner has to hold the budget on both, as the artifact
that is delivered; where it does not, the next candidate is tried. A drop is held with a margin for chance.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgekit.artifact.run import runnable
from edgekit.compress.margin import Drop
from edgekit.compress.plan import PLAN, TENSORS, WEIGHTS
from edgekit.compress.recipes import Recipe, Ship
from edgekit.core import targets
from edgekit.core.config import Options
from edgekit.errors import EdgekitError, GateFailedError, SourceError, UnknownNameError
from edgekit.graph.records import write_json
from edgekit.load.source import Source
from edgekit.pipeline import compress
from edgekit.pipeline.pixels import recorded
from edgekit.pipeline.stages import BuildContext
from edgekit.search import budget as budgets
from edgekit.search.budget import Budget
from edgekit.search.evaluate import Bench, Checked
from edgekit.search.points import Candidate, Journal, Limits, Point, front, no_candidate, ranked
from edgekit.search.ship import Shipped, from_source, ship
from edgekit.search.space import methods
from edgekit.search.strategy import Search

PARETO = "pareto.json"
NEAR = 1.1
"""Candidates whose estimate is within this factor of the winner's are coded too before it is called the smallest."""
_SAID = 3
"""So many layers are named for each step."""
RESERVE = 0.2
"""The share of the time that is kept for confirming the winner."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """The outcome: the recipe and its artifact, confirmed; all points; the Pareto front."""

    recipe: Recipe
    point: Point
    shipped: Shipped
    base_metric: float
    held_base: float
    seen: Drop
    unseen: Drop
    metric: str
    points: tuple[Point, ...]
    front: tuple[Point, ...]
    rejected: tuple[str, ...]
    why: tuple[str, ...]
    interrupted: bool


def search(context: BuildContext, source: Source, budget: Budget, limits: Limits) -> Found:
    """Search, confirm, deliver to ``context.options.out``.

    Raises ``UsageError`` without a task whose metric can be halved, ``DataError`` for a metric that is no number,
    ``GateFailedError`` when nothing holds.
    """
    bench = Bench(context, source, budget, limits)
    tried = targets.select(context.options.target) if context.options.target else bench.usual_targets()
    header = bench.header(tried)
    journal = Journal(
        Path(context.options.out) / "search.jsonl",
        header,
        bench.setup,
        context.store.root / "searches" / f"{header['search'][:32]}-{limits.seed}.jsonl",
    )
    for point in journal.known.values():
        bench.saw(point)
    able = methods(max_epochs=journal.setup.epochs, rate=journal.setup.rate)
    run = Search(
        [m for m in able if not limits.steps or m.name in limits.steps],
        [t.name for t in tried],
        budget,
        replace(limits, seconds=limits.seconds * (1 - RESERVE)),
        journal,
        folds=bench.folds,
    )
    try:
        with context.progress.task("search", total=None) as shown:

            def show(point: Point, state: Search) -> None:
                shown.advance()
                context.progress.note(told(point, budget, state))

            results = run.run(bench.evaluate, show)
        journal.keep()
        return confirmed(bench, results, run)
    finally:
        bench.clean()


def told(point: Point, budget: Budget, state: Search) -> str:
    """One line for one result, with what remains and the best so far."""
    if point.error:
        said = f"not possible: {point.error.splitlines()[0]}"
    else:
        mark = "" if point.exact else "~"
        fits = "holds" if budget.holds(point.bound, point.size, point.latency_ms) else "over budget"
        speed = "" if point.latency_ms is None else f", {point.latency_ms:.2f} ms"
        said = f"{mark}{point.size:,} bytes, drop {100 * point.drop:.2f} + {100 * point.margin:.2f} pt{speed}: {fits}"
    left = f"{state.seconds_left:.0f} s left" if math.isfinite(state.limits.seconds) else ""
    left = left or f"{state.limits.trials - len(state.points)} candidates left"
    best = f"; best {state.best.size:,} bytes" if state.best is not None else ""
    return f"{len(state.points)} · {left}{best} · {point.name}: {said}"


def confirmed(bench: Bench, results: Sequence[tuple[Candidate, Point]], run: Search) -> Found:
    """The best candidate that holds the budget on both halves of the data, delivered and gated."""
    points = tuple(p for _, p in results)
    rejected: list[str] = []
    tried: set[str] = set()
    while held := _holding(bench, [r for r in results if r[1].name not in tried], rejected, tried):
        for checked in _best_first(held, bench.budget):
            try:
                return _found(bench, checked, points, rejected, run)
            except EdgekitError as error:
                rejected.append(f"{checked.point.name}: {error.message}")
    raise no_candidate(bench.budget, points, rejected)


def _found(
    bench: Bench, checked: Checked, points: Sequence[Point], rejected: Sequence[str], run: Search
) -> Found:
    """Deliver and tell. Raises what a build raises."""
    why = _why(bench, checked, points)
    recipe, shipped = _delivered(bench, checked, why)
    point = checked.point
    every = tuple(point if p.name == point.name else p for p in points)
    found = Found(
        recipe=recipe,
        point=point,
        shipped=shipped,
        base_metric=bench.base.value,
        held_base=bench.held_base.value,
        seen=checked.seen,
        unseen=checked.unseen,
        metric=bench.task.metric_name,
        points=every,
        front=_front(every, point),
        rejected=tuple(rejected),
        why=why,
        interrupted=run.interrupted,
    )
    document = {"budget": str(bench.budget), "front": found.front, "winner": point, "why": why}
    write_json(document, Path(bench.options.out) / PARETO)
    return found


def _holding(
    bench: Bench, results: Sequence[tuple[Candidate, Point]], rejected: list[str], tried: set[str]
) -> list[Checked]:
    """Candidates in order until one holds, and those whose estimated size is near its; ``tried`` gets all of them."""
    held: list[Checked] = []
    for candidate, point in ranked(results, bench.budget):
        if held and (point.exact or point.size > NEAR * min(c.point.size for c in held)):
            break
        tried.add(point.name)
        with bench.context.progress.task(f"confirm {point.name}"):
            try:
                checked = bench.check(candidate, point)
            except EdgekitError as error:
                rejected.append(f"{point.name}: {error.message}")
                continue
        real = checked.point
        if checked.holds(bench.budget):
            held.append(checked)
        else:
            rejected.append(
                f"{real.name}: {real.size:,} bytes, drop {100 * real.drop:.2f} + {100 * real.margin:.2f} pt, "
                f"{100 * checked.unseen.value:.2f} pt on data that the search did not see"
            )
    return held


def _best_first(held: list[Checked], budget: Budget) -> list[Checked]:
    order = [(c.candidate, c.point) for c in held]
    by_point = {(c.point.line, c.point.target): c for c in held}
    return [by_point[p.line, p.target] for _, p in ranked(order, budget)]


def _plan(bench: Bench, context: BuildContext, candidate: Candidate) -> tuple[Source, Recipe, Any]:
    """The candidate's plan as a source; without steps, the source itself."""
    recipe = Recipe(steps=candidate.steps, seed=bench.limits.seed, ship=Ship(target=candidate.target))
    if not candidate.steps:
        return bench.source, recipe, None
    work = compress.TrainingTask(
        bench.source, context.options, context.store, task=bench.task, folder=bench.folder / "steps"
    )
    made = compress.compress(context, bench.source, recipe, work)
    return made.source, recipe, made


def _front(points: Sequence[Point], winner: Point) -> tuple[Point, ...]:
    """What nothing beats, and the winner: what beats it in the search's eyes was not confirmed."""
    kept = front(points)
    if winner not in kept:
        kept = sorted([*kept, winner], key=lambda p: (p.size, p.drop, p.line))
    return tuple(kept)


def _why(bench: Bench, checked: Checked, points: Sequence[Point]) -> tuple[str, ...]:
    """What speaks for each step of the winner: what it gave alone, and what the distributions say."""
    from edgekit.compress.analysis import Findings, reasons

    if not checked.candidate.steps:
        return ()
    work = compress.TrainingTask(bench.source, bench.options, bench.context.store, task=bench.task)
    try:
        found = compress.analyze(bench.context, bench.source, work)
    except SourceError:  # no layer of a kind whose distribution is looked at
        found = Findings(layers=(), blocks={}, advice=())
    out = []
    for step in checked.candidate.steps:
        if step.NAME == "fold":
            out.append("fold: the export does it anyway, and few values times a factor a channel are many")
            continue
        lines = {p: p.line.removeprefix("fold;") for p in points}
        alone = [p for p in points if lines[p].partition("(")[0] == step.NAME and ")" not in lines[p][:-1]]
        held = [p for p in alone if not p.error and bench.budget.holds(p.bound, p.size, p.latency_ms)]
        if held:
            best = min(held, key=lambda p: p.size)
            out.append(f"{step.NAME}: alone {best.size:,} bytes, as {best.name}")
        said = reasons(found, step.NAME)
        out += [f"{step.NAME}: {line}" for line in said[:_SAID]]
        if len(said) > _SAID:
            out.append(f"{step.NAME}: and {len(said) - _SAID} more layers like these")
        elif not said:
            out.append(f"{step.NAME}: no distribution speaks for it; that it pays was measured")
    return tuple(out)


def _delivered(bench: Bench, checked: Checked, why: Sequence[str]) -> tuple[Recipe, Shipped]:
    """Plan, recipe and gated artifact in the folder that the user named.

    Raises ``GateFailedError`` when the artifact is not what was measured, byte for byte, and does not hold.
    """
    from edgekit.compress import recipes

    out, candidate = Path(bench.options.out), checked.candidate
    source, recipe, made = _plan(bench, bench.context, candidate)
    shipped = ship(bench.context, source, Ship(target=candidate.target))
    artifact = shipped.artifact
    if tuple(f.sha256 for f in artifact.manifest.files) != checked.files:
        delivered = from_source(runnable(artifact), recorded(artifact.manifest))
        seen, unseen = bench.drops(delivered, artifact.manifest.inputs)
        drop = max(seen.value, unseen.value)
        if not bench.budget.holds(drop, shipped.size, checked.point.latency_ms):
            raise GateFailedError(
                f"the delivered artifact has {shipped.size:,} bytes and loses {100 * drop:.2f} pt",
                hint="a step gives other weights each time: please report the recipe",
                gates=("budget",),
            )
    _clear(out, candidate.target, planned=made is not None)
    if made is not None:
        compress.deliver(made, recipe, bench.source, out, comment="\n".join(why))
    else:
        recipes.write(recipe, out / "recipe.toml")
    return recipe, shipped


def _clear(out: Path, target: str, *, planned: bool) -> None:
    """Remove what an earlier search left in ``out`` and this one does not replace."""
    for name in () if planned else (PLAN, WEIGHTS, TENSORS):
        (out / name).unlink(missing_ok=True)
    try:
        before = str(json.loads((out / PARETO).read_text(encoding="utf-8"))["winner"]["target"])
    except (OSError, ValueError, KeyError, TypeError):  # there was none, or not ours
        return
    if before != target and before in targets.known():
        shutil.rmtree(out / before, ignore_errors=True)
        (out / f"{before}.ekz").unlink(missing_ok=True)


def parse_limits(
    seconds: str | None, trials: int | None, seed: int | None, epochs: float | None = None
) -> Limits:
    """``--time``, ``--trials``, ``--seed`` and ``--epochs``: ten minutes where neither time nor trials are given."""
    timed = seconds or ("10m" if trials is None else "")
    return Limits(
        seconds=budgets.parse_seconds(timed) if timed else math.inf,
        trials=trials or 1000,
        seed=0 if seed is None else seed,
        epochs=epochs,
    )


def step_names(text: str | None) -> tuple[str, ...]:
    """``--steps``. Raises ``UnknownNameError``."""
    from edgekit.compress.registry import registry

    known = registry()
    names = tuple(part.strip() for part in (text or "").split(",") if part.strip())
    for name in names:
        if name not in known:
            raise UnknownNameError("step", name, known)
    return names


def search_options(options: Options) -> Options:
    """Calibration on fewer samples than a build's default: the search quantizes often."""
    return replace(options, samples=min(options.samples, 128))
