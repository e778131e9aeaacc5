"""``manifest.json``: everything that is known about one artifact, each number measurable again.

Times and machine facts differ between two otherwise equal builds; :meth:`Manifest.digest` leaves them out,
so that equal inputs give an equal digest.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path, PurePosixPath, PureWindowsPath

from edgekit.artifact import wire
from edgekit.artifact.consistent import contradicts
from edgekit.core import files
from edgekit.core.store import canonical_json
from edgekit.core.structure import structure, to_builtins
from edgekit.errors import ConfigError, SourceError
from edgekit.types import (
    Gate,
    Json,
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

FILE_NAME = "manifest.json"
_MOST_BYTES = 64 << 20
_VOLATILE = ("measurements", "machine", "compared")
_ELEMENT_TYPE = re.compile(
    r"bool|u?int(2|4|8|16|32|64)|float(16|32|64)|bfloat16|complex(64|128)|float[468]_\w+"
)


class Status(StrEnum):
    """What an artifact's gates come to. What is ``UNPROVEN`` counts as built unless ``--strict`` is given: nothing was
    found wrong, on too few rows to rule it out."""

    PASSED = "passed"
    UNPROVEN = "unproven"
    FAILED = "failed"
    NOT_RUN = "not-run"

    @classmethod
    def _missing_(cls, value: object) -> Status | None:
        return (
            cls.FAILED if value == "inconclusive" else None
        )  # beyond a limit: what older manifests call so was refused


BUILT = (Status.PASSED, Status.UNPROVEN)
"""No gate refused it."""


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """One stage as it ran."""

    name: str
    options: Mapping[str, Json] = field(default_factory=dict)
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
    sha256: str = ""
    parity: Parity | None = None


@dataclass(frozen=True, kw_only=True)
class ComparedLayer:
    """One layer of a comparison by layers, by its names there. In dB: ``local_db`` is the signal to noise of its own,
    ``beyond_db`` its error beyond what rounding explains, where it has one."""

    node: str
    tensor: str = ""
    module: str = ""
    local_db: float
    beyond_db: float | None = None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What ``edgekit diff`` found last when it held the artifact against its source, whose form is ``reference``."""

    edgekit: str
    samples: int
    reference: str = ""
    layers: tuple[ComparedLayer, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The record of one artifact; :mod:`edgekit.artifact.wire` is its form in the file."""

    schema: int = wire.SCHEMA
    edgekit: str
    status: Status
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
    preprocessing: Mapping[str, Json] = field(default_factory=dict)
    postprocessing: Mapping[str, Json] = field(default_factory=dict)
    calibration: CalibrationRecord | None = None
    golden: GoldenRecord | None = None
    parity: Parity | None = None
    placement: Placement | None = None
    gates: tuple[Gate, ...] = ()
    measurements: tuple[Measurement, ...] = ()
    compared: Comparison | None = None
    runtime: Mapping[str, Option] = field(default_factory=dict)
    runtime_versions: Mapping[str, str] = field(default_factory=dict)
    minimum_runtime: str = ""
    notes: tuple[str, ...] = ()
    details: Mapping[str, Json] = field(default_factory=dict)
    machine: Mapping[str, Json] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of the model files together."""
        return sum(f.size for f in self.files)

    @property
    def digest(self) -> str:
        """sha256 over everything but times and machine facts, as the file has it: a limit of 0 is written as 0.0, and
        an artifact must be equal to itself read back."""
        document = {k: v for k, v in wire.plain(to_builtins(self)).items() if k not in _VOLATILE}
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
        """Whether it ran and no gate refused it; ``manifest.status`` tells ``unproven`` from ``passed``."""
        return self.manifest.status in BUILT


def status_of(gates: tuple[Gate, ...]) -> Status:
    """What the verdicts come to; without any, nothing was executed."""
    verdicts = {g.verdict for g in gates if g.verdict is not Verdict.SHOWN}
    if Verdict.FAIL in verdicts:
        return Status.FAILED
    if Verdict.NOT_RUN in verdicts or not verdicts:
        return Status.NOT_RUN
    return Status.UNPROVEN if Verdict.UNPROVEN in verdicts else Status.PASSED


def place(out: Path, target: str, status: Status, *, strict: bool) -> Path:
    """Where in ``out`` an artifact is that has this status: ``TARGET``, or ``TARGET.failed`` where it was refused."""
    refused = status is Status.FAILED or (status is Status.UNPROVEN and strict)
    return out / (f"{target}.failed" if refused else target)


def file_records(directory: Path, names: tuple[str, ...]) -> tuple[FileRecord, ...]:
    """Size and sha256 of each file."""
    return tuple(
        FileRecord(name=n, size=(directory / n).stat().st_size, sha256=sha256_file(directory / n))
        for n in names
    )


def write(manifest: Manifest, directory: Path) -> Path:
    """Write ``manifest.json`` into ``directory`` by temporary name and rename."""
    path = directory / FILE_NAME
    files.write(path, encoded(manifest))
    return path


def encoded(manifest: Manifest) -> bytes:
    """The manifest as its file has it."""
    return wire.encode(to_builtins(manifest))


def read(path: Path) -> Artifact:
    """The artifact at ``path`` (its directory or its manifest).

    Raises :class:`SourceError` when there is none, when it was written by a newer edgekit, or when it
    names files outside its folder. Contents of the files are checked by :func:`check_files`.
    """
    directory = path.parent if path.name == FILE_NAME else path
    file = directory / FILE_NAME
    try:
        data = files.read(file, most=_MOST_BYTES)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise SourceError(
            f"no artifact at {directory}: {FILE_NAME} is missing", hint="edgekit build makes one"
        ) from error
    except OSError as error:
        raise SourceError(
            f"{file} cannot be read: {error.strerror}", hint="name the folder of an artifact"
        ) from error
    manifest = parse(data, str(file))
    for name in (*(f.name for f in manifest.files), *([manifest.golden.file] if manifest.golden else [])):
        _refuse_escape(name, file)
    return Artifact(directory=directory, manifest=manifest)


def parse(data: bytes, where: str) -> Manifest:
    """The manifest that ``data`` is; what it names is not looked at. Raises :class:`SourceError`, as :func:`read`."""
    try:
        manifest = structure(Manifest, wire.decode(data, where), where=where)
    except ConfigError as error:
        raise SourceError(
            f"{error.message}: this edgekit does not know it",
            hint="upgrade edgekit, or build the artifact again",
        ) from error
    if not manifest.files:
        raise SourceError(f"{where} names no model file", hint="build the artifact again")
    refuse_unknown_types((*manifest.inputs, *manifest.outputs), where)
    _refuse_contradictions(manifest, where)
    return manifest


def _refuse_contradictions(manifest: Manifest, where: str) -> None:
    """A verdict that was changed by hand, without the figures that it was given for."""
    wrong = [
        f"{g.name} passed with {g.value:.4g} at a limit of {g.limit:.4g}"
        for g in manifest.gates
        if contradicts(g)
    ]
    if manifest.status in (Status.PASSED, Status.UNPROVEN):
        wrong += [
            f"{g.name} failed, and the artifact did not" for g in manifest.gates if g.verdict is Verdict.FAIL
        ]
    known = {o.name: o for o in manifest.target.options}
    for name, value in manifest.settings.items():
        spec = known.get(name)
        if spec is not None and not spec.takes(str(value) if isinstance(spec.default, str) else value):
            wrong.append(f"it was built with {name}={str(value)[:40]}, and {spec.allowed} is allowed")
    if wrong:
        raise SourceError(
            f"{where} contradicts itself: {_some(wrong)}", hint="do not trust this artifact: build it again"
        )


def refuse_unknown_types(specs: Iterable[TensorSpec], where: str) -> None:
    """Raise :class:`SourceError` for a tensor whose elements are of a type that no runtime has."""
    for spec in specs:
        if not _ELEMENT_TYPE.fullmatch(spec.dtype):
            raise SourceError(
                f"{where} gives {spec.name!r} the type {spec.dtype!r}: there is none",
                hint="build it again, or ask the sender for another",
            )


def check_files(artifact: Artifact) -> None:
    """Raise :class:`SourceError` naming every file that is missing or differs from its sha256."""
    rows = [(f.name, f.sha256, f.size) for f in artifact.manifest.files]
    if (golden := artifact.manifest.golden) is not None:
        rows.append((golden.file, golden.sha256, -1))
    wrong = [name for name, sha256, size in rows if not _unchanged(artifact.directory / name, sha256, size)]
    if wrong:
        raise SourceError(
            f"{artifact.directory}: {_some(wrong)} missing or changed since the build",
            hint="build it again",
        )
    _refuse_contradicted_engine(artifact)


def _refuse_contradicted_engine(artifact: Artifact) -> None:
    """Hashes can be redone: what an engine's own record says must be possible, and fit the rest of the artifact."""
    from edgekit.core import plugins
    from edgekit.devices import engines

    target = artifact.manifest.target
    if target.backend not in plugins.backends():  # of a plug-in that is not here: it runs nowhere
        return
    builder = engines.builder_of(target.backend)
    if builder is None:
        return
    if not (builder.is_engine(artifact.model) or builder.needs_engine(artifact.model)):
        raise SourceError(
            f"{artifact.directory} contradicts itself: its first file, {_short(artifact.model.name)}, is neither an "
            "engine nor what one is built from",
            hint="do not trust this artifact: build it again",
        )
    if found := builder.recipe_contradictions(artifact.model, target, artifact.manifest.details):
        raise SourceError(
            f"{artifact.directory} contradicts itself: {'; '.join(found)}",
            hint="do not trust this artifact: build it again",
        )
    if not builder.is_engine(artifact.model):
        return
    found = builder.contradictions(artifact.model, target.backend, artifact.manifest.details)
    if found:
        raise SourceError(
            f"{artifact.model} is not what its record says: {'; '.join(found)}",
            hint="do not trust this artifact: build it again",
        )


_SHOWN = 10


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _short(name: str) -> str:
    return repr(name if len(name) <= 100 else f"{name[:100]}…")


def _unchanged(path: Path, sha256: str, size: int) -> bool:
    """Whether a file is what the manifest says; a size of -1 is not said."""
    try:
        return sha256_file(path) == sha256 and size in (-1, path.stat().st_size)
    except OSError:
        return False


def with_measurements(artifact: Artifact, measurements: tuple[Measurement, ...]) -> Artifact:
    """The artifact with these measurements in its manifest, on disk too."""
    manifest = replace(artifact.manifest, measurements=measurements)
    write(manifest, artifact.directory)
    return replace(artifact, manifest=manifest)


def _refuse_escape(name: str, manifest: Path) -> None:
    """A manifest may come from anybody: what it names must be a file of its own folder, links followed.

    Else ``edgekit package`` would copy any file of the user's into what is handed on.
    """
    pure, folder = PurePosixPath(name), manifest.parent.resolve()
    inside = (
        pure.name not in ("", ".")
        and "\\" not in name
        and "\0" not in name
        and ".." not in pure.parts
        and not pure.is_absolute()
        and not PureWindowsPath(name).drive
        and files.is_within(folder / name, folder)
    )
    if not inside:
        raise SourceError(
            f"{manifest} names a file outside its folder: {_short(name)}", hint="do not trust this artifact"
        )
