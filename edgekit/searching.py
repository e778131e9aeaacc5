"""``edgekit compress --budget``: what a candidate costs is measured on the real thing, and what wins is confirmed.

A candidate's steps run in PyTorch, the result is exported, quantized and lowered by the stages of a build, its
metric is taken on its runtime, its size is that of the coded files, its latency that of the benchmark. The
evaluation data is halved: the search sees one half, the winner has to hold the budget on both, as the artifact
that is delivered; where it does not, the next candidate is tried.
"""

from __future__ import annotations

import copy
import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import __version__, catalog, compressing, plugins, shipping, stages
from edgekit.compress import budget as budgets
from edgekit.compress.budget import Budget
from edgekit.compress.recipes import Recipe, Ship
from edgekit.compress.search import (
    Candidate,
    Journal,
    Limits,
    Point,
    Search,
    front,
    no_candidate,
    ranked,
    refused,
)
from edgekit.compress.space import methods
from edgekit.config import Options, target_options
from edgekit.data import user_samples
from edgekit.errors import CalibrationRequiredError, EdgekitError, GateFailedError, UsageError
from edgekit.records import write_json
from edgekit.shipping import Runnable, Shipped, estimate, estimate_weights, judged, pack, ship
from edgekit.source import MODULE, Source
from edgekit.stages import Workshop
from edgekit.store import Store, canonical_json
from edgekit.types import SourceSpec, Target, TorchModel, sha256_bytes, sha256_file

if TYPE_CHECKING:
    import torch

TARGETS = ("ort-fp32", "ort-int8", "ort-int8-dynamic", "ort-int8-weights")
EXACT_BELOW = 100_000
"""Files with less bytes are coded for every candidate; of larger ones the size is estimated first."""
NEAR = 1.1
"""Candidates whose estimate is within this factor of the winner's are coded too before it is called the smallest."""
PROMISING = 1.15
"""A float candidate whose weights alone come to more than this times the smallest so far is not built."""
KEPT = 24
"""How many finished steps are kept on disk while the search runs."""
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
    held_drop: float
    metric: str
    points: tuple[Point, ...]
    front: tuple[Point, ...]
    rejected: tuple[str, ...]
    interrupted: bool


def search(shop: Workshop, source: Source, budget: Budget, limits: Limits) -> Found:
    """Search, confirm, deliver to ``shop.options.out``.

    Raises ``UsageError`` without a task whose metric can be halved, ``GateFailedError`` when nothing holds.
    """
    bench = Bench(shop, source, budget)
    tried = catalog.select(shop.options.target) if shop.options.target else bench.usual_targets()
    trains = bool(shop.options.train or ":" in shop.options.task)
    journal = Journal(
        Path(shop.options.out) / "search.jsonl",
        bench.header(limits, tried),
        lambda: bench.longest(limits.seconds) if trains else 0.0,
    )
    for point in journal.known.values():
        bench.saw(point)
    run = Search(
        methods(max_epochs=journal.epochs),
        [t.name for t in tried],
        budget,
        replace(limits, seconds=limits.seconds * (1 - RESERVE)),
        journal,
    )
    with shop.progress.task("search", total=None) as shown:

        def show(point: Point, state: Search) -> None:
            shown.advance()
            shop.progress.note(told(point, budget, state))

        results = run.run(bench.evaluate, show)
    try:
        return confirmed(bench, results, run)
    finally:
        bench.clean()


def told(point: Point, budget: Budget, state: Search) -> str:
    """One line for one result, with what remains."""
    what = _name(point)
    if point.error:
        said = f"not possible: {point.error.splitlines()[0]}"
    else:
        mark = "" if point.exact else "~"
        fits = "holds" if budget.holds(point.drop, point.size, point.latency_ms) else "over budget"
        speed = "" if point.latency_ms is None else f", {point.latency_ms:.2f} ms"
        said = f"{mark}{point.size:,} bytes, drop {100 * point.drop:.2f} pt{speed}: {fits}"
    return f"{len(state.points)} · {state.seconds_left:.0f} s left · {what}: {said}"


class Bench:
    """Measures candidates of one source."""

    def __init__(self, shop: Workshop, source: Source, budget: Budget) -> None:
        options = shop.options
        self.source, self.budget = source, budget
        self.folder = Path(options.out) / ".search"
        self.shop, self.options = shop, options
        self.model: TorchModel = source.torch()
        self.task: Any = _halved(compressing.Work(source, options, shop.store))
        self.base = float(self.task.metric(self.model.module))
        self.held_base = float(self.task.holdout_metric(self.model.module))
        self.smallest = math.inf

    def usual_targets(self) -> tuple[Target, ...]:
        """Float, then the quantized rows of ONNX Runtime; those that need calibration where there is data."""
        able = [
            t
            for t in catalog.select(",".join(TARGETS))
            if not t.needs_calibration or shipping.calibration(self.options)
        ]
        return tuple(able)

    def header(self, limits: Limits, tried: Sequence[Target]) -> dict[str, Any]:
        """What results depend on: a journal of anything else is not continued."""
        from edgekit.compress.prune import Prune
        from edgekit.compress.step import Context, cache_key

        weights = cache_key(Prune(), self.model.module, Context())
        facts = [
            self.source.spec.text,
            weights,
            self.task.fingerprint,
            [t.name for t in tried],
            self.budget.device,
        ]
        o = self.options
        data = [o.calib, o.train, o.eval, o.accelerator, o.samples, __version__]
        digest = sha256_bytes(canonical_json([facts, data, self.budget.latency_ms is not None]))
        return {"search": digest, "seed": limits.seed}

    def longest(self, seconds: float) -> float:
        """How many epochs one candidate may train: what fits into an eighth of the time, a power of two."""
        import torch

        total = self.task.steps()
        if not total:
            return 0.0
        model = copy.deepcopy(self.model.module).train()
        batches = iter(self.task.batches(0, 0))
        begin, count = time.perf_counter(), 0
        for batch in batches:
            loss = self.task.loss(model, batch)
            torch.autograd.backward(loss)
            count += 1
            if count >= 8 or time.perf_counter() - begin > 5:
                break
        epoch = (time.perf_counter() - begin) / max(1, count) * total
        fits = seconds / 8 / max(epoch, 1e-9)
        return float(2.0 ** max(-4, min(6, math.floor(math.log2(fits)))))

    def evaluate(self, candidate: Candidate) -> Point:
        """Compress, export, quantize, lower, run. What a step or target refuses is a result too."""
        begin = time.perf_counter()
        try:
            return self._measured(candidate, begin)
        except EdgekitError as error:
            return refused(candidate, error, time.perf_counter() - begin)
        finally:
            shutil.rmtree(self.folder / "cache", ignore_errors=True)
            _forget(self.folder / "steps")

    def _measured(self, candidate: Candidate, begin: float) -> Point:
        module = self._compressed(candidate)
        drop = self.base - float(self.task.metric(module)) if candidate.steps else 0.0
        if self.budget.drop is not None and drop > self.budget.drop + 1e-9:
            # Quantizing it will not bring the metric back.
            return self._point(candidate, drop, estimate_weights(module), begin)
        target = catalog.select(candidate.target)[0]
        if target.scheme is None and candidate.steps and self.budget.latency_ms is None:
            size = estimate_weights(module)
            if size > PROMISING * self.smallest:
                return self._point(candidate, drop, size, begin)
        runnable, exported, optimized = self._lowered(module, target)
        if target.scheme is not None or not candidate.steps:
            drop = self.base - judged(self.task.metric, self.model, runnable, exported)
        files = [runnable.main, *runnable.beside]
        whole = sum(f.stat().st_size for f in files)
        exact = whole < EXACT_BELOW
        size = estimate(files, optimized)
        if exact:
            size = pack(files, self.folder / "cache" / "size.ekz").stat().st_size
        point = replace(self._point(candidate, drop, size, begin, exact=exact), built=True)
        if self.budget.latency_ms is not None and self.budget.holds(drop, size, None):
            point = replace(point, latency_ms=self._latency(runnable))
        self.saw(point)
        return point

    def saw(self, point: Point) -> None:
        """Remember the smallest that was built and holds: what is clearly larger need not be built."""
        if point.built and self.budget.holds(point.drop, point.size, point.latency_ms):
            self.smallest = min(self.smallest, point.size)

    def check(self, candidate: Candidate, point: Point) -> Checked:
        """Everything about a candidate that the search only estimated or did not look at."""
        try:
            module = self._compressed(candidate)
            runnable, inputs, _ = self._lowered(module, catalog.select(candidate.target)[0])
            files = [runnable.main, *runnable.beside]
            digests = tuple(sha256_file(f) for f in files)
            size = point.size
            if not point.exact:
                size = pack(files, self.folder / "cache" / "size.ekz").stat().st_size
            seen = self.base - judged(self.task.metric, self.model, runnable, inputs)
            unseen = self.held_base - judged(self.task.holdout_metric, self.model, runnable, inputs)
        finally:
            shutil.rmtree(self.folder / "cache", ignore_errors=True)
        exact = replace(point, size=size, exact=True, drop=seen)
        return Checked(candidate=candidate, point=exact, unseen=unseen, files=digests)

    def _point(
        self, candidate: Candidate, drop: float, size: int, begin: float, *, exact: bool = False
    ) -> Point:
        return Point(
            line=candidate.line,
            target=candidate.target,
            drop=drop,
            size=size,
            exact=exact,
            seconds=round(time.perf_counter() - begin, 2),
        )

    def _compressed(self, candidate: Candidate) -> torch.nn.Module:
        from edgekit.compress import plan, step
        from edgekit.compress.engine import Loop, looping

        context = step.Context(
            task=self.task, example_inputs=self.model.example_inputs, seed=self.seed(candidate)
        )
        module = copy.deepcopy(self.model.module)
        with looping(Loop(device=self.options.accelerator)):
            made, _ = step.run(module, candidate.steps, context, work=self.folder / "steps", judged=False)
        fresh = copy.deepcopy(self.model.module)  # as the plan will be loaded: the same order of weights
        return plan.rebuilt(fresh, candidate.steps, context.tensors, made.state_dict()).eval()

    def seed(self, candidate: Candidate) -> int:  # noqa: ARG002 - one seed for all: results can be compared
        """The seed of the steps."""
        return 0

    def _lowered(self, module: torch.nn.Module, target: Target) -> tuple[Runnable, Any, Any]:
        options = shipping.shipped_options(self.options, Ship(target=target.name))
        shop = Workshop(store=Store(self.folder / "cache"), options=options, progress=self.shop.progress)
        spec = SourceSpec(text=self.source.spec.text, kind=MODULE)
        source = Source(spec, shop.store, loaded=shipping.module_of(self.model, module))
        exported = stages.export(shop, source)
        model, _ = stages.optimize(shop, exported.model, exported.example_inputs())
        if target.scheme is not None:
            calibrated = None
            if target.needs_calibration:
                data = shipping.calibration(options)
                if data is None:
                    raise CalibrationRequiredError(
                        f"{target.name} needs calibration data", hint="pass --calib"
                    )
                samples = user_samples(
                    self.shop.store,
                    data,
                    exported.model.inputs,
                    origin="calibration",
                    preprocessing=options.preprocessing or exported.record.preprocessing,
                )
                calibrated = stages.calibrate(shop, model, samples.first(options.samples))
            choice = stages.Quantization.of(options)
            model, _, _ = stages.quantize(shop, model, target, calibrated, choice)
        if target.fixed_shapes:
            model, _ = stages.fix_shapes(shop, model, exported.example_inputs())
        files = stages.lower(shop, model, target, target_options(target, options.set))
        runnable = Runnable(
            backend=target.backend,
            main=files.directory / files.lowered.files[0],
            beside=tuple(files.directory / name for name in files.lowered.files[1:]),
            lowered=files.lowered,
        )
        return runnable, model.inputs, model

    def _latency(self, runnable: Runnable) -> float:
        from edgekit.bench import BenchSettings, Variant, bench_devices
        from edgekit.devices import catalogue
        from edgekit.layout import to_runtime

        plugins.backend(runnable.backend)
        example = {k: v.detach().cpu().numpy() for k, v in self.model.example_inputs.items()}
        variant = Variant(
            backend=runnable.backend,
            model=runnable.main,
            inputs=to_runtime(example, runnable.lowered.channels_moved),
            options=runnable.lowered.runtime,
            files=runnable.beside,
            quantize=True,
        )
        devices = catalogue.select(self.budget.device)
        settings = BenchSettings(processes=3, seconds=0.3, wait_s=60.0)
        result: Any = next(iter(bench_devices([variant], devices, settings=settings).values()))
        if isinstance(result, EdgekitError):
            raise result
        return float(result.p50_ms)

    def clean(self) -> None:
        """Remove what only the search needed; the journal stays."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _halved(work: compressing.Work) -> Any:
    """The task with a metric for the search and another for the end."""
    if not work.given:
        raise UsageError(
            "a budget needs a task: what is lost is measured by its metric",
            hint="pass --task classification --eval DATA (and --train DATA to train), or --task file.py:task",
        )
    task: Any = work.open()
    if hasattr(task, "split"):
        task = task.split()
    if not callable(getattr(task, "holdout_metric", None)):
        raise UsageError(
            "the task has no data that the search does not see: the budget could not be confirmed",
            hint="give it holdout_metric(model), on data that metric(model) does not use",
        )
    return task


def _forget(steps: Path) -> None:
    """Keep the latest finished steps only."""
    files = sorted(steps.glob("step-*"), key=lambda p: p.stat().st_mtime) if steps.is_dir() else []
    for file in files[:-KEPT]:
        file.unlink()


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A candidate that holds the budget in full: ``point`` has the exact size, ``unseen`` is the drop on the data
    that the search did not see, ``files`` the sha256 of each file that was measured."""

    candidate: Candidate
    point: Point
    unseen: float
    files: tuple[str, ...]


def confirmed(bench: Bench, results: Sequence[tuple[Candidate, Point]], run: Search) -> Found:
    """The best candidate that holds the budget on both halves of the data, delivered and gated."""
    points = tuple(p for _, p in results)
    rejected: list[str] = []
    for checked in _best_first(_holding(bench, results, rejected), bench.budget):
        try:
            recipe, shipped = _delivered(bench, checked)
        except EdgekitError as error:
            rejected.append(f"{_name(checked.point)}: {error.message}")
            continue
        point = checked.point
        every = tuple(point if (p.line, p.target) == (point.line, point.target) else p for p in points)
        found = Found(
            recipe=recipe,
            point=point,
            shipped=shipped,
            base_metric=bench.base,
            held_base=bench.held_base,
            held_drop=checked.unseen,
            metric=bench.task.metric_name,
            points=every,
            front=tuple(front(every)),
            rejected=tuple(rejected),
            interrupted=run.interrupted,
        )
        document = {"budget": str(bench.budget), "front": found.front, "winner": point}
        write_json(document, Path(bench.options.out) / "pareto.json")
        return found
    raise no_candidate(bench.budget, points, rejected)


def _holding(bench: Bench, results: Sequence[tuple[Candidate, Point]], rejected: list[str]) -> list[Checked]:
    """Candidates in order until one holds, and those whose estimated size is near its."""
    held: list[Checked] = []
    for candidate, point in ranked(results, bench.budget):
        if held and (point.exact or point.size > NEAR * min(c.point.size for c in held)):
            break
        with bench.shop.progress.task(f"confirm {_name(point)}"):
            try:
                checked = bench.check(candidate, point)
            except EdgekitError as error:
                rejected.append(f"{_name(point)}: {error.message}")
                continue
        real = checked.point
        if bench.budget.holds(max(real.drop, checked.unseen), real.size, real.latency_ms):
            held.append(checked)
        else:
            rejected.append(
                f"{_name(real)}: {real.size:,} bytes, drop {100 * real.drop:.2f} pt, and "
                f"{100 * checked.unseen:.2f} pt on data that the search did not see"
            )
    return held


def _best_first(held: list[Checked], budget: Budget) -> list[Checked]:
    order = [(c.candidate, c.point) for c in held]
    by_point = {(c.point.line, c.point.target): c for c in held}
    return [by_point[p.line, p.target] for _, p in ranked(order, budget)]


def _name(point: Point) -> str:
    return f"{point.line or 'nothing'} → {point.target}"


def _plan(bench: Bench, shop: Workshop, candidate: Candidate) -> tuple[Source, Recipe, Any]:
    """The candidate's plan as a source; without steps, the source itself."""
    recipe = Recipe(steps=candidate.steps, seed=bench.seed(candidate), ship=Ship(target=candidate.target))
    if not candidate.steps:
        return bench.source, recipe, None
    work = compressing.Work(
        bench.source, shop.options, shop.store, task=bench.task, folder=bench.folder / "steps"
    )
    made = compressing.compress(shop, bench.source, recipe, work)
    return made.source, recipe, made


def _delivered(bench: Bench, checked: Checked) -> tuple[Recipe, Shipped]:
    """Plan, recipe and gated artifact in the folder that the user named.

    Raises ``GateFailedError`` when the artifact is not what was measured, byte for byte, and does not hold.
    """
    from edgekit.compress import recipes

    out, candidate = Path(bench.options.out), checked.candidate
    source, recipe, made = _plan(bench, bench.shop, candidate)
    if made is not None:
        compressing.deliver(made, recipe, bench.source, out)
    else:
        recipes.write(recipe, out / "recipe.toml")
    shipped = ship(bench.shop, source, Ship(target=candidate.target))
    artifact = shipped.artifact
    if tuple(f.sha256 for f in artifact.manifest.files) == checked.files:
        return recipe, shipped
    runnable, inputs = Runnable.of(artifact), artifact.manifest.inputs
    drop = max(
        bench.base - judged(bench.task.metric, bench.model, runnable, inputs),
        bench.held_base - judged(bench.task.holdout_metric, bench.model, runnable, inputs),
    )
    if not bench.budget.holds(drop, shipped.size, checked.point.latency_ms):
        raise GateFailedError(
            f"the delivered artifact has {shipped.size:,} bytes and loses {100 * drop:.2f} pt",
            hint="a step gives other weights each time: please report the recipe",
            gates=("budget",),
        )
    return recipe, shipped


def parse_limits(seconds: str | None, trials: int | None, seed: int | None) -> Limits:
    """``--time``, ``--trials`` and ``--seed``."""
    return Limits(
        seconds=budgets.parse_seconds(seconds or "10m"),
        trials=trials or 1000,
        seed=0 if seed is None else seed,
    )


def search_options(options: Options) -> Options:
    """Calibration on fewer samples than a build's default: the search quantizes often."""
    return replace(options, samples=min(options.samples, 128))
