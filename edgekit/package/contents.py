"""What every package is made of, collected and checked once: model, descriptor, labels, golden vectors."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from edgekit import __version__, manifest
from edgekit.errors import GateFailedError, UsageError
from edgekit.manifest import Artifact
from edgekit.package import golden
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
from edgekit.preprocessing import Preprocessing, bound, from_mapping
from edgekit.types import TensorSpec, Verdict, sha256_bytes

if TYPE_CHECKING:
    from edgekit.types import Array

Content: TypeAlias = bytes | Path
"""One file of a package: its bytes, or where to copy it from."""

RUNTIME_NAMES = {
    "tflite": "LiteRT",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "tensorrt": "TensorRT",
    "tensorrt_rtx": "TensorRT-RTX",
}
_CONVERTERS = ("torch", "onnx", "onnxscript", "onnx-ir", "onnxsim")


@dataclass(frozen=True, kw_only=True)
class Contents:
    """A checked artifact and the files that its packages share, by name relative to the package."""

    artifact: Artifact
    spec: PackageSpec
    descriptor: Descriptor
    labels: tuple[str, ...]
    cases: tuple[golden.Case, ...]
    files: Mapping[str, Content]

    @property
    def model(self) -> Path:
        """The main model file."""
        return self.artifact.model


def collect(artifact: Artifact, spec: PackageSpec) -> Contents:
    """Check the artifact, replay its golden vectors on the real runtime, and describe it.

    Raises:
        GateFailedError: a gate failed or was not run and ``allow_failed`` is not set, or the golden
            vectors do not reproduce.
        SourceError: files changed since the build, or there are no golden vectors.
        UsageError: the labels are not those of any output.
        ConfigError: the preprocessing contract does not give what the model takes.
    """
    _check_gates(artifact, spec)
    manifest.check_files(artifact)
    contract = _contract(artifact)
    labels = _labels(artifact, spec)
    output = _labelled_output(artifact, labels)
    cases = golden.make_cases(artifact, contract)
    files: dict[str, Content] = {
        f"model/{f.name}": artifact.directory / f.name for f in artifact.manifest.files
    }
    record = None
    if output is not None:
        text = "".join(f"{label}\n" for label in labels).encode()
        files["labels.txt"] = text
        record = LabelsRecord(
            file="labels.txt", count=len(labels), sha256=sha256_bytes(text), output=output.name
        )
    described = tuple(_stored(case, files, output, labels) for case in cases)
    vectors = Golden(cases=described, tolerance=TOLERANCES[arithmetic(artifact.manifest.target.precision)])
    descriptor = _describe(artifact, spec, contract, record, vectors)
    files["edgekit.json"] = encode(descriptor)
    return Contents(
        artifact=artifact, spec=spec, descriptor=descriptor, labels=labels, cases=cases, files=files
    )


def _check_gates(artifact: Artifact, spec: PackageSpec) -> None:
    if artifact.passed or spec.allow_failed:
        return
    named = [g for g in artifact.manifest.gates if g.verdict is not Verdict.PASS]
    what = "; ".join(f"{g.name}: {g.verdict}{f' ({g.message})' if g.message else ''}" for g in named)
    raise GateFailedError(
        f"{artifact.target} in {artifact.directory} did not pass its gates: {what or artifact.manifest.status}",
        hint="build an artifact that passes, or take this one knowingly with --allow-failed",
        gates=tuple(g.name for g in named) or (artifact.manifest.status,),
    )


def _contract(artifact: Artifact) -> Preprocessing | None:
    """The manifest's contract, bound to the input that it feeds and to that input's layout."""
    contract = from_mapping(artifact.manifest.preprocessing, base=artifact.directory)
    return None if contract is None else bound(contract, artifact.manifest.inputs)


def _labels(artifact: Artifact, spec: PackageSpec) -> tuple[str, ...]:
    if spec.labels is None:
        return artifact.manifest.labels
    try:
        lines = spec.labels.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise UsageError(
            f"cannot read the labels {spec.labels}: {e}", hint="a text file, one class name a line"
        ) from e
    return tuple(line.strip() for line in lines)


def _labelled_output(artifact: Artifact, labels: tuple[str, ...]) -> TensorSpec | None:
    """The output that the labels name: the first whose last axis is as long as they are many."""
    if not labels:
        return None
    if any("\n" in label or "\r" in label or not label for label in labels):
        raise UsageError("a label is empty or has a line break", hint="one non-empty name for every class")
    for spec in artifact.manifest.outputs:
        if spec.shape and spec.shape[-1] == len(labels):
            return spec
    widths = ", ".join(f"{s.name} has {s.shape[-1] if s.shape else 1}" for s in artifact.manifest.outputs)
    raise UsageError(
        f"there are {len(labels)} labels, but {widths}: they belong to another model",
        hint="give the labels of this model, one for every class, in the order of its output",
    )


def _stored(
    case: golden.Case, files: dict[str, Content], output: TensorSpec | None, labels: tuple[str, ...]
) -> GoldenCase:
    """Put a case's arrays into ``files`` and describe it."""
    folder, image, label = f"golden/{case.name}", None, ""
    if case.image is not None:
        name = f"{folder}/image.rgb"
        files[name] = case.image.tobytes()
        image = ImageFile(file=name, height=case.image.shape[0], width=case.image.shape[1])
    if output is not None and case.outputs[output.name].size == len(labels):
        label = labels[int(case.outputs[output.name].argmax())]
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
        name=RUNTIME_NAMES.get(m.target.backend, m.target.backend),
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
        files=tuple(f"model/{f.name}" for f in m.files),
        model_sha256=m.files[0].sha256,
        inputs=m.inputs,
        outputs=m.outputs,
        preprocessing=contract,
        labels=labels,
        golden=vectors,
        gates=m.gates,
        source_sha256=m.source.sha256,
        manifest_digest=m.digest,
        converters=_converters(artifact),
        edgekit=__version__,
    )


def _converters(artifact: Artifact) -> dict[str, str]:
    """Versions of what made the model: as the build's steps recorded them, else what is installed."""
    recorded = {k: v for step in artifact.manifest.steps for k, v in step.versions.items()}
    if recorded:
        return dict(sorted(recorded.items()))
    found = {}
    for name in _CONVERTERS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
