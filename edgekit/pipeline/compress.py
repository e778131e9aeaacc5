"""The compress stage: a source and a recipe to a plan folder, which is a source again. Cached by content.

A second identical run finds the plan in the cache and imports neither torch nor the user's files. A run that
was killed goes on from the step and the training checkpoint that it had reached.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edgekit.artifact.manifest import StepRecord
from edgekit.core import versions
from edgekit.core.config import Options
from edgekit.core.store import Key, Store, canonical_json, scratch
from edgekit.errors import UsageError
from edgekit.graph.records import read_json
from edgekit.load import Dependency, Recorder, environment_fingerprint, unchanged
from edgekit.load.source import Source
from edgekit.pipeline.stages import BuildContext
from edgekit.types import SourceSpec, sha256_file

if TYPE_CHECKING:
    from edgekit.compress.analysis import Findings
    from edgekit.compress.recipes import Recipe
    from edgekit.compress.training.train import Task

PLAN, WEIGHTS, TENSORS = "plan.json", "weights.safetensors", "plan.safetensors"
TIMES = "times.json"


@dataclass(frozen=True, kw_only=True)
class Compressed:
    """A recipe's result: the plan folder as a source, and what each step did. ``rows`` are the step reports
    (``step``, ``before``, ``after``, ``seconds``)."""

    folder: Path
    source: Source
    metric: str
    rows: tuple[Mapping[str, Any], ...]
    step: StepRecord


class Work:
    """What the steps are to learn, opened at most once, and its identity without opening it.

    ``task`` is one that is open already; ``folder`` is where steps are kept while the recipe runs.
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
        self._source, self._options, self._store = source, options, store
        self._task = task
        self.folder = folder

    @property
    def given(self) -> bool:
        """Whether there is a task at all."""
        return self._task is not None or bool(self._options.task)

    @property
    def fingerprint(self) -> str:
        """Identity of the data, the loss and the metric; ``""`` without a task."""
        if not self.given:
            return ""
        if self._task is not None:
            return self._task.fingerprint
        known = self._store.recall("task", self._key())
        if known and unchanged(tuple(msgspec.convert(d, Dependency) for d in known["dependencies"])):
            return str(known["fingerprint"])
        return self.open().fingerprint

    def open(self) -> Task:
        """The task. Raises as :func:`edgekit.compress.training.tasks.open_task`."""
        if self._task is None:
            from edgekit.compress.training.tasks import open_task

            o = self._options
            model = self._source.torch()
            with Recorder() as recorder:
                self._task = open_task(o.task, model, data=o.train, evaluation=o.eval)
                fingerprint = self._task.fingerprint
            note = {"fingerprint": fingerprint, "dependencies": [asdict(d) for d in recorder.dependencies]}
            self._store.remember("task", self._key(), note)
        return self._task

    def _key(self) -> dict[str, object]:
        o = self._options
        return {
            "task": (o.task, o.train, o.eval),
            "folder": str(Path.cwd()),
            "source": self._source.sha256,
            "environment": environment_fingerprint(),
            "edgekit": versions.code(),
        }


def compress(context: BuildContext, source: Source, recipe: Recipe, work: Work | None = None) -> Compressed:
    """Run ``recipe`` on ``source``, or find that it was run.

    Raises ``UsageError`` when the recipe trains and no task is given, or the source is an object in memory;
    ``SourceError`` when it is no PyTorch module; what the steps raise.
    """
    work = work or Work(source, context.options, context.store)
    if source.in_memory:
        raise UsageError(
            "a recipe needs a source that can be loaded again",
            hint="give a factory (file.py:factory), or apply the steps yourself (edgekit.compress.step.run)",
        )
    if recipe.trains and not work.given:
        raise UsageError(
            f"the recipe trains ({recipe.line}), and there is nothing to train on",
            hint="pass --task classification --train DATA --eval DATA, --task file.py:task, or set "
            "training.epochs=0",
        )
    options = {"recipe": recipe.line, "steps": _spelled(recipe), "seed": recipe.seed}
    key = Key(
        name="compress",
        inputs=(source.sha256, work.fingerprint),
        options={**options, "accelerator": context.options.accelerator},
        versions=versions.of("torch", "safetensors", "lightning-fabric"),
    )
    folder = work.folder or context.store.root / "compressing" / key.digest[:32]
    result = context.store.step(key, lambda out: _produce(context, source, recipe, _Run(work, folder), out))
    if work.folder is None:
        shutil.rmtree(folder, ignore_errors=True)
    return _described(
        context, source, result.directory, replace(_record(key), seconds=round(result.seconds, 3))
    )


@dataclass(frozen=True)
class _Run:
    work: Work
    folder: Path


def _produce(context: BuildContext, source: Source, recipe: Recipe, run: _Run, out: Path) -> None:
    from edgekit.compress import plan, step
    from edgekit.compress.training.engine import looping

    model = source.torch()
    origin = replace(
        plan.origin(source.spec, out), path=str(source.spec.path.resolve() if source.spec.path else "")
    )
    recipe_context = step.Context(
        task=run.work.open() if run.work.given else None,
        example_inputs=model.example_inputs,
        seed=recipe.seed,
    )
    with looping(_loop(context)), context.progress.task(f"compress: {recipe.line}"):
        copied = copy.deepcopy(model.module)  # the source stays what it was
        module, report = step.run(copied, recipe.steps, recipe_context, work=run.folder)
        step.save(out, module, recipe.steps, report, recipe_context, origin=origin)
        _same_again(source, plan.read(out), module)
    (out / TIMES).write_bytes(canonical_json([r.seconds for r in report.steps]))


def _loop(context: BuildContext) -> Any:
    from edgekit.compress.training.engine import Loop

    o = context.options
    return Loop(device=o.accelerator, loggers=o.log, logs=Path(o.out) / "logs", progress=context.progress)


def _same_again(source: Source, made: Any, module: Any) -> None:
    """A plan that does not give back the model it was made from never leaves here."""
    import torch

    from edgekit.compress.plan import restore
    from edgekit.errors import SourceError

    with torch.random.fork_rng(devices=[]):
        fresh = restore(copy.deepcopy(source.torch().module), made)
    got, want = fresh.state_dict(), module.state_dict()
    different = [k for k in want if k not in got or not torch.equal(got[k].cpu(), want[k].cpu())]
    if different or len(got) != len(want):
        raise SourceError(
            f"the plan does not give the compressed model back: {', '.join(different[:5])} differ",
            hint="a step changed the structure without recording it; please report the recipe",
        )


def _described(context: BuildContext, source: Source, folder: Path, record: StepRecord) -> Compressed:
    from edgekit.compress.plan import remember

    remember(folder, context.store)
    document = json.loads((folder / PLAN).read_text(encoding="utf-8"))
    rows = [
        {**row, "seconds": seconds}
        for row, seconds in zip(document["report"]["steps"], read_json(folder / TIMES), strict=True)
    ]
    spec = SourceSpec(text=source.spec.text, kind="plan", path=folder)
    metric = document["report"]["metric"]
    notes = tuple(told(row, metric) for row in rows)
    return Compressed(
        folder=folder,
        source=Source(spec, context.store, trust=context.options.trust, network=context.options.network),
        metric=metric,
        rows=tuple(rows),
        step=replace(record, output_sha256=sha256_file(folder / WEIGHTS), notes=notes),
    )


def told(row: Mapping[str, Any], metric: str) -> str:
    """One step in one line, for manifests."""
    before, after = row["before"], row["after"]
    parts = [
        f"{name} {before[name]:,} → {after[name]:,}" for name in ("parameters", "nonzero", "macs", "bytes")
    ]
    if after["metric"] is not None:
        parts.append(f"{metric} {before['metric']:.4f} → {after['metric']:.4f}")
    return f"{row['step']}: {', '.join(parts)}"


def _record(key: Key) -> StepRecord:
    return StepRecord(
        name=key.name, options=key.options, input_sha256=key.inputs[0], versions=key.versions, seconds=0.0
    )


def _spelled(recipe: Recipe) -> list[dict[str, Any]]:
    from edgekit.compress.step import options

    return [{"name": s.NAME, **options(s)} for s in recipe.steps]


def deliver(compressed: Compressed, recipe: Recipe, source: Source, out: Path, *, comment: str = "") -> Path:
    """Copy the plan to ``out``, the path of its source now relative to it, with the recipe (``comment`` at its head)
    beside it.

    What else is in ``out`` stays; each file appears as a whole.
    """
    from edgekit.compress import plan, recipes

    out.mkdir(parents=True, exist_ok=True)
    origin = plan.origin(source.spec, out)
    document = json.loads((compressed.folder / PLAN).read_text(encoding="utf-8"))
    document["source"] = asdict(origin)
    with scratch(out) as work:
        for name in (WEIGHTS, TENSORS):
            shutil.copyfile(compressed.folder / name, work / name)
        (work / PLAN).write_text(json.dumps(document, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        recipes.write(recipe, work / "recipe.toml", comment=comment)
        for name in (TENSORS, WEIGHTS, "recipe.toml", PLAN):  # the plan last: it makes the folder one
            (work / name).replace(out / name)
    plan.remember(out)
    return out


_OBSERVED = 8
"""Batches whose activations the analysis looks at."""


def analyze(context: BuildContext, source: Source, work: Work | None = None) -> Findings:
    """The layers' distributions; activations over the task's data, else ``--calib`` or ``--eval``, else the example."""
    from edgekit.compress import analysis, step
    from edgekit.compress.structured.depth import influences

    model, options = source.torch(), context.options
    data = "" if work is not None else options.train or options.calib or options.eval
    work = work or Work(source, options, context.store)

    def run(module: Any) -> None:
        import torch

        if data:
            from edgekit.compress.training import dataset

            loaded = dataset.load(data, model)
            with torch.no_grad():
                for _, batch in zip(range(_OBSERVED), loaded.batches(32), strict=False):
                    module(**batch.inputs)
        elif work.given and work.open().steps():
            step.Context(task=work.open()).observe(module, _OBSERVED, step="analysis")
        else:
            with torch.no_grad():
                step.forward(module, model.example_inputs)

    with context.progress.task("analyze"):
        layers = analysis.analyze(copy.deepcopy(model.module), run)
        return analysis.findings(layers, influences(copy.deepcopy(model.module), model.example_inputs))
