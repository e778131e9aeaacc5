"""What is known of each cell: one file a cell, written as a whole by whoever finished it, before anybody says so.

A file that is there is a cell that is finished. It holds for the same content alone: the cell's key, and whatever its
code read while it ran.
"""

from __future__ import annotations

import contextlib
import enum
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from edgekit.core import files
from edgekit.core.alone import taken
from edgekit.core.dependency import Dependency, unchanged
from edgekit.core.store import canonical_json
from edgekit.errors import EdgekitError, UsageError
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

    @classmethod
    def failed(cls, cell: Cell, key: str, failure: Failure | None) -> CellResult:
        """The row of a cell that has no artifact."""
        return cls(
            cell=cell.name,
            key=key,
            source=cell.source,
            recipe=cell.recipe,
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


def folder(out: Path, cell: Cell) -> Path:
    """Where a cell's artifact and result are."""
    return out / CELLS / cell.name


def log(out: Path, cell: Cell) -> Path:
    """What a cell's processes said."""
    return out / LOGS / f"{cell.name}.log"


def write(out: Path, cell: Cell, result: CellResult) -> None:
    """The cell is finished. On the disk before this returns."""
    path = folder(out, cell) / RESULT
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.whole(path) as part, part.open("wb") as file:
        file.write(canonical_json(result))
        file.flush()
        os.fsync(file.fileno())


def read(out: Path, cell: Cell) -> CellResult | None:
    """The cell's last result, whatever it was made of; ``None`` where there is none that can be read."""
    with contextlib.suppress(OSError, ValueError, msgspec.MsgspecError):
        data = files.read(folder(out, cell) / RESULT, most=_MOST_BYTES)
        return msgspec.json.decode(data, type=CellResult)
    return None


def finished(out: Path, cell: Cell) -> CellResult | None:
    """The cell's result where the cell, and all that it read, is as it was, and its artifact is still there."""
    result = read(out, cell)
    if result is None or result.key != cell.key or not unchanged(result.reads):
        return None
    if result.digest and not any((folder(out, cell) / cell.target.name).parent.glob("*/manifest.json")):
        return None
    return result


def refuse_links(*places: Path) -> None:
    """A folder that came with the project must not lead to somebody's files. Raises :class:`UsageError`."""
    for place in places:
        if place.is_symlink():
            raise UsageError(
                f"{place} is a link: it was left as it is",
                hint="name the folder that it leads to (--out DIR)",
            )


@contextlib.contextmanager
def held(out: Path) -> Iterator[None]:
    """The folder of a sweep, for one sweep at a time. Raises :class:`UsageError` while another one is at work there.

    The system gives it back where the process that held it is gone, however that was.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        refuse_links(out, out / CELLS, out / LOGS)
        with taken(out / LOCK) as free:
            if not free:
                raise UsageError(
                    f"another sweep is at work in {out}",
                    hint="wait for it (what it finishes is not done again), or name another folder: --out DIR",
                )
            yield
    except OSError as error:
        if error.filename is not None and Path(os.fsdecode(error.filename)) in (out, out / LOCK):
            raise files.unwritable(out, error) from error
        raise
