"""What is known of each cell: one file a cell, written as a whole by whoever finished it, before anybody says so.

A file that is there is a cell that is finished. It holds for the same content alone: the cell's key, and whatever its
code read while it ran. And it is believed only beside the artifact that it tells of: that the artifact is the one that
was built is looked at each time, and figures are read from it, not from here.
"""

from __future__ import annotations

import contextlib
import enum
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

import msgspec

from edgekit.artifact import manifest as manifests
from edgekit.artifact import summary
from edgekit.artifact.manifest import Manifest
from edgekit.core import files
from edgekit.core.alone import taken
from edgekit.core.dependency import Dependency, unchanged
from edgekit.core.store import DamagedError, sealed, unsealed
from edgekit.core.structure import to_builtins
from edgekit.devices.catalogue import LOCAL
from edgekit.errors import EdgekitError, SourceError, UsageError, first_line
from edgekit.pipeline.refusal import refusal
from edgekit.sweep.cells import Cell

CELLS, LOGS, LOCK = "cells", "logs", ".sweep"
RESULT = "result.json"
_MOST_BYTES = 64 << 20


class Verdict(enum.StrEnum):
    """What became of a cell; all but ``ERROR`` are an artifact's status."""

    PASSED = "passed"
    UNPROVEN = "unproven"
    NOT_RUN = "not-run"
    FAILED = "failed"
    ERROR = "error"


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a cell has no artifact that passed: the error's type, message, hint and exit code."""

    type: str
    message: str
    hint: str
    exit_code: int

    @classmethod
    def of(cls, error: EdgekitError) -> Failure:
        """The failure that an error is."""
        return cls(
            type=type(error).__name__, message=error.message, hint=error.hint, exit_code=error.exit_code
        )


@dataclass(frozen=True, kw_only=True)
class CellResult:
    """One row of a sweep.

    Attributes:
        digest: of the artifact's manifest, without times: equal work gives equal digests.
        size: bytes of the model's files.
        metric, reference_metric: the task metric of the artifact and of its source.
        p50_ms: latency, where it was measured on ``device``.
        timed: whether timing it has been tried, where the sweep times.
        seconds: from the start of the cell's process to its end.
        memory: the largest resident size of one of its processes, in bytes.
        stages: seconds of each step when it was made, those from the cache too.
        reads: what its code read.
        host: where it ran.
        found: the recipe that the cell's search has chosen.
        said: the artifact's verdict in words.
    """

    cell: str
    key: str
    source: str
    recipe: str
    variant: str
    target: str
    device: str
    verdict: Verdict
    failure: Failure | None = None
    digest: str = ""
    size: int | None = None
    metric: float | None = None
    metric_name: str = ""
    reference_metric: float | None = None
    snr_db: float | None = None
    p50_ms: float | None = None
    seconds: float = 0.0
    memory: int = 0
    attempts: int = 1
    timed: bool = False
    stages: Mapping[str, float] = field(default_factory=dict)
    reads: tuple[Dependency, ...] = ()
    host: str = ""
    found: str = ""
    said: str = ""

    @classmethod
    def failed(cls, cell: Cell, key: str, failure: Failure | None) -> CellResult:
        """The row of a cell that has no artifact."""
        return cls(
            cell=cell.name,
            key=key,
            source=cell.source,
            recipe=cell.compression,
            variant=cell.variant,
            target=cell.target.name,
            device=cell.device,
            verdict=Verdict.ERROR,
            failure=failure,
        )

    @property
    def exit_code(self) -> int:
        """What ``edgekit build`` of this cell alone would end with."""
        return 0 if self.failure is None else self.failure.exit_code

    def with_figures(self, manifest: Manifest) -> CellResult:
        """The row with what an artifact's manifest says."""
        row = replace(
            self,
            verdict=Verdict(str(manifest.status)),
            digest=manifest.digest,
            said=summary.verdict(manifest),
            size=manifest.size,
            stages={s.name: s.seconds for s in manifest.steps},
        )
        parity = manifest.parity
        if parity is None:
            return replace(row, metric=None, metric_name="", reference_metric=None, snr_db=None)
        return replace(
            row,
            metric=parity.metric,
            metric_name=parity.metric_name,
            reference_metric=parity.reference_metric,
            snr_db=parity.snr_db,
        )


@dataclass(frozen=True, kw_only=True)
class Known:
    """What is known of a cell, and why what is there is not believed (empty: it is, or there is nothing)."""

    result: CellResult | None = None
    doubt: str = ""


def folder(out: Path, cell: Cell) -> Path:
    """Where a cell's artifact and result are."""
    return out / CELLS / cell.name


def log(out: Path, cell: Cell) -> Path:
    """What a cell's processes said."""
    return out / LOGS / f"{cell.name}.log"


def opened_log(path: Path, *, again: bool) -> BinaryIO:
    """The file to write a cell's log into, behind what is there ``again``. Raises :class:`UsageError` for no file."""
    try:
        return files.opened(path, append=again)
    except OSError as error:
        raise files.unwritable(path, error) from error


def write(out: Path, cell: Cell, result: CellResult) -> None:
    """The cell is finished. On the disk before this returns."""
    path = folder(out, cell) / RESULT
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.whole(path) as part, part.open("wb") as file:
        file.write(sealed(to_builtins(result)))
        file.flush()
        os.fsync(file.fileno())


def read(out: Path, cell: Cell) -> CellResult | None:
    """The cell's last result, whatever it was made of; ``None`` where there is none that can be read."""
    with contextlib.suppress(OSError, ValueError, RecursionError, DamagedError, msgspec.MsgspecError):
        return _read(out, cell)
    return None


def _read(out: Path, cell: Cell) -> CellResult:
    return msgspec.convert(unsealed(folder(out, cell) / RESULT, most=_MOST_BYTES), CellResult)


def places(out: Path, cell: Cell) -> tuple[Path, ...]:
    """Where a cell's artifact may be."""
    of = {manifests.place(folder(out, cell), cell.target.name, s, strict=False) for s in manifests.Status}
    return tuple(sorted(of))


def forget(out: Path, cell: Cell) -> None:
    """Remove the cell's result, and what is left of an artifact that it tells of where the manifest is gone: else a
    build would take the folder for somebody's."""
    result = read(out, cell)
    for place in places(out, cell) if result is not None and result.digest else ():
        if place.is_dir() and not (place / manifests.FILE_NAME).exists():
            shutil.rmtree(place)
    (folder(out, cell) / RESULT).unlink(missing_ok=True)


def finished(out: Path, cell: Cell) -> CellResult | None:
    """The cell's result, as :func:`known` has it."""
    return known(out, cell).result


def known(out: Path, cell: Cell) -> Known:
    """The cell's result where the cell and all that it read are as they were, and its artifact is what was built."""
    try:
        result = _read(out, cell)
    except FileNotFoundError:
        return Known()
    except (DamagedError, OSError, ValueError, RecursionError) as error:
        why = getattr(error, "strerror", None) or first_line(error)
        return Known(doubt=f"{RESULT} is not believed ({why})")
    if result.key != cell.key or not unchanged(result.reads):
        return Known()
    own = CellResult.failed(cell, cell.key, None)
    names = ("cell", "key", "source", "recipe", "variant", "target", "device")
    try:
        return _confirmed(out, cell, replace(result, **{n: getattr(own, n) for n in names}))
    except EdgekitError as error:
        return Known(doubt=error.message)


def _confirmed(out: Path, cell: Cell, result: CellResult) -> Known:
    """The result with the figures of its artifact. Raises :class:`SourceError` where that is not the one that was
    built."""
    if not result.digest:
        if result.verdict is Verdict.ERROR and result.failure is not None:
            return Known(result=result)
        raise SourceError(f"{RESULT} tells of no artifact and no error", hint=_AGAIN)
    if result.verdict is Verdict.ERROR:
        raise SourceError(f"{RESULT} tells of an artifact and of none", hint=_AGAIN)
    strict = cell.options.strict
    status = manifests.Status(str(result.verdict))
    artifact = manifests.read(manifests.place(folder(out, cell), cell.target.name, status, strict=strict))
    manifests.check_files(artifact)
    if artifact.manifest.digest != result.digest or artifact.manifest.status is not status:
        raise SourceError(
            f"{artifact.directory}: {manifests.FILE_NAME} was changed since the build", hint=_AGAIN
        )
    refused = refusal(artifact, allow_not_run=cell.options.allow_not_run, strict=strict)
    failure = Failure.of(refused) if refused is not None else result.failure if result.timed else None
    return _timed(cell, replace(result.with_figures(artifact.manifest), failure=failure), artifact.manifest)


def _timed(cell: Cell, result: CellResult, manifest: Manifest) -> Known:
    """With the time that the manifest has, too; any other is taken again."""
    if not result.timed or (result.p50_ms is None and result.failure is not None):
        return Known(result=replace(result, p50_ms=None))
    name = (cell.place or LOCAL).name
    times = {m.device: m.p50_ms for m in manifest.measurements}
    if result.p50_ms is not None and times.get(name) == result.p50_ms:
        return Known(result=result)
    return Known(
        result=replace(result, timed=False, p50_ms=None, failure=None),
        doubt=f"{RESULT} and {manifests.FILE_NAME} tell of two times on {name}",
    )


_AGAIN = "edgekit sweep builds it again"


def refuse_links(*places: Path) -> None:
    """A folder that came with the project must not lead to somebody's files. Raises :class:`UsageError`."""
    for place in places:
        if place.is_symlink():
            raise UsageError(
                f"{place} is a link: it was left as it is",
                hint="name the folder that it leads to (--out DIR)",
            )


def refuse_odd(*, folders: Sequence[Path] = (), written: Sequence[Path] = ()) -> None:
    """What is not a folder where folders are to be, or is one where a file is. Raises :class:`UsageError`, before hours
    of work go into what cannot be written down."""
    odd = [f"{p} is no folder" for p in folders if p.exists() and not p.is_dir()]
    odd += [f"{p} is a folder, and a file is written there" for p in written if p.is_dir()]
    if odd:
        raise UsageError(
            f"{odd[0]}: it was left as it is", hint="move it away, or name another folder (--out DIR)"
        )


@contextlib.contextmanager
def held(out: Path) -> Iterator[None]:
    """The folder of a sweep, for one sweep at a time. Raises :class:`UsageError` while another one is at work there.

    The system gives it back where the process that held it is gone, however that was.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        refuse_links(out, out / CELLS, out / LOGS, out / LOCK)
        refuse_odd(folders=(out / CELLS, out / LOGS), written=(out / LOCK,))
        with taken(out / LOCK) as free:
            if not free:
                raise UsageError(
                    f"another sweep is at work in {out}",
                    hint="wait for it (what it finishes is not done again), or name another folder: --out DIR",
                )
            yield
    except OSError as error:
        if error.filename is not None and Path(os.fsdecode(error.filename)) in (out, out / LOCK):
            raise files.unwritable(Path(os.fsdecode(error.filename)), error) from error
        raise
