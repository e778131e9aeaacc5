"""``manifest.json``: everything that is known about one artifact, each number measurable again.

Times and machine facts differ between two otherwise equal builds; :meth:`Manifest.digest` leaves them out,
so that equal inputs give an equal digest.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from edgekit.core.store import canonical_json
from edgekit.core.structure import structure
from edgekit.errors import SourceError
from edgekit.types import (
    Gate,
    Measurement,
    Option,
    Parity,
    Placement,
    SourceRecord,
    Target,
    TensorSpec,
    Verdict,
    sha256_bytes,
    sha256_file,
)

SCHEMA_VERSION = 1
FILE_NAME = "manifest.json"
_VOLATILE = ("measurements", "machine")


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """One stage as it ran."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    input_sha256: str = ""
    output_sha256: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """One file of the artifact, by name relative to the manifest."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class CalibrationRecord:
    """What the activation ranges come from. ``calibrated`` is false for random data."""

    fingerprint: str
    samples: int
    method: str
    calibrated: bool = True
    findings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class GoldenRecord:
    """Inputs and reference outputs stored beside the artifact, and the parity measured on them."""

    file: str
    samples: int
    parity: Parity | None = None


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The record of one artifact."""

    schema: int = SCHEMA_VERSION
    edgekit: str
    status: str
    target: Target
    source: SourceRecord
    settings: Mapping[str, Option] = field(default_factory=dict)
    steps: tuple[StepRecord, ...] = ()
    files: tuple[FileRecord, ...] = ()
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    channels_moved: tuple[str, ...] = ()
    task: str = ""
    labels: tuple[str, ...] = ()
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    calibration: CalibrationRecord | None = None
    golden: GoldenRecord | None = None
    parity: Parity | None = None
    placement: Placement | None = None
    gates: tuple[Gate, ...] = ()
    measurements: tuple[Measurement, ...] = ()
    runtime: Mapping[str, Option] = field(default_factory=dict)
    runtime_versions: Mapping[str, str] = field(default_factory=dict)
    minimum_runtime: str = ""
    notes: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of the model files together."""
        return sum(f.size for f in self.files)

    @property
    def digest(self) -> str:
        """sha256 over everything but times and machine facts."""
        document = msgspec.to_builtins(self)
        for key in _VOLATILE:
            document.pop(key, None)
        document["steps"] = [{k: v for k, v in s.items() if k != "seconds"} for s in document["steps"]]
        return sha256_bytes(canonical_json(document))


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """The files made for one target, in one directory, with their manifest."""

    directory: Path
    manifest: Manifest

    @property
    def target(self) -> str:
        """Name of the target."""
        return self.manifest.target.name

    @property
    def model(self) -> Path:
        """The main file."""
        return self.directory / self.manifest.files[0].name

    @property
    def passed(self) -> bool:
        """Whether it ran and every gate passed."""
        return self.manifest.status == "passed"


def status_of(gates: tuple[Gate, ...]) -> str:
    """``passed``, ``failed``, ``not-run`` (nothing was executed) or ``inconclusive``."""
    verdicts = {g.verdict for g in gates}
    if Verdict.FAIL in verdicts:
        return "failed"
    if Verdict.NOT_RUN in verdicts or not verdicts:
        return "not-run"
    return "inconclusive" if Verdict.INCONCLUSIVE in verdicts else "passed"


def file_records(directory: Path, names: tuple[str, ...]) -> tuple[FileRecord, ...]:
    """Size and sha256 of each file."""
    return tuple(
        FileRecord(name=n, size=(directory / n).stat().st_size, sha256=sha256_file(directory / n))
        for n in names
    )


def write(manifest: Manifest, directory: Path) -> Path:
    """Write ``manifest.json`` into ``directory`` by temporary name and rename."""
    path = directory / FILE_NAME
    part = directory / f".{FILE_NAME}.{os.getpid()}"
    part.write_bytes(
        msgspec.json.format(msgspec.json.encode(manifest, order="deterministic"), indent=2) + b"\n"
    )
    part.replace(path)
    return path


def read(path: Path) -> Artifact:
    """The artifact at ``path`` (its directory or its manifest).

    Raises :class:`SourceError` when there is none, when it was written by a newer edgekit, or when it
    names files outside its folder. Contents of the files are checked by :func:`check_files`.
    """
    directory = path.parent if path.name == FILE_NAME else path
    file = directory / FILE_NAME
    try:
        document = msgspec.json.decode(file.read_bytes())
    except FileNotFoundError as e:
        raise SourceError(
            f"no artifact at {directory}: {FILE_NAME} is missing", hint="edgekit build makes one"
        ) from e
    except (msgspec.DecodeError, UnicodeDecodeError, NotADirectoryError) as e:
        raise SourceError(f"{file} is not a manifest: {e}", hint="build the artifact again") from e
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema != SCHEMA_VERSION:
        raise SourceError(
            f"{file} has schema {schema!r}, this edgekit reads {SCHEMA_VERSION}",
            hint="upgrade edgekit or rebuild",
        )
    manifest = structure(Manifest, document, where=str(file))
    for record in (*(f.name for f in manifest.files), manifest.golden.file if manifest.golden else "golden"):
        _refuse_escape(record, file)
    return Artifact(directory=directory, manifest=manifest)


def check_files(artifact: Artifact) -> None:
    """Raise :class:`SourceError` naming every file that is missing or differs from its sha256."""
    wrong = [
        f.name
        for f in artifact.manifest.files
        if not (artifact.directory / f.name).is_file() or sha256_file(artifact.directory / f.name) != f.sha256
    ]
    if wrong:
        raise SourceError(
            f"{artifact.directory}: {', '.join(wrong)} missing or changed since the build",
            hint="build it again",
        )


def with_measurements(artifact: Artifact, measurements: tuple[Measurement, ...]) -> Artifact:
    """The artifact with these measurements in its manifest, on disk too."""
    manifest = replace(artifact.manifest, measurements=measurements)
    write(manifest, artifact.directory)
    return replace(artifact, manifest=manifest)


def _refuse_escape(name: str, file: Path) -> None:
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or "\\" in name:
        raise SourceError(
            f"{file} names a file outside its folder: {name!r}", hint="do not trust this artifact"
        )
