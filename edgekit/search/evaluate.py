"""What one candidate of a search costs: compressed in PyTorch, exported, quantized and lowered by the stages of a
build, run on its runtime, coded, timed.
"""

from __future__ import annotations

import copy
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.compress import margin
from edgekit.compress.margin import Drop, Score
from edgekit.compress.recipes import Ship
from edgekit.compress.steps.batch_norm import foldable
from edgekit.core import plugins, targets, versions
from edgekit.core.config import Options
from edgekit.core.store import Store, canonical_json
from edgekit.devices.runnable import Runnable
from edgekit.errors import DataError, EdgekitError, UsageError
from edgekit.load import usercode
from edgekit.load.data import SampleSet, user_samples
from edgekit.load.source import MODULE, Source
from edgekit.pipeline import compress, stages
from edgekit.pipeline.lower import graph_of, lower_for
from edgekit.pipeline.stages import BuildContext
from edgekit.pipeline.verify import Subject
from edgekit.search import ship
from edgekit.search.budget import Budget
from edgekit.search.points import Candidate, Limits, Point, Setup, refused
from edgekit.search.ship import Judge, estimate, estimate_weights, from_source, pack
from edgekit.types import SourceSpec, Target, TorchModel, sha256_bytes, sha256_file

if TYPE_CHECKING:
    import torch

TARGETS = ("ort-fp32", "ort-int8", "ort-int8-dynamic", "ort-int8-weights")
EXACT_BELOW = 100_000
"""Files with less bytes are coded for every candidate; of larger ones the size is estimated first, and float ones
need not be built for that."""
PROMISING = 1.15
"""A float candidate whose weights alone come to more than this times the smallest so far is not built."""
KEPT = 2 << 30
"""So many bytes of finished steps are kept on disk while the search runs."""


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A candidate measured in full: ``point`` has the exact size and the bound of the drop over all evaluation data,
    ``seen`` and ``unseen`` the drops on the half that the search saw and on the other, ``files`` the sha256 of each
    file that was measured."""

    candidate: Candidate
    point: Point
    seen: Drop
    unseen: Drop
    files: tuple[str, ...]

    def holds(self, budget: Budget) -> bool:
        """On either half as measured, and on both together with its margin."""
        drop = max(self.point.bound, self.seen.value, self.unseen.value)
        return budget.holds(drop, self.point.size, self.point.latency_ms)


class Bench:
    """Measures candidates of one source."""

    def __init__(self, context: BuildContext, source: Source, budget: Budget, limits: Limits) -> None:
        begin = time.monotonic()
        options = context.options
        self.source, self.budget, self.limits = source, budget, limits
        self.folder = Path(options.out) / ".search"
        self.context, self.options = context, options
        self.model: TorchModel = source.torch()
        self.task: Any = halved(compress.TrainingTask(source, options, context.store))
        name = self.task.metric_name
        self._seen = Judge(scorer(self.task, held=False), self.model)
        self._unseen = Judge(scorer(self.task, held=True), self.model)
        self.base = margin.checked(self._seen.base, name)
        self.held_base = margin.checked(self._unseen.base, f"{name} on the data that is held out")
        if budget.drop is not None and min(self.base.value, self.held_base.value) <= budget.drop:
            raise DataError(
                f"the {name or 'metric'} of the source itself is {self.base.value:.4f}: anything holds {budget}",
                hint="look whether labels, preprocessing and task fit the model",
            )
        self.folds = bool(foldable(copy.deepcopy(self.model.module).eval(), self.model.example_inputs))
        self.smallest = math.inf
        self._begin = begin

    def usual_targets(self) -> tuple[Target, ...]:
        """Float, then the quantized rows of ONNX Runtime; those that need calibration where there is data."""
        able = [
            t
            for t in targets.select(",".join(TARGETS))
            if not t.needs_calibration or ship.calibration(self.options)
        ]
        return tuple(able)

    def header(self, tried: Sequence[Target]) -> dict[str, Any]:
        """What results depend on: a journal of anything else is not continued."""
        from edgekit.compress.run import cache_key
        from edgekit.compress.step import Context
        from edgekit.compress.steps.prune import Prune

        weights = cache_key(Prune(), self.model.module, Context())
        facts = [
            self.source.spec.text,
            weights,
            self.task.fingerprint,
            [t.name for t in tried],
            str(self.budget),
            self.limits.epochs,
            sorted(self.limits.steps),
            math.isfinite(self.limits.seconds),
        ]
        o = self.options
        data = [o.calib, o.train, o.eval, o.accelerator, o.samples, versions.code()]
        return {"search": sha256_bytes(canonical_json([facts, data])), "seed": self.limits.seed}

    def setup(self) -> Setup:
        """How long a candidate may train and at which rate; the time since this bench was opened counts."""
        from edgekit.compress.training.settings import Loop, looping
        from edgekit.search import probe

        found = Setup()
        if self.options.train or usercode.split(self.options.task) is not None:
            with (
                looping(Loop(device=self.options.accelerator)),
                self.context.progress.task("how fast it trains, and at which rate"),
            ):
                found = probe.setup(self.task, self.model.module, self.limits)
        return replace(found, seconds=round(time.monotonic() - self._begin, 2))

    def evaluate(self, candidate: Candidate) -> Point:
        """Compress, export, quantize, lower, run. What a step or target refuses is a result too."""
        begin = time.monotonic()
        try:
            return self._measured(candidate, begin)
        except EdgekitError as error:
            return refused(candidate, error, time.monotonic() - begin)
        finally:
            shutil.rmtree(self.folder / "cache", ignore_errors=True)
            _forget(self.folder / "steps")

    def _measured(self, candidate: Candidate, begin: float) -> Point:
        module = self._compressed(candidate)
        target = targets.select(candidate.target)[0]
        lost = Drop(value=0.0)
        if candidate.steps:
            lost = self._lost(scorer(self.task, held=False)(module))
            weights = estimate_weights(module)
            if self._is_enough(candidate, lost, weights):
                return self._point(candidate, lost, weights, begin)
        subject = self._lowered(module, target)
        runnable = from_source(subject.runnable, subject.pixels)
        if target.scheme is not None or not candidate.steps:
            lost = self._lost(self._seen.of(runnable, subject.model.inputs))
        files = [runnable.main, *runnable.companions]
        whole = sum(f.stat().st_size for f in files)
        exact = whole < EXACT_BELOW
        size = estimate(files, subject.model)
        if exact:
            size = pack(files, self.folder / "cache" / "size.ekz").stat().st_size
        point = replace(self._point(candidate, lost, size, begin), exact=exact, built=True)
        if self.budget.latency_ms is not None and self.budget.holds(point.bound, size, None):
            point = replace(point, latency_ms=self._latency(runnable))
        point = replace(point, seconds=round(time.monotonic() - begin, 2))
        self.saw(point)
        return point

    def _is_enough(self, candidate: Candidate, lost: Drop, weights: int) -> bool:
        """Whether what PyTorch says decides already, without a build."""
        bound = lost.value + self._expected(lost, candidate)
        if self.budget.drop is not None and bound > self.budget.drop + 1e-9:
            return True  # quantizing it will not bring the metric back
        target = targets.select(candidate.target)[0]
        if target.scheme is not None or self.budget.latency_ms is not None:
            return False
        return weights > min(PROMISING * self.smallest, 2 * EXACT_BELOW)

    def _lost(self, got: Score) -> Drop:
        return margin.drop(self.base, margin.checked(got, self.task.metric_name))

    def _margin(self, drop: Drop, candidate: Candidate) -> float:
        """For chance; what computes as the source does needs none."""
        target = targets.select(candidate.target)[0]
        if not candidate.steps and target.scheme is None:
            return 0.0
        return margin.margin(drop, self.budget.confidence)

    def _expected(self, drop: Drop, candidate: Candidate) -> float:
        """The margin that the drop would have on both halves of the data."""
        return self._margin(margin.both(drop, drop), candidate)

    def saw(self, point: Point) -> None:
        """Remember the smallest that was built and holds: what is clearly larger need not be built."""
        if point.built and self.budget.holds(point.bound, point.size, point.latency_ms):
            self.smallest = min(self.smallest, point.size)

    def check(self, candidate: Candidate, point: Point) -> Checked:
        """Everything about a candidate that the search only estimated or did not look at."""
        try:
            module = self._compressed(candidate)
            if candidate.steps and self.budget.drop is not None:
                lost = margin.drop(self.held_base, scorer(self.task, held=True)(module))
                if lost.value > self.budget.drop + 1e-9:
                    return Checked(candidate=candidate, point=point, seen=lost, unseen=lost, files=())
            subject = self._lowered(module, targets.select(candidate.target)[0])
            runnable = from_source(subject.runnable, subject.pixels)
            files = [runnable.main, *runnable.companions]
            digests = tuple(sha256_file(f) for f in files)
            size = point.size
            if not point.exact:
                size = pack(files, self.folder / "cache" / "size.ekz").stat().st_size
            seen, unseen = self.drops(runnable, subject.model.inputs)
        finally:
            shutil.rmtree(self.folder / "cache", ignore_errors=True)
        whole = margin.both(seen, unseen)
        exact = replace(
            point, size=size, exact=True, built=True, drop=whole.value, margin=self._margin(whole, candidate)
        )
        return Checked(candidate=candidate, point=exact, seen=seen, unseen=unseen, files=digests)

    def drops(self, runnable: Runnable, inputs: Any) -> tuple[Drop, Drop]:
        """What files lose on the half that the search saw, and on the other."""
        name = self.task.metric_name
        seen = margin.drop(self.base, margin.checked(self._seen.of(runnable, inputs), name))
        unseen = margin.drop(self.held_base, margin.checked(self._unseen.of(runnable, inputs), name))
        return seen, unseen

    def _point(self, candidate: Candidate, lost: Drop, size: int, begin: float) -> Point:
        return Point(
            line=candidate.line,
            target=candidate.target,
            drop=lost.value,
            margin=self._expected(lost, candidate),
            size=size,
            seconds=round(time.monotonic() - begin, 2),
        )

    def _compressed(self, candidate: Candidate) -> torch.nn.Module:
        from edgekit.compress import plan
        from edgekit.compress.run import run
        from edgekit.compress.step import Context
        from edgekit.compress.training.settings import Loop, looping

        recipe_context = Context(
            task=self.task, example_inputs=self.model.example_inputs, seed=self.limits.seed
        )
        module = copy.deepcopy(self.model.module)
        with looping(Loop(device=self.options.accelerator)):
            made, _ = run(module, candidate.steps, recipe_context, work=self.folder / "steps", judged=False)
        fresh = copy.deepcopy(self.model.module)  # as the plan will be loaded: the same order of weights
        return plan.rebuilt(fresh, candidate.steps, recipe_context.tensors, made.state_dict()).eval()

    def _lowered(self, module: torch.nn.Module, target: Target) -> Subject:
        options = ship.shipped_options(self.options, Ship(target=target.name))
        context = BuildContext(
            store=Store(self.folder / "cache"), options=options, progress=self.context.progress
        )
        spec = SourceSpec(text=self.source.spec.text, kind=MODULE)
        graph = graph_of(context, Source(spec, context.store, loaded=ship.module_of(self.model, module)))
        samples = self._calibration(options, graph.exported) if target.uses_calibration else None
        return lower_for(context, graph, target, samples).subject

    def _calibration(self, options: Options, exported: stages.Exported) -> SampleSet | None:
        data = ship.calibration(options)
        if data is None:
            return None
        samples = user_samples(
            self.context.store,
            data,
            exported.model.inputs,
            origin="calibration",
            preprocessing=options.preprocessing or exported.record.preprocessing,
        )
        return samples.spread(options.samples)

    def _latency(self, runnable: Runnable) -> float:
        from edgekit.devices import catalogue
        from edgekit.devices.bench import BenchSettings, bench_devices

        plugins.backend(runnable.backend)
        example = {k: v.detach().cpu().numpy() for k, v in self.model.example_inputs.items()}
        timed = replace(runnable, inputs=example)
        devices = catalogue.select(self.budget.device)
        settings = BenchSettings(processes=3, seconds=0.3, wait_s=60.0)
        result: Any = next(iter(bench_devices([timed], devices, settings=settings).values()))
        if isinstance(result, EdgekitError):
            raise result
        return float(result.p50_ms)

    def clean(self) -> None:
        """Remove what only the search needed; the journal stays."""
        shutil.rmtree(self.folder, ignore_errors=True)


def halved(work: compress.TrainingTask) -> Any:
    """The task with a metric for the search and another for the end. Raises ``UsageError`` where it has but one."""
    if not work.exists:
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


def scorer(task: Any, *, held: bool) -> Callable[[Any], Score]:
    """The task's metric on the data that the search sees, or on what is ``held`` out, with its values on parts of it
    where the task can tell: built-in ones can, others by ``scores(model)`` (``holdout_scores``), a number a sample."""

    def judge(model: Any) -> Score:
        return task.judge(model, held=held)  # type: ignore[no-any-return]

    def own(model: Any) -> Score:
        import torch

        each = getattr(task, "holdout_scores" if held else "scores", None)
        with torch.no_grad():
            if callable(each):
                return margin.of_values(each(model))
            return Score(value=float((task.holdout_metric if held else task.metric)(model)))

    return judge if callable(getattr(task, "judge", None)) else own


def _forget(steps: Path) -> None:
    """Keep the latest finished steps only."""
    files = sorted(steps.glob("step-*"), key=lambda p: p.stat().st_mtime) if steps.is_dir() else []
    size = sum(f.stat().st_size for f in files)
    for file in files:
        if size <= KEPT:
            return
        size -= file.stat().st_size
        file.unlink()
