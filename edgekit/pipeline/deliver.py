"""The last stage: the manifest, and the artifact in its place. Only an artifact that passed is left where
it is looked for; one that failed goes to ``<target>.failed`` beside it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edgekit.artifact import golden, history, known
from edgekit.artifact import manifest as manifests
from edgekit.artifact.manifest import (
    Artifact,
    CalibrationRecord,
    GoldenRecord,
    Manifest,
    Status,
    StepRecord,
)
from edgekit.backends import own_engines
from edgekit.core import targets, versions
from edgekit.core.config import Options
from edgekit.core.files import publish, scratch
from edgekit.core.structure import to_builtins
from edgekit.core.versions import EDGEKIT
from edgekit.devices.engines import builder_of
from edgekit.errors import EdgekitError, GateFailedError, NotRunnableError, UsageError
from edgekit.load.data import RANDOM, SampleSet
from edgekit.pipeline import pixels
from edgekit.pipeline.pixels import Pixels
from edgekit.pipeline.speed import GATE, Speed
from edgekit.pipeline.stages import Calibrated, Exported, LoweredFiles
from edgekit.pipeline.verify import Verified
from edgekit.preprocess.declared import completed
from edgekit.quantize.options import Cause, QuantizeReport
from edgekit.types import (
    Finding,
    Gate,
    Json,
    Measurement,
    Precision,
    SourceRecord,
    Target,
    Verdict,
    sha256_file,
)

EVALUATED = "evaluation"
"""Where a manifest's details say which evaluation samples there were."""


ROLLOUT = "rollout"
"""Where they say what became of the states of a model over many steps."""


@dataclass(frozen=True, kw_only=True)
class Product:
    """Everything that is known about one target's artifact."""

    target: Target
    options: Options
    source: SourceRecord
    exported: Exported
    calibrated: Calibrated | None
    findings: tuple[Finding, ...] = ()
    files: LoweredFiles
    pixels: Pixels | None = None
    verified: Verified
    evaluation: SampleSet | None = None
    gates: tuple[Gate, ...]
    steps: tuple[StepRecord, ...]
    quantization: QuantizeReport | None = None
    speed: Speed | None = None
    measurement: Measurement | None = None
    machine: Mapping[str, str | int] = field(default_factory=versions.machine)
    guard: Mapping[str, Json] | None = None


def deliver(out: Path, product: Product) -> Artifact:
    """Write ``out/<target>`` (or ``<target>.failed`` when a gate did not pass) in one move and return the artifact."""
    status = manifests.status_of(product.gates)

    def fill(work: Path) -> Manifest:
        copied(product.files.directory, product.files.lowered.files, work)
        if product.verified.vectors is not None:
            shutil.copyfile(product.verified.vectors.file, work / golden.FILE)
        return describe(product, status, work)

    return settle(out, product.target.name, status, strict=product.options.strict, fill=fill)


def copied(directory: Path, names: Iterable[str], out: Path) -> None:
    """Files of a step's directory into an artifact's."""
    for name in names:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(directory / name, out / name)


def settle(
    out: Path, name: str, status: Status, *, strict: bool, fill: Callable[[Path], Manifest]
) -> Artifact:
    """``out/<name>`` (or ``<name>.failed``) from what ``fill`` writes into a folder, in one move.

    An artifact that is there already and equal is left alone.
    """
    final = manifests.place(out, name, status, strict=strict)
    other = out / (f"{name}.failed" if final.name == name else name)
    refuse_foreign(final)
    with scratch(out) as work:
        manifest = fill(work)
        if not _same(manifest, final):
            manifests.write(manifest, work)
            publish(work, final)
    if other.is_dir() and (other / manifests.FILE_NAME).is_file():
        shutil.rmtree(other)
    artifact = manifests.read(final)
    known.remember(artifact.manifest)
    timed = next(iter(artifact.manifest.measurements), None)
    history.remember(history.Kind.BUILD, artifact, measurement=timed)
    return artifact


def refuse_taken(out: Path, targets: Iterable[str]) -> None:
    """Before any work: raise :class:`UsageError` where somebody's folder lies where an artifact will."""
    for name in targets:
        refuse_foreign(out / name)


def refuse_foreign(final: Path) -> None:
    """A place that holds something else than an artifact is somebody's: it is left as it is."""
    if not os.path.lexists(final) or (final / manifests.FILE_NAME).is_file():
        return
    if final.is_dir() and not final.is_symlink() and not any(final.iterdir()):
        return
    raise UsageError(
        f"{final} is there already and is no artifact: it was left as it is",
        hint="name another folder (--out DIR), or move it away",
    )


def _vouch(product: Product) -> None:
    """An engine among the files was built by us: that it may be loaded is known here, and nowhere else."""
    main = product.files.directory / product.files.lowered.files[0]
    builder = builder_of(product.target.backend)
    if builder is not None and builder.is_engine(main):
        own_engines.remember(main)


def describe(product: Product, status: Status, directory: Path) -> Manifest:
    """The manifest of the files in ``directory``."""
    _vouch(product)
    verified, lowered, record = product.verified, product.files.lowered, product.exported.record
    kept = None
    if (vectors := verified.vectors) is not None:
        kept = GoldenRecord(
            file=golden.FILE,
            samples=vectors.count,
            sha256=sha256_file(vectors.file),
            parity=verified.golden_parity,
        )
    details = dict(lowered.details)
    if product.quantization is not None:
        details["quantization"] = to_builtins(product.quantization)
    if modules := product.files.modules:
        details["modules"] = modules
    if (measured := product.evaluation) is not None:
        details[EVALUATED] = {"fingerprint": measured.fingerprint, "samples": len(measured)}
    if product.guard is not None:
        details["guard"] = product.guard
    if verified.rollout is not None:
        details[ROLLOUT] = to_builtins(verified.rollout)
    if product.speed is not None:
        details["speed"] = to_builtins(product.speed)
    if product.pixels is not None:
        details[pixels.DETAIL] = product.pixels.contract.to_mapping()
    return Manifest(
        edgekit=EDGEKIT,
        status=status,
        target=product.target,
        source=product.source,
        settings=product.options.set,
        steps=product.steps,
        files=manifests.file_records(directory, lowered.files),
        inputs=lowered.inputs,
        outputs=verified.outputs or lowered.outputs,
        channels_moved=lowered.channels_moved,
        labels=record.labels,
        preprocessing=_preprocessing(product),
        calibration=_calibration(product),
        golden=kept,
        task=record.task,
        parity=verified.parity,
        placement=verified.placement,
        gates=product.gates,
        measurements=() if product.measurement is None else (product.measurement,),
        runtime=lowered.runtime,
        runtime_versions=verified.runtime_versions,
        minimum_runtime=lowered.minimum_runtime,
        notes=(*record.notes, *lowered.notes, *verified.notes, *_where(product)),
        details=details,
        machine=product.machine,
    )


def _where(product: Product) -> tuple[str, ...]:
    """Where it was run, if not here. Part of the digest: on another processor it is another result."""
    machine, scheme = product.machine, product.target.scheme
    if "device" not in machine:
        return ()
    how = ", an emulated processor: what it computed counts, its speed was not measured"
    done = "built for, and not run on," if product.verified.not_run else "run on"
    place = f"{done} {machine['device']} ({machine['machine']}{how if machine.get('emulated') else ''})"
    return (place, *([scheme.why] if scheme is not None and scheme.why else []))


def refusal(artifact: Artifact, *, allow_not_run: bool, strict: bool = False) -> EdgekitError | None:
    """Why this artifact must not count as built, or ``None``. ``strict`` refuses what is unproven."""
    manifest = artifact.manifest
    if manifest.status is Status.FAILED:
        failed = [g for g in manifest.gates if g.verdict is Verdict.FAIL]
        lines = "; ".join(f"{g.name}: {g.message}" for g in failed)
        return GateFailedError(
            f"{artifact.target} failed {len(failed)} of {len(manifest.gates)} gates: {lines}",
            hint=_what_to_do(artifact, [g.name for g in failed]),
            gates=[g.name for g in failed],
        )
    if manifest.status is Status.NOT_RUN and not allow_not_run:
        reason = next((g.message for g in manifest.gates if g.verdict is Verdict.NOT_RUN), "nothing ran it")
        return NotRunnableError(
            f"{artifact.target} was built but not run: {reason}",
            hint=f"edgekit verify {artifact.directory} on a machine that can run it, or --allow-not-run",
        )
    if manifest.status is Status.UNPROVEN and strict:
        unproven = [g for g in manifest.gates if g.verdict is Verdict.UNPROVEN]
        return GateFailedError(
            f"{artifact.target} is not proven: " + "; ".join(f"{g.name}: {g.message}" for g in unproven),
            hint="evaluate on as many rows as it says, set the limit that you can accept (--limit NAME=VALUE), or "
            "leave --strict out",
            gates=[g.name for g in unproven],
        )
    return None


def _what_to_do(artifact: Artifact, failed: Sequence[str]) -> str:
    """Where to look; of a precision that was not delivered, what is in the way and how to leave it out."""
    look = f"look at {artifact.directory}: edgekit inspect shows placement and parity per output"
    if GATE in failed:
        look = f"--no-speed-gate takes a slower artifact, for its size or for another device; {look}"
    placement = artifact.manifest.placement
    if {"rollout", "decisions"} & set(failed) and (rows := _float_activations(artifact)):
        return f"states keep what each step rounds: --target {' or '.join(rows)} leaves activations in float; {look}"
    if "placement" not in failed or placement is None:
        rows = _float_activations(artifact) if _LOSSES & set(failed) else ()
        ways = (
            f"--target {' or '.join(rows)} fixes no ranges of activations, --exclude leaves layers in float; "
            if rows
            else ""
        )
        return ways + look
    largest = max(placement.fallbacks, key=lambda f: f.share, default=None)
    if largest is None or not largest.share:
        return look
    named = largest.nodes[0].partition(" ")[0] if largest.nodes else _largest_in_float(artifact)
    why = f"{largest.op} ×{largest.count}, {largest.share:.0%} of the MACs: {largest.reason}"
    if artifact.manifest.target.precision is Precision.FP32:  # there is nothing that could be excluded
        return (
            f"{why}. The source computes so itself: build its float model, or say --limit placement=0; {look}"
        )
    if not named:
        return f"{why}; {look}"
    return f"{why}. What is meant to stay in float does not count: --exclude {named!r}; {look}"


_LOSSES = frozenset(
    {"snr", "slices", "samples", "top1-agreement", "integers", "boxes", "coverage", "metric-drop"}
)
"""Gates of what a model answers, not of how it runs."""


def _float_activations(artifact: Artifact) -> tuple[str, ...]:
    """The backend's other INT8 rows, where ``artifact``'s has ranges for its activations."""
    target = artifact.manifest.target
    if not target.needs_calibration:
        return ()
    kinds = (Precision.INT8_WEIGHTS, Precision.INT8_DYNAMIC)
    rows = targets.known().values()
    return tuple(r.name for r in rows if r.backend == target.backend and r.precision in kinds)


def _largest_in_float(artifact: Artifact) -> str:
    """The graph's node with the most arithmetic among those that the quantizer left in float: runtimes that rename
    operators do not tell it, and ``--exclude`` takes names of the graph."""
    report = artifact.manifest.details.get("quantization")
    nodes = report.get("nodes") if isinstance(report, Mapping) else None
    rows = nodes if isinstance(nodes, Sequence) else ()
    left = [n for n in rows if isinstance(n, Mapping) and not n.get("quantized")]
    left = [n for n in left if n.get("cause") != Cause.EXCLUDED and _macs(n)]
    return str(max(left, key=_macs)["node"]) if left else ""


def _macs(node: Mapping[str, Json]) -> float:
    macs = node.get("macs")
    return float(macs) if isinstance(macs, int | float) else 0.0


def _calibration(product: Product) -> CalibrationRecord | None:
    calibrated = product.calibrated
    if calibrated is None or not product.target.uses_calibration:
        return None
    return CalibrationRecord(
        fingerprint=calibrated.samples.fingerprint,
        samples=len(calibrated.samples),
        method=product.options.method,
        calibrated=calibrated.samples.origin != RANDOM,
        findings=tuple(f"{f.severity}: {f.message}" for f in product.findings),
    )


def _preprocessing(product: Product) -> dict[str, Json]:
    """The whole contract, with what it takes from a processor's file or the model's input written out."""
    if product.pixels is not None:
        return product.pixels.left.to_mapping()
    record = product.exported.record
    stated = product.options.preprocessing or record.preprocessing
    contract = completed(stated, record.model.inputs)
    return contract.to_mapping() if contract is not None else dict(to_builtins(stated))


def _same(manifest: Manifest, final: Path) -> bool:
    if not (final / manifests.FILE_NAME).is_file():
        return False
    try:
        there = manifests.read(final)
        manifests.check_files(there)
    except EdgekitError:
        return False
    return there.manifest.digest == manifest.digest
