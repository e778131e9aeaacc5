"""``edgekit compress --budget``: search, confirm what wins on data that the search did not see, deliver it.

The evaluation data is halved: the search sees one half, the winner has to hold the budget on both, as the artifact
that is delivered; where it does not, the next candidate is tried. A drop is held with a margin for chance, on the half
that the search did not see, and the error is spent over all candidates that were tried there
(:func:`edgekit.compress.margin.spent`).
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from edgekit.artifact.run import runnable
from edgekit.compress import recipes
from edgekit.compress.analysis import Findings, reasons
from edgekit.compress.margin import Drop
from edgekit.compress.plan import PLAN, TENSORS, WEIGHTS
from edgekit.compress.recipes import Recipe, Ship
from edgekit.core import files, targets
from edgekit.errors import EdgekitError, GateFailedError, SourceError
from edgekit.graph.records import write_json
from edgekit.load.source import Source
from edgekit.pipeline.compress import (
    Compressed,
    TrainingTask,
    analyze,
    compress,
    deliver,
    refuse_others_files,
)
from edgekit.pipeline.deliver import refuse_taken
from edgekit.pipeline.pixels import recorded
from edgekit.pipeline.stages import BuildContext
from edgekit.search.budget import Budget, Sizes
from edgekit.search.evaluate import Checked, Evaluator
from edgekit.search.judge import from_source
from edgekit.search.limits import Limits
from edgekit.search.ship import Shipped, ship
from edgekit.search.sizes import download, on_device
from edgekit.search.space import methods
from edgekit.search.strategy import Search
from edgekit.search.trials import Candidate, Journal, Trial, front, no_candidate, ranked

PARETO = "pareto.json"
NEAR = 1.1
"""Candidates whose estimate is within this factor of the winner's are coded too before it is called the smallest."""
_MOST_BYTES = 64 << 20
_SAID = 3
"""So many layers are named for each step."""
RESERVE = 0.2
"""The share of the time that is kept for confirming the winner."""


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """The outcome: the recipe and its artifact, confirmed; all trials; the Pareto front."""

    recipe: Recipe
    trial: Trial
    shipped: Shipped
    base_metric: float
    held_base: float
    seen: Drop
    unseen: Drop
    metric: str
    trials: tuple[Trial, ...]
    front: tuple[Trial, ...]
    rejected: tuple[str, ...]
    why: tuple[str, ...]
    interrupted: bool


def search(context: BuildContext, source: Source, budget: Budget, limits: Limits) -> SearchResult:
    """Search, confirm, deliver to ``context.options.out``.

    Raises ``UsageError`` without a task whose metric can be halved, ``DataError`` for a metric that is no number,
    ``GateFailedError`` when nothing holds.
    """
    with files.writing_to(Path(context.options.out)):
        return _searched(context, source, budget, limits)


def _searched(context: BuildContext, source: Source, budget: Budget, limits: Limits) -> SearchResult:
    refuse_others(Path(context.options.out))
    evaluator = Evaluator(context, source, budget, limits)
    if evaluator.unprovable:
        context.progress.note(evaluator.unprovable)
    tried = targets.select(context.options.target) if context.options.target else evaluator.usual_targets()
    refuse_taken(Path(context.options.out), [t.name for t in tried])
    header = evaluator.header(tried)
    journal = Journal(
        Path(context.options.out) / "search.jsonl",
        header,
        evaluator.setup,
        context.store.root / "searches" / f"{str(header['search'])[:32]}-{limits.seed}.jsonl",
    )
    if journal.doubted:
        context.progress.note(
            f"{journal.path.name}: {journal.doubted} lines are not as they were written; what they tell of is measured "
            "again"
        )
    for trial in journal.known.values():
        evaluator.saw(trial)
    able = methods(max_epochs=journal.setup.epochs, rate=journal.setup.rate)
    run = Search(
        [m for m in able if not limits.steps or m.name in limits.steps],
        [t.name for t in tried],
        budget,
        replace(limits, seconds=limits.seconds * (1 - RESERVE)),
        journal,
        folds=evaluator.folds,
    )
    try:
        with context.progress.task("search", total=None) as shown:

            def show(trial: Trial, state: Search) -> None:
                shown.advance()
                context.progress.note(progress_line(trial, budget, state))

            with _measuring(evaluator, run) as evaluate:
                results = run.run(evaluate, show)
        journal.keep()
        return confirmed(evaluator, results, run)
    finally:
        evaluator.clean()


def refuse_others(out: Path) -> None:
    """Raise :class:`UsageError` where files in ``out`` would be replaced that neither a search nor a recipe left."""
    if not _winner(out):
        refuse_others_files(out, PARETO)


def _winner(out: Path) -> str:
    """The target that a search before this one has delivered to ``out``; empty where there was none, or not ours."""
    try:
        return str(json.loads(files.read(out / PARETO, most=_MOST_BYTES))["winner"]["target"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""


@contextmanager
def _measuring(evaluator: Evaluator, run: Search) -> Iterator[Callable[[Candidate], Trial]]:
    """What measures candidates: this process, or as many as were asked for."""
    if run.limits.workers == 1:
        yield evaluator.evaluate
        return
    from edgekit.search.workers import Workers

    with Workers(evaluator, run.limits.workers, run) as workers:
        yield workers.evaluate


def progress_line(trial: Trial, budget: Budget, state: Search) -> str:
    """One line for one result, with what remains and the best so far."""
    if trial.error:
        outcome = f"not possible: {trial.error.splitlines()[0]}"
    else:
        mark = "" if trial.exact else "~"
        fits = "holds" if trial.within(budget) else "over budget"
        speed = "" if trial.latency_ms is None else f", {trial.latency_ms:.2f} ms"
        drop = f"drop {100 * trial.drop:.2f} + {100 * trial.margin:.2f} pt"
        outcome = f"{mark}{budget.smallest(trial.sizes):,} bytes, {drop}{speed}: {fits}"
    left = f"{state.seconds_left:.0f} s left" if math.isfinite(state.limits.seconds) else ""
    left = left or f"{state.limits.trials - len(state.trials)} candidates left"
    best = f"; best {budget.smallest(state.best.sizes):,} bytes" if state.best is not None else ""
    return f"{len(state.trials)} · {left}{best} · {trial.name}: {outcome}"


def confirmed(evaluator: Evaluator, results: Sequence[tuple[Candidate, Trial]], run: Search) -> SearchResult:
    """The best candidate that holds the budget on both halves of the data, delivered and gated."""
    trials = tuple(p for _, p in results)
    rejected: list[str] = []
    tried: set[str] = set()
    while within := _within(evaluator, [r for r in results if r[1].name not in tried], rejected, tried):
        for checked in _best_first(within, evaluator.budget):
            try:
                return _result(evaluator, checked, trials, rejected, run)
            except EdgekitError as error:
                rejected.append(f"{checked.trial.name}: {error.message}")
    raise no_candidate(
        evaluator.budget,
        trials,
        rejected,
        _more(run.limits, trains=bool(evaluator.options.train)),
        evaluator.unprovable,
    )


def _more(limits: Limits, *, trains: bool) -> tuple[str, ...]:
    """What a search that found nothing could be given, by names that the command line, a sweep's row and Python have in
    common."""
    longer = "more time (time)" if math.isfinite(limits.seconds) else "more candidates (trials)"
    return (longer,) if trains else (longer, "data to train on (train)")


def _result(
    evaluator: Evaluator, checked: Checked, trials: Sequence[Trial], rejected: Sequence[str], run: Search
) -> SearchResult:
    """Deliver and tell. Raises what a build raises."""
    why = _why(evaluator, checked, trials)
    recipe, shipped = _delivered(evaluator, checked, why)
    trial = checked.trial
    every = tuple(trial if p.name == trial.name else p for p in trials)
    result = SearchResult(
        recipe=recipe,
        trial=trial,
        shipped=shipped,
        base_metric=evaluator.base.value,
        held_base=evaluator.held_base.value,
        seen=checked.seen,
        unseen=checked.unseen,
        metric=evaluator.task.metric_name,
        trials=every,
        front=_front(every, trial),
        rejected=tuple(rejected),
        why=why,
        interrupted=run.interrupted,
    )
    document = {"budget": str(evaluator.budget), "front": result.front, "winner": trial, "why": why}
    write_json(document, Path(evaluator.options.out) / PARETO)
    return result


def _within(
    evaluator: Evaluator, results: Sequence[tuple[Candidate, Trial]], rejected: list[str], tried: set[str]
) -> list[Checked]:
    """Candidates in order until one holds, and those whose estimated size is near its; ``tried`` gets all of them."""
    within: list[Checked] = []
    for candidate, trial in ranked(results, evaluator.budget):
        counted = evaluator.budget.smallest
        known = trial.exact or evaluator.budget.counted != "ekz"
        if within and (known or counted(trial.sizes) > NEAR * min(counted(c.trial.sizes) for c in within)):
            break
        tried.add(trial.name)
        with evaluator.context.progress.task(f"confirm {trial.name}"):
            try:
                checked = evaluator.check(candidate, trial, len(tried))
            except EdgekitError as error:
                rejected.append(f"{trial.name}: {error.message}")
                continue
        real = checked.trial
        if checked.holds(evaluator.budget):
            within.append(checked)
        else:
            rejected.append(
                f"{real.name}: {real.size:,} bytes, drop {100 * real.drop:.2f} + {100 * real.margin:.2f} pt, "
                f"{100 * checked.unseen.value:.2f} pt on data that the search did not see"
            )
    return within


def _best_first(within: list[Checked], budget: Budget) -> list[Checked]:
    order = [(c.candidate, c.trial) for c in within]
    by_point = {(c.trial.line, c.trial.target): c for c in within}
    return [by_point[p.line, p.target] for _, p in ranked(order, budget)]


def _plan(evaluator: Evaluator, candidate: Candidate) -> tuple[Source, Recipe, Compressed | None]:
    """The candidate's plan as a source; without steps, the source itself."""
    recipe = Recipe(steps=candidate.steps, seed=evaluator.limits.seed, ship=Ship(target=candidate.target))
    source, context = evaluator.source, evaluator.context
    if not candidate.steps:
        return source, recipe, None
    steps = evaluator.folder / "steps"
    training = TrainingTask(source, context.options, context.store, task=evaluator.task, folder=steps)
    compressed = compress(context, source, recipe, training)
    return compressed.source, recipe, compressed


def _front(trials: Sequence[Trial], winner: Trial) -> tuple[Trial, ...]:
    """What nothing beats, and the winner: what beats it in the search's eyes was not confirmed."""
    best = front(trials)
    if winner not in best:
        best = sorted([*best, winner], key=lambda p: (p.size, p.drop, p.line))
    return tuple(best)


def _why(evaluator: Evaluator, checked: Checked, trials: Sequence[Trial]) -> tuple[str, ...]:
    """What speaks for each step of the winner: what it gave alone, and what the distributions say."""
    if not checked.candidate.steps:
        return ()
    training = TrainingTask(evaluator.source, evaluator.options, evaluator.context.store, task=evaluator.task)
    try:
        findings = analyze(evaluator.context, evaluator.source, training)
    except SourceError:  # no layer of a kind whose distribution is looked at
        findings = Findings(layers=(), blocks={}, advice=())
    out = []
    for step in checked.candidate.steps:
        if step.NAME == "fold":
            out.append("fold: the export does it anyway, and few values times a factor a channel are many")
            continue
        lines = {p: p.line.removeprefix("fold;") for p in trials}
        alone = [p for p in trials if lines[p].partition("(")[0] == step.NAME and ")" not in lines[p][:-1]]
        held = [p for p in alone if p.within(evaluator.budget)]
        if held:
            best = min(held, key=lambda p: evaluator.budget.smallest(p.sizes))
            size = evaluator.budget.smallest(best.sizes)
            out.append(f"{step.NAME}: alone {size:,} bytes, as {best.name}")
        why = reasons(findings, step.NAME)
        out += [f"{step.NAME}: {line}" for line in why[:_SAID]]
        if len(why) > _SAID:
            out.append(f"{step.NAME}: and {len(why) - _SAID} more layers like these")
        elif not why:
            out.append(f"{step.NAME}: no distribution speaks for it; that it pays was measured")
    return tuple(out)


def _delivered(evaluator: Evaluator, checked: Checked, why: Sequence[str]) -> tuple[Recipe, Shipped]:
    """Plan, recipe and gated artifact in the folder that the user named.

    Raises ``GateFailedError`` when the artifact is not what was measured, byte for byte, and does not hold.
    """
    out, candidate = Path(evaluator.options.out), checked.candidate
    source, recipe, compressed = _plan(evaluator, candidate)
    shipped = ship(evaluator.context, source, Ship(target=candidate.target))
    artifact = shipped.artifact
    if tuple(f.sha256 for f in artifact.manifest.files) != checked.files:
        delivered = from_source(runnable(artifact), recorded(artifact.manifest))
        seen, unseen = evaluator.drops(delivered, artifact.manifest.inputs)
        drop = max(seen.value, unseen.value)
        files = [artifact.directory / f.name for f in artifact.manifest.files]
        sizes = Sizes(ekz=shipped.size, file=on_device(files), download=download(files))
        if not evaluator.budget.holds(drop, sizes, checked.trial.latency_ms):
            raise GateFailedError(
                f"the delivered artifact has {shipped.size:,} bytes and loses {100 * drop:.2f} pt",
                hint="a step gives other weights each time: please report the recipe",
                gates=("budget",),
            )
    _clear(out, candidate.target, planned=compressed is not None)
    if compressed is not None:
        deliver(compressed, recipe, evaluator.source, out, comment="\n".join(why))
    else:
        recipes.write(recipe, out / "recipe.toml")
    return recipe, shipped


def _clear(out: Path, target: str, *, planned: bool) -> None:
    """Remove what an earlier search left in ``out`` and this one does not replace."""
    for name in () if planned else (PLAN, WEIGHTS, TENSORS):
        (out / name).unlink(missing_ok=True)
    before = _winner(out)
    if before != target and before in targets.known():
        shutil.rmtree(out / before, ignore_errors=True)
        (out / f"{before}.ekz").unlink(missing_ok=True)
