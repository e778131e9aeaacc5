"""What one candidate of a search costs: compressed in PyTorch, exported, quantized and lowered by the stages of a
build, run on its runtime, coded, timed.
"""

from __future__ import annotations

import copy
import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from edgekit.compress import margin, plan
from edgekit.compress.margin import Drop, Score
from edgekit.compress.recipes import Ship
from edgekit.compress.run import cache_key, run
from edgekit.compress.step import Context
from edgekit.compress.steps.batch_norm import foldable
from edgekit.compress.steps.prune import Prune
from edgekit.compress.training.settings import Loop, looping
from edgekit.core import targets, versions
from edgekit.core.config import Options
from edgekit.core.store import Store, canonical_json
from edgekit.devices import catalogue
from edgekit.devices.bench import BenchSettings, bench_devices
from edgekit.devices.runnable import Runnable
from edgekit.errors import DataError, EdgekitError
from edgekit.load import usercode
from edgekit.load.data import SampleSet, user_samples
from edgekit.load.shapes import SampleForm, Shapes
from edgekit.load.source import MODULE, Source
from edgekit.pipeline.compress import TrainingTask
from edgekit.pipeline.lower import graph_of, lower_for
from edgekit.pipeline.stages import BuildContext, Exported
from edgekit.pipeline.verify import Subject
from edgekit.search import probe, ship
from edgekit.search.budget import Budget, Sizes
from edgekit.search.judge import Judge, from_source, halved, scorer
from edgekit.search.limits import Limits
from edgekit.search.ship import pack
from edgekit.search.sizes import (
    download,
    download_weights,
    estimate,
    estimate_weights,
    on_device,
    weights_on_device,
)
from edgekit.search.trials import Candidate, Setup, Trial, refused
from edgekit.types import Measurement, SourceSpec, Target, TensorSpec, TorchModel, sha256_bytes, sha256_file

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
    """A candidate measured in full: ``trial`` has the exact sizes and the bound of the drop on the data that was held
    out, ``seen`` and ``unseen`` the drops on the half that the search saw and on the other, ``files`` the sha256 of
    each file that was measured."""

    candidate: Candidate
    trial: Trial
    seen: Drop
    unseen: Drop
    files: tuple[str, ...]

    def holds(self, budget: Budget) -> bool:
        """On either half as measured, and on the one that was held out with its margin."""
        drop = max(self.trial.bound, self.seen.value, self.unseen.value)
        return budget.holds(drop, self.trial.sizes, self.trial.latency_ms)


class Evaluator:
    """Measures candidates of one source."""

    def __init__(
        self,
        context: BuildContext,
        source: Source,
        budget: Budget,
        limits: Limits,
        folder: Path | None = None,
    ) -> None:
        begin = time.monotonic()
        options = context.options
        self.source, self.budget, self.limits = source, budget, limits
        self.folder = folder or Path(options.out) / ".search"
        self.context, self.options = context, options
        self.model: TorchModel = source.torch()
        self.task = halved(TrainingTask(source, options, context.store))
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
        self.unprovable = unprovable(budget, self.held_base)
        self.folds = bool(foldable(copy.deepcopy(self.model.module).eval(), self.model.example_inputs))
        self.smallest = math.inf
        self._begin = begin

    def usual_targets(self) -> tuple[Target, ...]:
        """Float, then the quantized rows of ONNX Runtime; those that need calibration where there is data."""
        rows = targets.select(",".join(TARGETS))
        return tuple(t for t in rows if not t.needs_calibration or ship.calibration(self.options))

    def header(self, tried: Sequence[Target]) -> dict[str, object]:
        """What results depend on: a journal of anything else is not continued."""
        weights = cache_key(Prune(), self.model.module, Context())
        facts = [
            self.source.spec.text,
            weights,
            self.task.fingerprint,
            [t.name for t in tried],
            str(self.budget),
            self.limits.epochs,
            sorted(self.limits.steps),
            math.isfinite(self.limits.seconds),  # a clock decides how long candidates train
        ]
        o = self.options
        data = [o.calib, o.train, o.eval, o.accelerator, o.samples, versions.code(above=True)]
        return {"search": sha256_bytes(canonical_json([facts, data])), "seed": self.limits.seed}

    def setup(self) -> Setup:
        """How long a candidate may train and at which rate; the time since this was opened counts."""
        setup = Setup()
        if self.options.train or usercode.split(self.options.task) is not None:
            with (
                looping(Loop(device=self.options.accelerator)),
                self.context.progress.task("how fast it trains, and at which rate"),
            ):
                setup = probe.setup(self.task, self.model.module, self.limits)
        return replace(setup, seconds=round(time.monotonic() - self._begin, 2))

    def evaluate(self, candidate: Candidate) -> Trial:
        """Compress, export, quantize, lower, run. What a step or target refuses is a result too."""
        return self.evaluate_both(candidate)[0]

    def evaluate_both(self, candidate: Candidate) -> tuple[Trial, Trial | None]:
        """The same, and of what was built what it would be had :meth:`too_large` said that it need not be; ``None``
        where that is not asked."""
        begin = time.monotonic()
        try:
            return self._measured(candidate, begin)
        except EdgekitError as error:
            return refused(candidate, error, time.monotonic() - begin), None
        finally:
            shutil.rmtree(self.folder / "cache", ignore_errors=True)
            _forget(self.folder / "steps")

    def _measured(self, candidate: Candidate, begin: float) -> tuple[Trial, Trial | None]:
        module = self._compressed(candidate)
        target = _target(candidate)
        lost, unbuilt = Drop(value=0.0), None
        if candidate.steps:
            lost = self._lost(scorer(self.task, held=False)(module))
            weights = Sizes(
                ekz=estimate_weights(module),
                file=weights_on_device(module),
                download=download_weights(module),
            )
            unbuilt = self._trial(candidate, lost, weights, begin)
            if self._is_enough(candidate, lost) or self.too_large(candidate, weights):
                return unbuilt, None
        subject = self._lowered(module, target)
        runnable = from_source(subject.runnable, subject.pixels)
        # A float target's files compute what PyTorch has told already; in the end they are asked all the same.
        if target.scheme is not None or not candidate.steps:
            lost = self._lost(self._seen.of(runnable, subject.model.inputs))
        files = [runnable.main, *runnable.companions]
        exact = on_device(files) < EXACT_BELOW
        sizes = Sizes(
            ekz=self._coded(files) if exact else estimate(files, subject.model),
            file=on_device(files),
            download=download(files),
        )
        trial = replace(self._trial(candidate, lost, sizes, begin), exact=exact, built=True)
        if self.budget.latency_ms is not None and self.budget.holds(trial.bound, sizes, None):
            trial = replace(trial, latency_ms=self._latency(runnable))
        trial = replace(trial, seconds=round(time.monotonic() - begin, 2))
        self.saw(trial)
        return trial, unbuilt

    def _coded(self, files: list[Path]) -> int:
        return pack(files, self.folder / "cache" / "size.ekz").stat().st_size

    def _is_enough(self, candidate: Candidate, lost: Drop) -> bool:
        """Whether what PyTorch says of the metric decides already: quantizing it will not bring that back."""
        bound = lost.value + self._margin(lost, candidate)
        return self.budget.drop is not None and bound > self.budget.drop + 1e-9

    def too_large(self, candidate: Candidate, weights: Sizes) -> bool:
        """Whether a float candidate's weights alone say that it will not be the smallest: then it need not be built."""
        if _target(candidate).scheme is not None or self.budget.latency_ms is not None:
            return False
        return self.budget.smallest(weights) > min(PROMISING * self.smallest, 2 * EXACT_BELOW)

    def _lost(self, score: Score) -> Drop:
        return margin.drop(self.base, margin.checked(score, self.task.metric_name))

    def _margin(self, drop: Drop, candidate: Candidate, number: int = 1) -> float:
        """For chance, in the confirmation of this ``number``; what computes as the source does needs none."""
        if not candidate.steps and _target(candidate).scheme is None:
            return 0.0
        return margin.margin(drop, margin.spent(self.budget.confidence, number))

    def saw(self, trial: Trial) -> None:
        """Remember the smallest that was built and holds: what is clearly larger need not be built."""
        if trial.built and trial.within(self.budget):
            self.smallest = min(self.smallest, self.budget.smallest(trial.sizes))

    def check(self, candidate: Candidate, trial: Trial, number: int) -> Checked:
        """Everything about a candidate that the search only estimated or did not look at: the confirmation of this
        ``number``, from 1. The bound is of the half that the search did not see, and as sure as all confirmations
        together have to be: the other half chose the candidate, and speaks for whatever it chose."""
        try:
            module = self._compressed(candidate)
            if candidate.steps and self.budget.drop is not None:
                lost = margin.drop(self.held_base, scorer(self.task, held=True)(module))
                if lost.value > self.budget.drop + 1e-9:
                    return Checked(candidate=candidate, trial=trial, seen=lost, unseen=lost, files=())
            subject = self._lowered(module, _target(candidate))
            runnable = from_source(subject.runnable, subject.pixels)
            files = [runnable.main, *runnable.companions]
            digests = tuple(sha256_file(f) for f in files)
            sizes = replace(trial.sizes, file=on_device(files), download=download(files))
            sizes = sizes if trial.exact else replace(sizes, ekz=self._coded(files))
            seen, unseen = self.drops(runnable, subject.model.inputs)
        finally:
            shutil.rmtree(self.folder / "cache", ignore_errors=True)
        exact = replace(
            trial,
            size=sizes.ekz,
            file=sizes.file,
            download=sizes.download,
            exact=True,
            built=True,
            drop=unseen.value,
            margin=self._margin(unseen, candidate, number),
        )
        return Checked(candidate=candidate, trial=exact, seen=seen, unseen=unseen, files=digests)

    def drops(self, runnable: Runnable, inputs: tuple[TensorSpec, ...]) -> tuple[Drop, Drop]:
        """What files lose on the half that the search saw, and on the other."""
        name = self.task.metric_name
        seen = margin.drop(self.base, margin.checked(self._seen.of(runnable, inputs), name))
        unseen = margin.drop(self.held_base, margin.checked(self._unseen.of(runnable, inputs), name))
        return seen, unseen

    def _trial(self, candidate: Candidate, lost: Drop, sizes: Sizes, begin: float) -> Trial:
        return Trial(
            line=candidate.line,
            target=candidate.target,
            drop=lost.value,
            margin=self._margin(lost, candidate),
            size=sizes.ekz,
            file=sizes.file,
            download=sizes.download,
            seconds=round(time.monotonic() - begin, 2),
        )

    def _compressed(self, candidate: Candidate) -> torch.nn.Module:
        recipe_context = Context(
            task=self.task, example_inputs=self.model.example_inputs, seed=self.limits.seed
        )
        module = copy.deepcopy(self.model.module)
        with looping(Loop(device=self.options.accelerator)):
            compressed, _ = run(
                module, candidate.steps, recipe_context, work=self.folder / "steps", judged=False
            )
        fresh = copy.deepcopy(self.model.module)  # as the plan will be loaded: the same order of weights
        return plan.rebuilt(fresh, candidate.steps, recipe_context.tensors, compressed.state_dict()).eval()

    def _lowered(self, module: torch.nn.Module, target: Target) -> Subject:
        options = ship.shipped_options(self.options, Ship(target=target.name))
        context = BuildContext(
            store=Store(self.folder / "cache"), options=options, progress=self.context.progress
        )
        spec = SourceSpec(text=self.source.spec.text, kind=MODULE)
        graph = graph_of(context, Source(spec, context.store, loaded=replace(self.model, module=module)))
        samples = self._calibration(options, graph.exported) if target.uses_calibration else None
        return lower_for(context, graph, target, samples).subject

    def _calibration(self, options: Options, exported: Exported) -> SampleSet | None:
        data = ship.calibration(options)
        if data is None:
            return None
        preprocessing = options.preprocessing or exported.record.preprocessing
        samples = user_samples(
            self.context.store,
            data,
            exported.model.inputs,
            origin="calibration",
            preprocessing=preprocessing,
            form=SampleForm.of(exported.example_inputs(), preprocessing, Shapes.of(options)),
        )
        return samples.spread(options.samples)

    def _latency(self, runnable: Runnable) -> float:
        example = {k: v.detach().cpu().numpy() for k, v in self.model.example_inputs.items()}
        timed = replace(runnable, inputs=example)
        devices = catalogue.select(self.budget.device)
        settings = BenchSettings(processes=3, seconds=0.3, wait_s=60.0)
        result = next(iter(bench_devices([timed], devices, settings=settings).values()))
        if isinstance(result, EdgekitError):
            raise result
        assert isinstance(result, Measurement)  # a comparison needs two
        return result.p50_ms

    def clean(self) -> None:
        """Remove what only the search needed; the journal stays."""
        shutil.rmtree(self.folder, ignore_errors=True)


def unprovable(budget: Budget, held: Score) -> str:
    """What is to be said where so few samples are held out that only a candidate that gains could hold the drop."""
    if budget.drop is None:
        return ""
    sure = margin.spent(budget.confidence, 1)
    bound = margin.least(held, sure)
    if bound <= budget.drop + 1e-9:
        return ""
    rows = f"give eval about {2 * margin.enough(budget.drop, sure):,}, or " if budget.drop else ""
    return (
        f"{held.count:,} evaluation samples are held out: with not one of them lost the drop may be "
        f"{100 * bound:.2f} points, more than {budget} allows. {rows}ask for less confidence: "
        f"drop<={100 * budget.drop:g}pt@50% is the drop as measured"
    )


def _target(candidate: Candidate) -> Target:
    return targets.select(candidate.target)[0]


def _forget(steps: Path) -> None:
    """Keep the latest finished steps only."""
    files = sorted(steps.glob("step-*"), key=lambda p: p.stat().st_mtime) if steps.is_dir() else []
    size = sum(f.stat().st_size for f in files)
    for file in files:
        if size <= KEPT:
            return
        size -= file.stat().st_size
        file.unlink()
