"""What every package is made of, collected and checked once: model, descriptor, labels, golden vectors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from edgekit.artifact import manifest
from edgekit.artifact.manifest import Artifact, Status
from edgekit.artifact.summary import reason_not_run
from edgekit.core import files as core_files
from edgekit.core import plugins, versions
from edgekit.errors import GateFailedError, SourceError, UnsupportedError, UsageError
from edgekit.package import golden, postprocess
from edgekit.package.descriptor import (
    TOLERANCES,
    Descriptor,
    Golden,
    GoldenCase,
    ImageFile,
    LabelsRecord,
    PackageSpec,
    RuntimeNeed,
    TensorFile,
    arithmetic,
    encode,
)
from edgekit.preprocess import postprocessing
from edgekit.preprocess.contract import Preprocessing, bound
from edgekit.preprocess.declared import completed
from edgekit.preprocess.frame import frame
from edgekit.preprocess.postprocessing import Postprocessing
from edgekit.types import TensorSpec, Verdict, sha256_bytes

if TYPE_CHECKING:
    from edgekit.types import Array

Content: TypeAlias = bytes | Path
"""One file of a package: its bytes, or where to copy it from."""

_TARGET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_MOST_LABELS = 16 << 20
_CONVERTERS = ("torch", "onnx", "onnxscript", "onnx-ir", "onnxsim")


@dataclass(frozen=True, kw_only=True)
class Contents:
    """A checked artifact and the files that its packages share, by name relative to the package. ``notes`` are for who
    writes the package."""

    artifact: Artifact
    spec: PackageSpec
    descriptor: Descriptor
    labels: tuple[str, ...]
    cases: tuple[golden.Case, ...]
    files: Mapping[str, Content]
    notes: tuple[str, ...] = ()

    @property
    def model(self) -> Path:
        """The main model file."""
        return self.artifact.model


def collect(artifact: Artifact, spec: PackageSpec, *, one_file: bool = False) -> Contents:
    """Check the artifact, replay its golden vectors on the real runtime, and describe it.

    ``one_file``: the format's wrapper loads the main file and nothing beside it.

    Raises:
        GateFailedError: a gate failed or was not run and ``allow_failed`` is not set, or the golden
            vectors do not reproduce.
        SourceError: files changed since the build, or there are no golden vectors.
        UsageError: the labels are not those of any output, or the post-processing is not one of this model.
        ConfigError: the preprocessing contract does not give what the model takes.
        UnsupportedError: the model needs several files and the format takes one.
    """
    _check_gates(artifact, spec)
    manifest.check_files(artifact)
    _check_target(artifact)
    names = _model_files(artifact, spec, one_file)
    contract = _contract(artifact)
    labels = _labels(artifact, spec)
    asked = spec.postprocess
    stated, contradiction = postprocess.preferred(
        asked if isinstance(asked, Postprocessing) else postprocess.read(asked),
        postprocessing.from_mapping(
            artifact.manifest.postprocessing, where=f"{artifact.directory}: postprocessing"
        ),
    )
    output = _labelled_output(artifact, labels, stated)
    cases = golden.make_cases(artifact, contract)
    post = postprocess.resolve(stated, artifact.manifest.outputs, output, golden.references(artifact))
    files: dict[str, Content] = {f"model/{name}": artifact.directory / name for name in names}
    record = None
    if output is not None:
        text = "".join(f"{label}\n" for label in labels).encode()
        files["labels.txt"] = text
        record = LabelsRecord(
            file="labels.txt", count=len(labels), sha256=sha256_bytes(text), output=output.name
        )
    # Each kind of arithmetic differs by more on an accelerator than on the CPU that made the vectors.
    tolerance = TOLERANCES[arithmetic(artifact.manifest.target.precision)]
    clear = 2 * max(tolerance.values())
    named = None if post is not None and post.is_boxes else output
    described = tuple(_stored(case, files, _label(case, named, labels, clear)) for case in cases)
    if post is not None:
        described = tuple(
            replace(
                stored,
                result=_result(post, artifact, case, files),
                placed=_placed(post, contract, artifact, case, files),
            )
            for stored, case in zip(described, cases, strict=True)
        )
    if not spec.golden:
        # They were replayed all the same; only the app does without.
        described = ()
        files = {name: content for name, content in files.items() if not name.startswith("golden/")}
    vectors = Golden(cases=described, tolerance=tolerance)
    descriptor = replace(
        _describe(artifact, spec, contract, record, vectors),
        files=tuple(f"model/{name}" for name in names),
        postprocessing=post,
    )
    files["edgekit.json"] = encode(descriptor)
    return Contents(
        artifact=artifact,
        spec=spec,
        descriptor=descriptor,
        labels=labels,
        cases=cases,
        files=files,
        notes=(contradiction,) if contradiction else (),
    )


def _check_gates(artifact: Artifact, spec: PackageSpec) -> None:
    if artifact.passed or spec.allow_failed:
        return
    named = [g for g in artifact.manifest.gates if g.verdict in (Verdict.FAIL, Verdict.NOT_RUN)]
    if artifact.manifest.status is Status.NOT_RUN:
        raise GateFailedError(
            f"{artifact.target} in {artifact.directory} was {reason_not_run(artifact.manifest)}",
            hint=f"edgekit verify {artifact.directory} --device NAME, on a device that runs it, and package it then; "
            "or take it as it is with --allow-failed",
            gates=tuple(g.name for g in named) or (artifact.manifest.status,),
        )
    what = "; ".join(f"{g.name}: {g.verdict}{f' ({g.message})' if g.message else ''}" for g in named)
    raise GateFailedError(
        f"{artifact.target} in {artifact.directory} did not pass its gates: {what or artifact.manifest.status}",
        hint="build an artifact that passes, or take this one knowingly with --allow-failed",
        gates=tuple(g.name for g in named) or (artifact.manifest.status,),
    )


def _check_target(artifact: Artifact) -> None:
    """The target's name goes into sources and READMEs as it is, and an artifact may come from anybody."""
    if not _TARGET.fullmatch(artifact.target):
        raise SourceError(
            f"{artifact.directory} names the target {artifact.target!r}", hint="do not trust this artifact"
        )


def _model_files(artifact: Artifact, spec: PackageSpec, one_file: bool) -> tuple[str, ...]:
    main, *beside = (f.name for f in artifact.manifest.files)
    # Bundles carry whatever the runtime needs beside the main file.
    if not one_file:
        return (main, *beside)
    # Another form of the same model (--set ort_format=true): the main file does without it.
    needed = [name for name in beside if not name.endswith(".ort")]
    if needed:
        raise UnsupportedError(
            f"{spec.format} takes a model in one file; {main} needs {', '.join(needed)} beside it",
            hint="use the bundle format, or a target whose weights are smaller",
        )
    return (main,)


def _contract(artifact: Artifact) -> Preprocessing | None:
    """The manifest's contract, bound to the input that it feeds and to that input's layout; ``None`` where the
    manifest says nothing about images."""
    m = artifact.manifest
    contract = completed(m.preprocessing, m.inputs, base=artifact.directory)
    return None if contract is None else bound(contract, m.inputs)


def _labels(artifact: Artifact, spec: PackageSpec) -> tuple[str, ...]:
    if spec.labels is None:
        return artifact.manifest.labels
    try:
        lines = core_files.read(spec.labels, most=_MOST_LABELS).decode("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise UsageError(
            f"cannot read the labels {spec.labels}: {e}", hint="a text file, one class name a line"
        ) from e
    return tuple(line.strip() for line in lines)


def _labelled_output(
    artifact: Artifact, labels: tuple[str, ...], stated: Postprocessing | None
) -> TensorSpec | None:
    """The output that the labels name: the one that the post-processing states, else the first whose last axis is as
    long as they are many."""
    if not labels:
        return None
    if any("\n" in label or "\r" in label or not label for label in labels):
        raise UsageError("a label is empty or has a line break", hint="one non-empty name for every class")
    if stated is not None and stated.is_boxes:
        return _classes_of_boxes(artifact, labels, stated)
    # By size and not by name: exporters name outputs as they like.
    for spec in artifact.manifest.outputs:
        if stated is not None and stated.output not in ("", spec.name):
            continue
        if spec.shape and spec.shape[-1] == len(labels):
            return spec
    widths = ", ".join(f"{s.name} has {s.shape[-1] if s.shape else 1}" for s in artifact.manifest.outputs)
    raise UsageError(
        f"there are {len(labels)} labels, but {widths}: they belong to another model",
        hint="give the labels of this model, one for every class, in the order of its output",
    )


def _classes_of_boxes(artifact: Artifact, labels: tuple[str, ...], p: Postprocessing) -> TensorSpec | None:
    found = next((o for o in artifact.manifest.outputs if o.name == p.output), None)
    if found is None or len(found.shape) < 2:
        return None
    count = postprocessing.classes(p, artifact.manifest.outputs)
    if count not in (None, len(labels)):
        raise UsageError(
            f"there are {len(labels)} labels, but {found.name} has scores of {count} classes",
            hint="give one for every class, the background's too, in the order of the scores",
        )
    return found


def _result(
    p: Postprocessing, artifact: Artifact, case: golden.Case, files: dict[str, Content]
) -> TensorFile:
    """What the contract makes of a case's outputs, stored beside them."""
    array = postprocess.apply(p, artifact.manifest.outputs, case.outputs)
    (stored,) = _tensor_files({"result": array}, f"golden/{case.name}/result", files)
    return stored


def _placed(
    p: Postprocessing,
    contract: Preprocessing | None,
    artifact: Artifact,
    case: golden.Case,
    files: dict[str, Content],
) -> TensorFile | None:
    """A detector's result in the pixels of the case's image, where it has one."""
    if not p.is_boxes or contract is None or case.image is None:
        return None
    where = frame(contract, case.image.shape[0], case.image.shape[1])
    array = postprocess.placed(p, artifact.manifest.outputs, case.outputs, where)
    (stored,) = _tensor_files({"placed": array}, f"golden/{case.name}/placed", files)
    return stored


def _label(case: golden.Case, output: TensorSpec | None, labels: tuple[str, ...], clear: float) -> str:
    """The class that every accelerator has to find; empty where two are so close that within its tolerance
    one may find the other. ``clear`` is the lead that is beyond that, as a part of the largest value."""
    if output is None or case.outputs[output.name].size != len(labels):
        return ""
    scores = golden.dequantized(output, case.outputs[output.name]).astype("f8").reshape(-1)
    best = int(scores.argmax())
    lead = float(scores[best]) - max((float(s) for i, s in enumerate(scores) if i != best), default=-1e300)
    return labels[best] if lead > clear * float(abs(scores).max()) else ""


def _stored(case: golden.Case, files: dict[str, Content], label: str) -> GoldenCase:
    """Put a case's arrays into ``files`` and describe it."""
    folder, image = f"golden/{case.name}", None
    if case.image is not None:
        name = f"{folder}/image.rgb"
        # Raw, not PNG: a phone's decoder must not stand between the image and the contract.
        files[name] = case.image.tobytes()
        image = ImageFile(file=name, height=case.image.shape[0], width=case.image.shape[1])
    return GoldenCase(
        name=case.name,
        inputs=_tensor_files(case.inputs, f"{folder}/input", files),
        outputs=_tensor_files(case.outputs, f"{folder}/output", files),
        image=image,
        label=label,
    )


def _tensor_files(
    arrays: Mapping[str, Array], prefix: str, files: dict[str, Content]
) -> tuple[TensorFile, ...]:
    described = []
    for index, (name, array) in enumerate(arrays.items()):
        file = f"{prefix}-{index}.bin"
        # Little-endian, as every phone and browser is.
        files[file] = array.astype(array.dtype.newbyteorder("<")).tobytes()
        described.append(TensorFile(name=name, file=file, dtype=array.dtype.name, shape=array.shape))
    return tuple(described)


def _describe(
    artifact: Artifact,
    spec: PackageSpec,
    contract: Preprocessing | None,
    labels: LabelsRecord | None,
    vectors: Golden,
) -> Descriptor:
    m = artifact.manifest
    need = RuntimeNeed(
        name=plugins.info(m.target.backend).title,
        minimum=m.minimum_runtime,
        verified_with=m.runtime_versions,
        options=m.runtime,
    )
    return Descriptor(
        name=spec.name,
        version=spec.version,
        license=spec.license,
        target=m.target.name,
        backend=m.target.backend,
        precision=m.target.precision,
        status=m.status,
        runtime=need,
        files=(f"model/{m.files[0].name}",),
        model_sha256=m.files[0].sha256,
        inputs=m.inputs,
        outputs=m.outputs,
        preprocessing=contract,
        stated={} if contract is not None else m.preprocessing,
        labels=labels,
        golden=vectors,
        gates=m.gates,
        source_sha256=m.source.sha256,
        manifest_digest=m.digest,
        converters=_converters(artifact),
        edgekit=versions.EDGEKIT,
    )


def _converters(artifact: Artifact) -> dict[str, str]:
    """Versions of what made the model: as the build's steps recorded them, else what is installed."""
    recorded = {k: v for step in artifact.manifest.steps for k, v in step.versions.items()}
    if recorded:
        return dict(sorted(recorded.items()))
    return {name: version for name in _CONVERTERS if (version := versions.installed(name))}
