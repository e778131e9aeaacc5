"""The last stage: the manifest, and the artifact in its place. Only an artifact that passed is left where
it is looked for; one that failed goes to ``<target>.failed`` beside it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Mapping
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
from edgekit.core import versions
from edgekit.core.config import Options
from edgekit.core.files import publish, scratch
from edgekit.core.structure import to_builtins
from edgekit.core.versions import EDGEKIT
from edgekit.devices.engines import builder_of
from edgekit.errors import EdgekitError, UsageError
from edgekit.load.data import RANDOM, SampleSet
from edgekit.pipeline import pixels, postprocessing
from edgekit.pipeline.pixels import Pixels
from edgekit.pipeline.speed import Speed
from edgekit.pipeline.stages import Calibrated, Exported, LoweredFiles
from edgekit.pipeline.verify import Verified
from edgekit.preprocess.declared import completed
from edgekit.quantize.options import QuantizeReport
from edgekit.types import (
    CHECKED,
    Finding,
    Gate,
    Json,
    Measurement,
    SourceRecord,
    Target,
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
    if verified.graph is not None and isinstance(done := details.get(CHECKED), str):
        details[CHECKED] = f"{done}; {verified.graph.words}"
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
        postprocessing=_postprocessing(product),
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


def _postprocessing(product: Product) -> dict[str, Json]:
    """The declared contract with its output named; nothing where none was declared."""
    contract = postprocessing.stated(product.options, product.exported.record)
    return contract.to_mapping() if contract is not None else {}


def _same(manifest: Manifest, final: Path) -> bool:
    if not (final / manifests.FILE_NAME).is_file():
        return False
    try:
        there = manifests.read(final)
        manifests.check_files(there)
    except EdgekitError:
        return False
    return there.manifest.digest == manifest.digest
