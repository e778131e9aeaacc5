"""The straight line of a language model: a decoder with its tokenizer to a folder that an app can talk to.

    load → (GGUF's integers, or rounding) → graph with a cache → run in a fresh process → gates for text → artifact

It is beside :mod:`edgekit.pipeline.build` because nothing of it is a plain forward: targets with ``task =
"text-generation"`` take it. Stages are behind the same cache, artifacts have the same manifest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.artifact import language, limits
from edgekit.artifact import manifest as manifests
from edgekit.artifact.language import Answers, Evidence
from edgekit.artifact.manifest import Artifact, GoldenRecord, Manifest, StepRecord
from edgekit.core import config, plugins, settings, versions
from edgekit.core.structure import to_builtins
from edgekit.core.versions import EDGEKIT
from edgekit.devices.catalogue import LOCAL
from edgekit.devices.runnable import Runnable
from edgekit.errors import UsageError
from edgekit.graph.records import write_json
from edgekit.load import texts, trust
from edgekit.load.source import Source
from edgekit.load.texts import Text
from edgekit.pipeline.build import Outcome
from edgekit.pipeline.cached import Step, reader, run
from edgekit.pipeline.candidates import guarded, refuse_missing_backend
from edgekit.pipeline.deliver import copied, refuse_taken, settle
from edgekit.pipeline.request import Request
from edgekit.pipeline.stages import BuildContext
from edgekit.types import Gate, Lowered, Option, Precision, Target, sha256_file

if TYPE_CHECKING:
    from edgekit.errors import EdgekitError

PACKAGES = ("torch", "transformers", "onnx-ir", "numpy", "gguf")


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What all targets share."""

    source: Source
    calibration: Text
    answers: Answers
    file: Path
    step: StepRecord


@dataclass(frozen=True, kw_only=True)
class Files:
    """What was lowered, and where."""

    directory: Path
    lowered: Lowered
    step: StepRecord

    @property
    def size(self) -> int:
        """Bytes of the files together."""
        return sum((self.directory / name).stat().st_size for name in self.lowered.files)


@dataclass(frozen=True, kw_only=True)
class Examined:
    """What the runtime answered, and what it is."""

    evidence: Evidence
    versions: Mapping[str, str]


def build(request: Request, context: BuildContext) -> tuple[Outcome, ...]:
    """Build every target of the request; all are of language models."""
    check(request)
    for target in request.targets:
        refuse_missing_backend(target)
    prepared = prepare(request, context)
    return tuple(_attempt(request, context, prepared, t) for t in request.targets)


def check(request: Request) -> None:
    """Refuse what has no meaning for a language model, before any work."""
    options = request.options
    idle = [
        flag
        for flag, given in (
            ("--recipe", options.recipe),
            ("--max-drop", options.max_drop is not None),
            ("--metric", options.metric),
            ("--device", options.device),
            ("--bind", options.bind),
            ("--exclude", options.exclude),
        )
        if given
    ]
    if idle:
        raise UsageError(
            f"{', '.join(idle)} is not for targets of language models as yet",
            hint="leave it out; --calib and --eval name text files, --limit sets perplexity, token-agreement and size",
        )
    config.refuse_unknown_settings(request.targets, options.set)
    settings.check(request.targets, options.set)
    limits.parse(options.limit)
    refuse_taken(options.out, [t.name for t in request.targets])


def prepare(request: Request, context: BuildContext) -> Prepared:
    """The source, its text and what it says of it."""
    options = request.options
    source = Source(
        request.source, context.store, trust=options.trust, network=options.network, loaded=request.module
    )
    evaluation, calibration = (
        texts.given(request.evaluation, part=1),
        texts.given(request.calibration, part=0),
    )
    tokens = max(int(config.target_options(t, options.set)["eval_tokens"]) for t in request.targets)

    def produce(out: Path) -> None:
        from edgekit.pipeline import language_work

        found = language_work.answers(source, evaluation, tokens, context.progress)
        language.write(found, out / language.FILE)

    step = Step(
        name="language-answers",
        inputs=(source.sha256, evaluation.sha256),
        options={"tokens": tokens},
        packages=PACKAGES,
        produce=produce,
        read=lambda directory: language.read(directory / language.FILE),
        quick=True,
    )
    done = run(context.store, step)
    if not source.in_memory:
        trust.remember(context.store, source.spec, source.record)
    file = done.result.directory / language.FILE
    return Prepared(
        source=source,
        calibration=calibration,
        answers=done.value,
        file=file,
        step=done.record(sha256_file(file)),
    )


def _attempt(request: Request, context: BuildContext, prepared: Prepared, target: Target) -> Outcome:
    made: Artifact | EdgekitError = guarded(target, lambda: _make(request, context, prepared, target))
    if isinstance(made, Artifact):
        return Outcome(target=target, artifact=made)
    return Outcome(target=target, error=made)


def _make(request: Request, context: BuildContext, prepared: Prepared, target: Target) -> Artifact:
    options = config.target_options(target, request.options.set)
    files = lower(context, prepared, target, options)
    examined, step = examine(context, prepared, target, files)
    found = language.gates(
        examined.evidence,
        target.tolerance,
        limits.parse(request.options.limit),
        files.size,
        files.lowered.integer_weights,
        template=language.TEMPLATE in files.lowered.files,
    )

    def fill(out: Path) -> Manifest:
        copied(files.directory, files.lowered.files, out)
        copied(prepared.file.parent, [language.FILE], out)
        steps = (prepared.step, files.step, step)
        return describe(request, prepared, target, files, examined, found, steps, out)

    status = manifests.status_of(found)
    return settle(Path(request.options.out), target.name, status, strict=request.options.strict, fill=fill)


def lower(context: BuildContext, prepared: Prepared, target: Target, options: Mapping[str, Option]) -> Files:
    """Decoder, integers and tokenizer to the runtime's folder."""
    source, text = prepared.source, prepared.calibration
    rounds = target.precision is Precision.INT4_WEIGHTS
    chosen = {k: v for k, v in options.items() if k != "eval_tokens" and (rounds or k != "calib_tokens")}

    def produce(out: Path) -> None:
        from edgekit.pipeline import language_work

        lowered = language_work.lower(source, target, options, text, out, context.progress)
        write_json(lowered, out / "lowered.json")

    step = Step(
        name="language-lower",
        inputs=(source.sha256, text.sha256 if rounds else ""),
        options={"target": to_builtins(target), "options": chosen},
        packages=PACKAGES,
        versions={target.backend: plugins.backend(target.backend).available().version},
        produce=produce,
        read=reader(Lowered, "lowered.json"),
    )
    done = run(context.store, step)
    directory, lowered = done.result.directory, done.value
    digest = versions.digest(*(sha256_file(directory / name) for name in lowered.files))
    return Files(directory=directory, lowered=lowered, step=done.record(digest, lowered.notes))


def examine(
    context: BuildContext, prepared: Prepared, target: Target, files: Files
) -> tuple[Examined, StepRecord]:
    """Run the files in a fresh process, and compare what they answer with the source."""

    def produce(out: Path) -> None:
        with context.progress.task(f"run {target.name}"):
            found, used = language.examine(
                runnable(files.directory, files.lowered, target), prepared.answers, device=LOCAL
            )
        write_json(Examined(evidence=found, versions=used), out / "examined.json")

    step = Step(
        name="language-verify",
        inputs=(files.step.output_sha256, prepared.step.output_sha256),
        options={"runner_sha256": sha256_file(plugins.runner(target.backend))},
        versions=context.machine_versions(target.backend)
        | {target.backend: plugins.backend(target.backend).available().version},
        produce=produce,
        read=reader(Examined, "examined.json"),
    )
    done = run(context.store, step)
    return done.value, done.record(sha256_file(done.result.directory / "examined.json"))


def runnable(directory: Path, lowered: Lowered, target: Target) -> Runnable:
    """The files as the runtime takes questions."""
    main, *companions = (directory / name for name in lowered.files)
    return Runnable(
        backend=target.backend,
        main=main,
        companions=tuple(companions),
        options=lowered.runtime,
        outputs=language.OUTPUTS,
    )


def describe(
    request: Request,
    prepared: Prepared,
    target: Target,
    files: Files,
    examined: Examined,
    found: Sequence[Gate],
    steps: Sequence[StepRecord],
    directory: Path,
) -> Manifest:
    """The manifest of the files in ``directory``."""
    answers, lowered = prepared.answers, files.lowered
    evidence = to_builtins(examined.evidence)
    volatile = {k: evidence.pop(k) for k in ("decode_ms", "resident")}
    notes = [f"measured on {answers.tokens} tokens of {answers.text}"]
    if answers.refused:
        notes.append(
            f"{answers.refused} of the conversations, or their tools, are not taken by the model's own chat template"
        )
    if not answers.chats:
        notes.append("the tokenizer has no chat template: there is no gate for it")
    return Manifest(
        edgekit=EDGEKIT,
        status=manifests.status_of(tuple(found)),
        target=target,
        source=prepared.source.record,
        settings=request.options.set,
        steps=tuple(steps),
        files=manifests.file_records(directory, lowered.files),
        inputs=lowered.inputs,
        outputs=lowered.outputs,
        golden=GoldenRecord(
            file=language.FILE,
            samples=len(answers.passages),
            sha256=sha256_file(directory / language.FILE),
        ),
        task=language.TASK,
        gates=tuple(found),
        runtime=lowered.runtime,
        runtime_versions=examined.versions,
        minimum_runtime=lowered.minimum_runtime,
        notes=(*lowered.notes, *notes),
        details={**lowered.details, "language": evidence},
        machine={**versions.machine(), **volatile},
    )
