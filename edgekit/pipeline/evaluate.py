"""``edgekit verify --eval``: an artifact on evaluation data, beside its source where that is given.

Without the source there is nothing to compare outputs with: then the task's metric of the artifact is held against what
the manifest says of the source on the same data, which is a claim and no proof.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice, repeat
from typing import TYPE_CHECKING

from edgekit.artifact import golden, history, language_again, limits, proof
from edgekit.artifact import manifest as manifests
from edgekit.artifact.gates import Evidence, gates
from edgekit.artifact.golden import Replay
from edgekit.artifact.judge import Judge, Judged
from edgekit.artifact.manifest import Artifact, Manifest
from edgekit.artifact.parity import compare
from edgekit.artifact.rollout import Rollout
from edgekit.artifact.run import runnable
from edgekit.artifact.slices import places
from edgekit.artifact.task import Task
from edgekit.core import plugins
from edgekit.core.config import Options
from edgekit.devices.engines import builder_of
from edgekit.devices.execute import LOCAL, RunResult, run_artifact
from edgekit.errors import SourceError, UsageError
from edgekit.load import Recorder
from edgekit.load.classes import Classes
from edgekit.load.data import DataSpec, Example, SampleSet, user_samples
from edgekit.load.shapes import SampleForm, Shapes
from edgekit.load.source import Source
from edgekit.load.states import states_of
from edgekit.pipeline import api, stages
from edgekit.pipeline.build import EVALUATION, refuse_unusable_metric
from edgekit.pipeline.deliver import EVALUATED, ROLLOUT
from edgekit.pipeline.metric import opened
from edgekit.pipeline.pixels import Pixels, recorded
from edgekit.pipeline.rollouts import Rolled, measured, rolled
from edgekit.pipeline.stages import BuildContext, Exported
from edgekit.pipeline.verify import fitting, kept, near_float32
from edgekit.types import (
    Device,
    Gate,
    Json,
    Lowered,
    OnnxModel,
    Parity,
    Placement,
    TensorSpec,
    Tolerance,
    Verdict,
    sha256_file,
)

if TYPE_CHECKING:
    from edgekit.pipeline.api import ModelSource
    from edgekit.types import Array


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What an artifact gave on ``samples`` inputs. ``parity``: against its source, where that was given."""

    samples: int
    gates: tuple[Gate, ...]
    parity: Parity | None = None
    notes: tuple[str, ...] = ()

    def added(self, replay: Replay) -> Replay:
        """The golden vectors' result with this one's gates in place of those of the same names."""
        own = {g.name for g in self.gates}
        return replace(
            replay,
            gates=(*(g for g in replay.gates if g.name not in own), *self.gates),
            not_repeated=tuple(n for n in replay.not_repeated if n not in own),
            claimed=tuple(n for n in replay.claimed if n not in own),
            notes=tuple(dict.fromkeys((*replay.notes, *self.notes))),
            evaluation=self.parity,
        )


def again(
    artifact: Artifact,
    options: Options,
    *,
    device: Device = LOCAL,
    data: DataSpec | None,
    source: ModelSource | None,
) -> Replay:
    """The golden vectors again, and ``data`` where there is any; ``options`` has limits, metric and trust.

    Raises :class:`UsageError` for a source or a metric without data, and what :func:`golden.replay` and
    :func:`evaluate` raise.
    """
    own = limits.parse(options.limit) if options.limit else None
    if language_again.is_language(artifact):
        if data is not None or source is not None:
            raise UsageError(
                "a language model is verified with the text that it was built with",
                hint="leave --eval and --source out; edgekit build --eval FILE.txt measures on another text",
            )
        result = language_again.replay(artifact, device=device, limits=own)
    elif data is None:
        _refuse_idle(options, source)
        result = _replayed(artifact, options, device, own)
    else:
        few = None if own is None else replace(own, tolerance=_of_vectors(own.tolerance))
        result = _replayed(artifact, options, device, few)
        asked = api.context(options, None)
        result = evaluate(
            asked,
            artifact,
            data,
            source=None if source is None else _opened(asked, source, data, artifact),
            device=device,
        ).added(result)
    golden.adopt(artifact, result)
    history.remember(history.Kind.VERIFY, artifact, gates=result.gates, status=str(result.status))
    return result


def _replayed(artifact: Artifact, options: Options, device: Device, own: limits.Limits | None) -> Replay:
    result = golden.replay(artifact, device=device, limits=own, trust=options.trust, placing=_placement)
    found, allowed = _left_out(result.gates, artifact.manifest)
    return replace(result, gates=found, notes=(*result.notes, *allowed))


def _refuse_idle(options: Options, source: ModelSource | None) -> None:
    """What has no meaning without evaluation data."""
    idle = [name for name, given in (("a source", source), ("a metric", options.metric)) if given]
    if idle:
        raise UsageError(
            f"{' and '.join(idle)} without evaluation data: golden vectors need neither",
            hint="give the data, --eval file.py:callable",
        )


def _of_vectors(limits: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in limits.items() if name not in golden.UNMEASURED}


def _opened(context: BuildContext, source: ModelSource, data: DataSpec, artifact: Artifact) -> Source:
    spec, module = api.opened(source, None, data)
    options = context.options
    return Source(
        spec,
        context.store,
        trust=options.trust,
        network=options.network,
        loaded=module,
        example=Example(data, options.preprocessing),
        shapes=Shapes.again(options, artifact.manifest.source),
    )


@dataclass(frozen=True, kw_only=True)
class _Form:
    """How the source takes samples: its inputs, one set of them, its preprocessing, its classes and task."""

    inputs: tuple[TensorSpec, ...]
    example: Mapping[str, Array]
    preprocessing: Mapping[str, object]
    labels: tuple[str, ...]
    task: str


def evaluate(
    context: BuildContext,
    artifact: Artifact,
    data: DataSpec,
    *,
    source: Source | None = None,
    device: Device = LOCAL,
) -> Evaluation:
    """Run the artifact on every sample of ``data`` and gate what can be told: with ``source`` all of parity and the
    task's metric, without it the metric alone; placement where the runtime's own files tell it.

    ``context.options`` has the user's metric and limits. Raises :class:`SourceError` for files that have changed,
    :class:`DataError` for samples or labels that do not fit, and what running the artifact raises.
    """
    manifests.check_files(artifact)
    manifest, pixels = artifact.manifest, recorded(artifact.manifest)
    exported = None if source is None else stages.export(context, source)
    built = _recorded_form(artifact, pixels)
    form = built if exported is None else _exported_form(exported)
    if source is not None:
        _refuse_another(source, form, built)
    samples = _samples(context, data, form)
    refuse_unusable_metric(context.options, samples)
    stream = None
    if source is not None and exported is not None:
        stream = _stream(context, source, exported, samples, manifest)
    samples = samples if stream is None else stream.filled()
    fed = samples if pixels is None else pixels.samples_fed(samples)
    chosen = fitting(context, manifest.target, built.inputs, samples)
    task = _task(context, form, [s.label for s in kept(samples, chosen)] if samples.labelled else None)
    inputs = (s.inputs for s in kept(fed, chosen))
    trusted = runnable(artifact, trust=context.options.trust)
    with run_artifact(trusted, inputs, device=device, placement=True) as run:
        tolerance, notes = golden.row_limits(manifest.target)
        evidence = Evidence(size_bytes=manifest.size, placement=_placement(artifact, run.placement))
        own, parity = limits.parse(context.options.limit), None
        allowed: tuple[str, ...] = ()
        _refuse_untold(own, evidence)
        if source is not None and exported is not None:
            beside = _Beside(
                context=context, source=source, exported=exported, samples=samples, pixels=pixels
            )
            parity = beside.parity(run, chosen, task, manifest)
            if stream is not None:
                evidence = replace(evidence, rollout=_rolled_out(context, artifact, stream, pixels, device))
            if _compressed(manifest):
                tolerance, notes = _lowering_unknown(tolerance), (*notes, _RECIPE)
            elif _another(exported, manifest):
                notes = (*notes, _ANOTHER.format(source.spec.text))
            found = gates(replace(evidence, parity=parity), tolerance, own)
        else:
            tolerance = own.applied(tolerance)
            found = tuple(g for g in gates(evidence, tolerance) if g.name == "placement")
            found += _metric_alone(manifest, _judged(task, run.outputs), tolerance, samples)
        if "placement" not in own.tolerance:
            found, allowed = _left_out(found, manifest)
    return Evaluation(samples=sum(chosen), gates=found, parity=parity, notes=(*notes, *allowed))


def _refuse_another(source: Source, form: _Form, built: _Form) -> None:
    """A source that takes other inputs than the golden vectors are is none that the artifact was built from."""
    theirs, ours = ({s.name: s for s in f.inputs} for f in (form, built))
    if set(theirs) == set(ours) and all(_fit(theirs[name], built.example[name].shape) for name in ours):
        return
    takes, wants = (", ".join(f"{s.name} {list(s.shape)}" for s in f.inputs) for f in (form, built))
    raise UsageError(
        f"{source.spec.text} takes {takes}; the artifact takes {wants}: it was not built from that",
        hint="give the source that it was built from (source.text of the manifest); one that was built with --shape or "
        "--sequence-length has to take these sizes by itself",
    )


def _fit(spec: TensorSpec, shape: tuple[int, ...]) -> bool:
    return len(spec.shape) == len(shape) and all(
        isinstance(d, str) or d == n for d, n in zip(spec.shape, shape, strict=True)
    )


def _exported_form(exported: Exported) -> _Form:
    record = exported.record
    return _Form(
        inputs=exported.model.inputs,
        example=exported.example_inputs(),
        preprocessing=record.preprocessing,
        labels=record.labels,
        task=record.task,
    )


def _recorded_form(artifact: Artifact, pixels: Pixels | None) -> _Form:
    """The same from the manifest and the first golden vector, which is in the source's layout."""
    manifest = artifact.manifest
    if manifest.golden is None:
        raise SourceError(f"{artifact.directory} has no golden vectors", hint="build the artifact again")
    first = golden.read(artifact.directory / manifest.golden.file)[0][0]
    example = first if pixels is None else pixels.restored(first)
    return _Form(
        inputs=tuple(_as_source(s, example, s.name in manifest.channels_moved) for s in manifest.inputs),
        example=example,
        preprocessing=manifest.preprocessing if pixels is None else pixels.contract.to_mapping(),
        labels=manifest.labels,
        task=manifest.task,
    )


def _as_source(spec: TensorSpec, example: Mapping[str, Array], moved: bool) -> TensorSpec:
    if spec.name not in example:
        raise SourceError(f"the golden vectors have no input {spec.name!r}", hint="build the artifact again")
    array = example[spec.name]
    free = () if moved or len(spec.shape) != array.ndim else spec.shape
    shape = tuple(
        d if isinstance(d, str) else n for d, n in zip(free or array.shape, array.shape, strict=True)
    )
    return TensorSpec(name=spec.name, dtype=array.dtype.name, shape=shape)


def _samples(context: BuildContext, data: DataSpec, form: _Form) -> SampleSet:
    return user_samples(
        context.store,
        data,
        form.inputs,
        origin=EVALUATION,
        preprocessing=form.preprocessing,
        classes=Classes(names=form.labels, required=True),
        form=SampleForm.of(form.example, form.preprocessing, Shapes.of(context.options)),
    )


def _stream(
    context: BuildContext, source: Source, exported: Exported, samples: SampleSet, manifest: Manifest
) -> Rolled | None:
    """The source's rollout, where the build found states or was told of them."""
    built = manifest.details.get(ROLLOUT)
    pairs = built.get("states") if isinstance(built, Mapping) else None
    if not isinstance(pairs, Mapping) or not pairs:
        return None
    declared = {name: str(output) for name, output in pairs.items()}
    states = states_of(exported.model.inputs, exported.model.outputs, declared)
    return rolled(context, source, exported, samples, states)


def _rolled_out(
    context: BuildContext, artifact: Artifact, reference: Rolled, pixels: Pixels | None, device: Device
) -> Rollout:
    fed = reference.samples if pixels is None else pixels.samples_fed(reference.samples)
    return measured(context, runnable(artifact, trust=context.options.trust), reference, fed, device)


def _task(context: BuildContext, form: _Form, labels: Sequence[object] | None) -> Task:
    task = Task(name=form.task)
    if labels is None or all(label is None for label in labels):
        return task
    metric = opened(context.options.metric, Recorder()) if context.options.metric else None
    return replace(task, labels=labels, classes=form.labels, metric=metric)


@dataclass(frozen=True, kw_only=True)
class _Beside:
    """The source that an artifact is compared with, as a build does it."""

    context: BuildContext
    source: Source
    exported: Exported
    samples: SampleSet
    pixels: Pixels | None

    def parity(self, run: RunResult, chosen: Sequence[bool], task: Task, manifest: Manifest) -> Parity:
        """Outputs against the source's, sample by sample."""
        asked = self.samples if self.pixels is None else self.pixels.samples_asked(self.samples)
        reference = stages.reference(self.context, self.source, self.exported, asked)
        noise = self.samples.noise

        def compared(exact: Iterable[Mapping[str, Array]]) -> Parity:
            rows = islice(chain(exact, repeat({})), len(chosen))
            return compare(
                kept(reference.outputs, chosen),
                run.outputs,
                task=task,
                exact=kept(rows, chosen),
                noise=noise,
                places=places(self.exported.model.inputs, self.exported.model.outputs),
            )

        parity = compared(())
        if near_float32(manifest.target, parity):
            parity = compared(stages.float64(self.context, self.source, self.exported, asked))
        return replace(parity, data=EVALUATION)


_RECIPE = (
    "the artifact was compressed by a recipe: its outputs are not the source's, the task's metric is what counts; give "
    "the compressed source (what edgekit compress wrote) to compare outputs"
)


_ANOTHER = (
    "{} is not the source that the artifact was built from: its code or weights changed since (it is exported to "
    "another graph than the manifest says)"
)


def _another(exported: Exported, manifest: Manifest) -> bool:
    """Whether the source is exported to another graph than when the artifact was built, by the same versions."""
    now, then = exported.step, manifest.steps[0] if manifest.steps else None
    if then is None or (then.name, then.options, then.versions) != (now.name, now.options, now.versions):
        return False
    return then.output_sha256 != now.output_sha256


def _compressed(manifest: Manifest) -> bool:
    """Whether a recipe came before the export."""
    return bool(manifest.steps) and manifest.steps[0].name != "export"


def _lowering_unknown(tolerance: Tolerance) -> Tolerance:
    """What remains where the source is not what was lowered."""
    return replace(
        tolerance, snr_db=None, relative_error=None, top1_agreement=None, explained=None, sample_snr_db=None
    )


def _placement(artifact: Artifact, raw: Mapping[str, Json] | None) -> Placement | None:
    """As the runtime reports it, counted on the artifact's own files; ``None`` where they do not tell products."""
    manifest = artifact.manifest
    builder = builder_of(manifest.target.backend)
    if raw is None or not (builder or plugins.info(manifest.target.backend).counts_own_files):
        return None
    path = artifact.model if builder is None else artifact.model.with_name(builder.GRAPH)
    if not path.is_file():
        return None
    main = OnnxModel(
        path=path,
        sha256=sha256_file(path),
        opset=0,
        inputs=manifest.inputs,
        outputs=manifest.outputs,
    )
    lowered = Lowered(
        files=tuple(f.name for f in manifest.files),
        inputs=manifest.inputs,
        outputs=manifest.outputs,
        channels_moved=manifest.channels_moved,
        runtime=manifest.runtime,
        details=manifest.details,
    )
    return plugins.backend(manifest.target.backend).placement(main, manifest.target, lowered, raw)


def _refuse_untold(own: limits.Limits, evidence: Evidence) -> None:
    """A limit of placement where nothing tells what was executed in what."""
    told = evidence.placement is not None and evidence.placement.share is not None
    if "placement" in own.tolerance and not told:
        raise UsageError(
            "--limit placement: the artifact's files do not tell what its runtime computes in",
            hint="leave it out: edgekit build measures it, with the graph that the files were made from",
        )


def _left_out(found: tuple[Gate, ...], manifest: Manifest) -> tuple[tuple[Gate, ...], tuple[str, ...]]:
    """Below the row's limit and within the recorded one layers were left in float on purpose, the manifest says: that
    is a claim, and unproven."""
    claimed = next((g.limit for g in manifest.gates if g.name == "placement"), None)
    gate = next((g for g in found if g.name == "placement" and g.verdict is Verdict.FAIL), None)
    if gate is None or claimed is None or not gate.value or gate.value < claimed:
        return found, ()
    said = (
        f"layers were left in float on purpose, says the manifest: {proof.percent(claimed)} of the MACs are asked for, "
        f"not {proof.percent(gate.limit or 0)}"
    )
    claim = replace(gate, verdict=Verdict.UNPROVEN, limit=claimed, message=f"{gate.message}; {said}")
    return tuple(claim if g is gate else g for g in found), (said,)


def _judged(task: Task, outputs: Iterable[Mapping[str, Array]]) -> Judged | None:
    """The artifact's own metric: it is its own reference."""
    judge = Judge(task)
    for index, row in enumerate(outputs):
        judge.add(row, row, index)
    return judge.result()


def _metric_alone(
    manifest: Manifest, judged: Judged | None, tolerance: Tolerance, samples: SampleSet
) -> tuple[Gate, ...]:
    """The loss against what the manifest says of the source, where that was measured on these samples."""
    if judged is None:
        return ()
    parity = manifest.parity
    then = None if parity is None else parity.reference_metric
    built = manifest.details.get(EVALUATED)
    same = isinstance(built, Mapping) and built.get("fingerprint") == samples.fingerprint
    if judged.artifact is None or parity is None or then is None or not same:
        return (_only_shown(judged),)
    loss = (then - judged.artifact) * (1 if parity.higher_is_better else -1)
    within = tolerance.metric_drop is None or loss <= tolerance.metric_drop
    message = (
        f"{parity.metric_name} {judged.artifact:.4f} on {judged.labelled} samples; {then:.4f} is the manifest's figure "
        "of the source, which was not run: --source runs it"
    )
    verdict = Verdict.UNPROVEN if within else Verdict.FAIL
    return (
        Gate(name="metric-drop", verdict=verdict, limit=tolerance.metric_drop, value=loss, message=message),
    )


def _only_shown(judged: Judged) -> Gate:
    """Nothing to hold it against: other data than the build's, or none with labels then."""
    if judged.artifact is None:
        return Gate(name="metric", verdict=Verdict.FAIL, message="the artifact's outputs are not finite")
    message = (
        f"{judged.artifact:.4f} on {judged.labelled} samples that the build did not measure on: --source says what the "
        "source gives on them"
    )
    return Gate(name="metric", verdict=Verdict.SHOWN, value=judged.artifact, message=message)
