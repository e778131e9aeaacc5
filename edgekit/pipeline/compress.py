"""The compress stage: a source and a recipe to a plan folder, which is a source again. Cached by content.

A second identical run finds the plan in the cache and imports neither torch nor the user's files. A run that
was killed goes on from the step and the training checkpoint that it had reached.
"""

from __future__ import annotations

import copy
import os
import shutil
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.artifact.manifest import StepRecord
from edgekit.compress import arithmetic, made_from, plan, recipes
from edgekit.compress.plan import PLAN, TENSORS, WEIGHTS
from edgekit.compress.recipes import Recipe
from edgekit.compress.step import CompressionReport, Context, StepReport, options
from edgekit.compress.training.settings import Loop, looping, wait_for_others, world
from edgekit.compress.training.task import Task
from edgekit.core import versions
from edgekit.core.config import Options
from edgekit.core.files import scratch
from edgekit.core.store import Key, Store, canonical_json
from edgekit.errors import UsageError
from edgekit.graph.records import read_json
from edgekit.load import Recorder, known, parse, usercode
from edgekit.load.shapes import Shapes
from edgekit.load.source import Source
from edgekit.pipeline import several
from edgekit.pipeline.stages import BuildContext
from edgekit.types import SourceSpec, sha256_file

if TYPE_CHECKING:
    from edgekit.compress.analysis import Findings

TIMES = "times.json"


@dataclass(frozen=True, kw_only=True)
class Compressed:
    """A recipe's result: the plan folder as a source, and what each step did."""

    folder: Path
    source: Source
    report: CompressionReport
    step: StepRecord


class TrainingTask:
    """What the steps are to learn, opened at most once, and its identity without opening it.

    ``options`` say what it is; ``task`` is one that is open already; ``folder`` is where steps are
    kept while the recipe runs.
    """

    def __init__(
        self,
        source: Source,
        options: Options,
        store: Store,
        *,
        task: Task | None = None,
        folder: Path | None = None,
    ) -> None:
        self._source, self.options, self._store = source, options, store
        self._task = task
        self.folder = folder

    @property
    def exists(self) -> bool:
        """Whether there is a task at all."""
        return self._task is not None or bool(self.options.task)

    @property
    def fingerprint(self) -> str:
        """Identity of the data, the loss and the metric; ``""`` without a task."""
        if not self.exists:
            return ""
        if self._task is not None:
            return self._task.fingerprint
        note = known.recall(self._store, "task", self._key())
        return str(note["fingerprint"]) if note is not None else self.open().fingerprint

    @property
    def reads(self) -> Recorder | None:
        """What a task of the user's own reads while it is learned; of data the fingerprint tells all."""
        text = self.options.task
        return usercode.reads(text) if usercode.split(text) is not None else None

    def open(self) -> Task:
        """The task. Raises as :func:`edgekit.compress.training.tasks.open_task`."""
        if self._task is None:
            from edgekit.compress.training.tasks import open_task

            o = self.options
            model = self._source.torch()
            with Recorder() as recorder:
                self._task = open_task(o.task, model, data=o.train, evaluation=o.eval)
                fingerprint = self._task.fingerprint
            known.remember(self._store, "task", self._key(), {"fingerprint": fingerprint}, recorder)
        return self._task

    def _key(self) -> dict[str, object]:
        o = self.options
        return {
            "task": (o.task, o.train, o.eval),
            "source": self._source.sha256,
        }


def named(context: BuildContext, text: str) -> Source:
    """The source that a SOURCE text names, under the options in force."""
    o = context.options
    return Source(parse(text), context.store, trust=o.trust, network=o.network, shapes=Shapes.of(o))


def compress(
    context: BuildContext, source: Source, recipe: Recipe, training: TrainingTask | None = None
) -> Compressed:
    """Run ``recipe`` on ``source``, or find that it was run.

    Raises ``UsageError`` when the recipe trains and no task is given, or the source is an object in memory;
    ``SourceError`` when it is no PyTorch module; what the steps raise.
    """
    training = training or TrainingTask(source, context.options, context.store)
    if source.in_memory:
        raise UsageError(
            "a recipe needs a source that can be loaded again",
            hint="give a factory (file.py:factory), or apply the steps yourself (edgekit.compress.run.run)",
        )
    if recipe.trains and not training.exists:
        raise UsageError(
            f"the recipe trains ({recipe.line}), and there is nothing to train on",
            hint="pass --task classification --train DATA --eval DATA, --task file.py:task, or set "
            "training.epochs=0",
        )
    steps = [{"name": s.NAME, **options(s)} for s in recipe.steps]
    key = Key(
        name="compress",
        inputs=(source.sha256, training.fingerprint),
        options={
            "recipe": recipe.line,
            "steps": steps,
            "seed": recipe.seed,
            "accelerator": context.options.accelerator,
            **({"processes": count} if (count := _processes(context.options, recipe)) > 1 else {}),
        },
        versions={**versions.of("torch", "safetensors", "lightning-fabric"), **arithmetic.described()},
    )
    if count > 1 and world() == 1 and not context.store.has(key):
        made = several.train(context, source.spec.text, recipe, training.options)
        if not context.store.has(key):  # what the code read is not known: the result is for this run alone
            return _compressed(context, source, key, made.folder, made.seconds)
    folder = training.folder or context.store.root / "compressing" / key.digest[:32]
    produce = partial(_produce, context, source, recipe, training, folder)
    result = context.store.step(key, produce, training.reads)
    if training.folder is None:
        wait_for_others()  # a slower one may still be at the last of the finished steps
        shutil.rmtree(folder, ignore_errors=True)
    return _compressed(context, source, key, result.directory, result.seconds)


def _processes(options: Options, recipe: Recipe) -> int:
    """How many processes train: as many as ``torchrun`` started, else as asked for."""
    return (world() if world() > 1 else options.processes) if recipe.trains else 1


def _produce(
    context: BuildContext, source: Source, recipe: Recipe, training: TrainingTask, folder: Path, out: Path
) -> None:
    """Run the recipe into ``out``: the plan, and how long each step took. ``folder`` keeps finished steps."""
    from edgekit.compress.run import check_plan, run

    model = source.torch()
    original = source.original or model
    made = made_from.of(source.spec, original.module, source.read)
    recipe_context = Context(
        task=training.open() if training.exists else None,
        example_inputs=model.example_inputs,
        seed=recipe.seed,
    )
    o = context.options
    loop = Loop(device=o.accelerator, loggers=o.log, logs=Path(o.out) / "logs", progress=context.progress)
    with looping(loop), context.progress.task(f"compress: {recipe.line}"):
        copied = copy.deepcopy(model.module)  # the source stays what it was
        module, report = run(copied, recipe.steps, recipe_context, work=folder)
        named_so = _origin(source, out)
        plan.save(out, module, recipe.steps, report, recipe_context, origin=named_so, made=made)
        check_plan(out, source.torch().module, module)
    (out / TIMES).write_bytes(canonical_json([r.seconds for r in report.steps]))


def _origin(source: Source, folder: Path) -> SourceSpec:
    """How a plan of the cache names its source: by the place where it is."""
    path = source.spec.path
    return replace(plan.origin(source.spec, folder), path=path.resolve() if path is not None else None)


def _here(context: BuildContext, source: Source, key: Key, folder: Path) -> Path:
    """The plan, naming ``source``. The cache may have it from the same code in another place, and that place's files
    are not this source's: they may be edited, or gone."""
    document = plan.read_document(folder)
    own = plan.origin_record(_origin(source, folder))
    if document.get("source") == own:
        return folder

    def produce(out: Path) -> None:
        for name in (WEIGHTS, TENSORS, TIMES):
            shutil.copyfile(folder / name, out / name)
        plan.write_document(out, document | {"source": own})

    return context.store.step(
        Key(name="placed", inputs=(key.digest,), options=own, versions={}), produce
    ).directory


def _compressed(context: BuildContext, source: Source, key: Key, folder: Path, seconds: float) -> Compressed:
    """What the plan in ``folder`` says, with the times beside it."""
    folder = _here(context, source, key, folder)
    plan.remember(folder, context.store)
    report = plan.read_report(folder)
    steps = tuple(
        replace(step, seconds=seconds)
        for step, seconds in zip(report.steps, read_json(folder / TIMES), strict=True)
    )
    spec = SourceSpec(text=source.spec.text, kind="plan", path=folder)
    options = context.options
    return Compressed(
        folder=folder,
        source=Source(
            spec, context.store, trust=options.trust, network=options.network, shapes=source.shapes
        ),
        report=replace(report, steps=steps),
        step=StepRecord(
            name=key.name,
            options=key.options,
            input_sha256=key.inputs[0],
            output_sha256=sha256_file(folder / WEIGHTS),
            versions=key.versions,
            seconds=round(seconds, 3),
            notes=tuple(summary(step, report.metric) for step in steps),
        ),
    )


def summary(step: StepReport, metric: str) -> str:
    """One step in one line, for manifests."""
    before, after = step.before, step.after
    parts = [
        f"{name} {getattr(before, name):,} → {getattr(after, name):,}"
        for name in ("parameters", "nonzero", "macs", "bytes")
    ]
    if after.metric is not None:
        parts.append(f"{metric} {before.metric:.4f} → {after.metric:.4f}")
    return f"{step.step}: {', '.join(parts)}"


def refuse_others_files(out: Path, *more: str) -> None:
    """Before any work: raise :class:`UsageError` where ``out`` has files by the names of a plan's, or by those in
    ``more``, and no plan of edgekit's is there: they are somebody's."""
    names = (PLAN, WEIGHTS, TENSORS, "recipe.toml", *more)
    there = [name for name in names if os.path.lexists(out / name)]
    if there and not plan.is_one(out):
        raise UsageError(
            f"{out / there[0]} is there already and was not written by edgekit compress: it was left as it is",
            hint="name another folder (--out DIR), or move it away",
        )


def deliver(compressed: Compressed, recipe: Recipe, source: Source, out: Path, *, comment: str = "") -> Path:
    """Copy the plan to ``out``, the path of its source now relative to it, with the recipe (``comment`` at its head)
    beside it.

    What else is in ``out`` stays; each file appears as a whole.
    """
    document = plan.read_document(compressed.folder)
    document["source"] = plan.origin_record(plan.origin(source.spec, out))
    with scratch(out) as work:
        for name in (WEIGHTS, TENSORS):
            shutil.copyfile(compressed.folder / name, work / name)
        plan.write_document(work, document)
        recipes.write(recipe, work / "recipe.toml", comment=comment)
        for name in (TENSORS, WEIGHTS, "recipe.toml", PLAN):  # the plan last: it makes the folder one
            (work / name).replace(out / name)
    plan.remember(out)
    return out


def analyze(context: BuildContext, source: Source, training: TrainingTask | None = None) -> Findings:
    """The layers' distributions; activations over the task's data, else ``--calib`` or ``--eval``, else the example."""
    from edgekit.compress import analysis

    options, model = context.options, source.torch()
    data = "" if training is not None else options.train or options.calib or options.eval
    training = training or TrainingTask(source, options, context.store)
    with context.progress.task("analyze"):
        return analysis.study(model, data, training.open() if training.exists and not data else None)
