"""What was built, verified and measured, and when: one SQLite file of this user's.

An artifact's manifest says what it is now; its next build takes its place. The history keeps what was before: a row for
each build, verification and measurement, with its gates and figures in columns for whoever wants to ask in SQL, and
its whole manifest, so that ``edgekit compare @12 build`` can hold a build against one whose folder is long gone.

Nothing is sent anywhere. ``EDGEKIT_HISTORY`` names another file; ``off`` keeps none.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import shlex
import sqlite3
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path

import msgspec

from edgekit.artifact import manifest as manifests
from edgekit.artifact.history_file import opened, place, reading
from edgekit.artifact.manifest import Artifact, Manifest
from edgekit.errors import SourceError, UnknownNameError, UsageError
from edgekit.types import Gate, Measurement

_MOST_BYTES = 256 << 20
"""Of one manifest, unpacked."""
_LARGEST = (1 << 63) - 1
"""No number of SQLite's is larger."""
_MOST_CALLS = 2000
"""Raw times that are kept of a process: enough for its median, where there are a hundred thousand."""


class Kind(StrEnum):
    """What was done."""

    BUILD = "build"
    VERIFY = "verify"
    BENCH = "bench"
    SOAK = "soak"


@dataclass(frozen=True, kw_only=True)
class Run:
    """One row. ``device``, ``p50_ms`` and what follows are of what was measured then: empty, or ``None``, where nothing
    was. Times in milliseconds, memory and size in bytes."""

    id: int
    at: str
    kind: Kind
    target: str
    source: str
    directory: str
    digest: str
    status: str
    size: int
    metric: float | None
    snr_db: float | None
    edgekit: str
    command: str
    device: str = ""
    p50_ms: float | None = None
    validity: str = ""
    p90_ms: float | None = None
    p99_ms: float | None = None
    threads: int | None = None
    peak_memory: int | None = None


@dataclass(frozen=True, kw_only=True)
class Query:
    """Which rows; what is empty asks for nothing. ``since``: a date or time in ISO 8601, UTC."""

    targets: tuple[str, ...] = ()
    source: str = ""
    device: str = ""
    kind: str = ""
    since: str = ""
    limit: int = 20


def remember(
    kind: Kind,
    artifact: Artifact,
    *,
    gates: Sequence[Gate] | None = None,
    status: str = "",
    measurement: Measurement | None = None,
) -> None:
    """Add a row; what keeps it from being written is a warning, as the work itself was done.

    A build that gives what the last one of this target in this folder gave is no new row.
    """
    try:
        file = place()
        if file is None:
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        with opened(file) as database:
            if kind is Kind.BUILD and _is_last(database, artifact):
                return
            _insert(database, kind, artifact, gates, status, measurement)
    except (OSError, RuntimeError, ValueError, OverflowError, sqlite3.Error, SourceError) as error:
        logging.getLogger("edgekit").warning(
            "the history was not written: %s; EDGEKIT_HISTORY names another file, or off", error
        )


def runs(query: Query) -> tuple[Run, ...]:
    """The newest rows first; damaged ones are left out with a warning that counts them.

    Raises :class:`SourceError` where the file is none of edgekit's.
    """
    since = _moment(query.since) if query.since else ""
    asked = {**dataclasses.asdict(query), "targets": json.dumps(query.targets), "since": since}
    del asked["limit"]
    with reading() as database:
        return _sound(database.execute(_ROWS, asked), query.limit)


def latest() -> tuple[Run, ...]:
    """The newest measurement of each target of each source on each device, by source, target and device; damaged rows
    are left out as by :func:`runs`."""
    with reading() as database:
        return _sound(database.execute(_LATEST))


def _sound(rows: Iterator[Sequence[object]], most: int | None = None) -> tuple[Run, ...]:
    """The first rows that can be read; those between them that cannot are counted in a warning."""
    found: list[Run] = []
    damaged = 0
    for row in rows:
        if (run := _run(row)) is None:
            damaged += 1
        else:
            found.append(run)
        if len(found) == most:
            break
    if damaged:
        logging.getLogger("edgekit").warning(
            "%d rows of the history %s are damaged and were left out", damaged, place()
        )
    return tuple(found)


_COLUMNS = """
SELECT r.id, r.at, r.kind, r.target, r.source, r.directory, r.digest, r.status, r.size, r.metric, r.snr_db, r.edgekit,
  r.command, coalesce(m.device, ''), m.p50_ms, coalesce(m.validity, ''), m.p90_ms, m.p99_ms, m.threads, m.peak_memory
FROM runs r LEFT JOIN measurements m ON m.run = r.id
"""
_ROWS = "".join(
    (
        _COLUMNS,
        """
WHERE (:targets = '[]' OR r.target IN (SELECT value FROM json_each(:targets)))
  AND :source IN ('', r.source) AND :kind IN ('', r.kind) AND :device IN ('', m.device) AND r.at >= :since
ORDER BY r.id DESC
""",
    )
)
_LATEST = "".join(
    (
        _COLUMNS,
        """
WHERE r.id IN (SELECT max(b.id) FROM runs b JOIN measurements n ON n.run = b.id
  WHERE b.kind NOT IN ('verify', 'soak') GROUP BY b.source, b.target, n.device)
ORDER BY r.source, r.target, m.device
""",
    )
)


def artifact_of(number: int) -> tuple[Artifact, Mapping[str, Sequence[Sequence[float]]]]:
    """The artifact as it was at one row, and its raw times by device. Its files may be gone, or others.

    Raises :class:`UnknownNameError` where there is no such row, :class:`SourceError` for a damaged one.
    """
    with reading() as database:
        row = database.execute(
            "SELECT directory, manifest, times FROM runs WHERE id = ?", (min(number, _LARGEST),)
        ).fetchone()
        known = [str(r[0]) for r in database.execute("SELECT id FROM runs ORDER BY id DESC LIMIT 50")]
    if row is None:
        raise UnknownNameError("run of the history", str(number), known)
    directory, packed, times = row
    where = f"run {number} of {place()}"
    try:
        manifest = manifests.parse(_unpacked(packed), where)
        raw = json.loads(_unpacked(times))
        if not isinstance(raw, dict):
            raise TypeError("its times are no table")
        return Artifact(directory=Path(directory), manifest=manifest), raw
    except (zlib.error, ValueError, TypeError, RecursionError) as error:
        raise SourceError(f"{where} is damaged: {error}", hint="compare with another run") from error


def before(artifact: Artifact) -> int | None:
    """The newest row of the same target and source that is of another artifact than this one; ``None``: there is none.

    A build that was benched, verified or built again since is this artifact still.
    """
    manifest = artifact.manifest
    with reading() as database:
        row = database.execute(
            "SELECT id FROM runs WHERE target = ? AND source = ? AND digest != ? AND kind NOT IN ('verify', 'soak') "
            "ORDER BY id DESC LIMIT 1",
            (artifact.target, manifest.source.text, manifest.digest),
        ).fetchone()
    return None if row is None else int(row[0])


def prune(days: float) -> int:
    """Remove rows older than so many days; returns how many. Raises :class:`UsageError` for what is before any date."""
    oldest = _ago(days, "--prune")
    with reading() as database:
        count = database.execute("DELETE FROM runs WHERE at < ?", (oldest,)).rowcount
        database.commit()
        database.set_progress_handler(None, 0)  # as long as the file is large
        database.execute("VACUUM")
    return count


# --- rows -------------------------------------------------------------------------------------------------------


def _is_last(database: sqlite3.Connection, artifact: Artifact) -> bool:
    row = database.execute(
        "SELECT digest FROM runs WHERE target = ? AND directory = ? AND kind = 'build' ORDER BY id DESC LIMIT 1",
        (artifact.target, str(artifact.directory.absolute())),
    ).fetchone()
    return row is not None and row[0] == artifact.manifest.digest


def _insert(
    database: sqlite3.Connection,
    kind: Kind,
    artifact: Artifact,
    gates: Sequence[Gate] | None,
    status: str,
    measurement: Measurement | None,
) -> None:
    manifest = artifact.manifest
    cursor = database.execute(
        "INSERT INTO runs (at, kind, target, source, directory, digest, status, size, metric, snr_db, edgekit, "
        "command, manifest, times) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            _text(datetime.now(UTC)),
            str(kind),
            artifact.target,
            manifest.source.text,
            str(artifact.directory.absolute()),
            manifest.digest,
            status or str(manifest.status),
            manifest.size,
            None if manifest.parity is None else manifest.parity.metric,
            None if manifest.parity is None else manifest.parity.snr_db,
            manifest.edgekit,
            _command(),
            _packed(manifests.encoded(manifest)),
            _packed(json.dumps(_raw(manifest, measurement)).encode()),
        ),
    )
    run = cursor.lastrowid
    for gate in manifest.gates if gates is None else gates:
        database.execute(
            "INSERT INTO gates VALUES (?, ?, ?, ?, ?, ?)",
            (run, gate.name, str(gate.verdict), gate.value, gate.limit, gate.message),
        )
    if measurement is not None:
        values = _row(run, measurement)
        database.execute(f"INSERT INTO measurements VALUES ({', '.join('?' * len(values))})", values)  # noqa: S608


def _row(run: int | None, one: Measurement) -> tuple[object, ...]:
    return (
        run,
        one.device,
        one.threads,
        one.p50_ms,
        one.p90_ms,
        one.p99_ms,
        one.mad_ms,
        one.load_ms,
        one.first_ms,
        one.peak_memory,
        one.model_memory,
        one.validity,
        json.dumps(one.reasons),
    )


def _raw(manifest: Manifest, measurement: Measurement | None) -> dict[str, list[list[float]]]:
    """Raw times by device: evenly spaced ones of a long process."""
    shown = manifest.measurements if measurement is None else (measurement,)
    return {
        m.device: [list(p[:: max(1, len(p) // _MOST_CALLS)]) for p in m.samples] for m in shown if m.samples
    }


def _command() -> str:
    """What was typed; nothing where edgekit was called from Python."""
    if "edgekit.cli" not in sys.modules or Path(sys.argv[0]).stem not in ("edgekit", "__main__"):
        return ""
    return shlex.join(["edgekit", *sys.argv[1:]])


def _run(row: Sequence[object]) -> Run | None:
    """A row as it is meant to be; ``None`` for any other: SQLite takes everything in every column."""
    fields = dict(zip([f.name for f in dataclasses.fields(Run)], row, strict=True))
    try:
        return msgspec.convert(fields, Run)
    except (msgspec.ValidationError, OverflowError):
        return None


def _packed(data: bytes) -> bytes:
    return zlib.compress(data, 6)


def _unpacked(data: bytes) -> bytes:
    unpacker = zlib.decompressobj()
    out = unpacker.decompress(data, _MOST_BYTES)
    if unpacker.unconsumed_tail:
        raise ValueError("it is larger than any manifest")
    if not unpacker.eof:
        raise ValueError("it is cut short")
    return out


def _text(moment: datetime) -> str:
    return f"{moment.replace(tzinfo=None).isoformat(timespec='seconds')}Z"


def _ago(days: float, what: str) -> str:
    """So many days ago, as rows have it. Raises :class:`UsageError` where that is before any date."""
    try:
        return _text(datetime.now(UTC) - timedelta(days=days))
    except (OverflowError, ValueError) as error:
        raise UsageError(f"{what}: {days:g} days ago is no date", hint="write a smaller number") from error


def _moment(text: str) -> str:
    """A date, a time, or so many days (``7d``) ago, as rows have it."""
    if days := re.fullmatch(r"([0-9]+)d", text):
        return _ago(float(days[1]), "--since")
    try:
        moment = datetime.fromisoformat(text)
        return _text(moment if moment.tzinfo is None else moment.astimezone(UTC))
    except (ValueError, OverflowError) as error:
        raise UsageError(
            f"--since {text[:40]!r} is no date",
            hint="2026-11-30, 2026-11-30T12:00 (UTC), or 7d for a week ago",
        ) from error
