"""What was built, verified and measured, and when: one SQLite file of this user's.

An artifact's manifest says what it is now; its next build takes its place. The history keeps what was before: a row for
each build, verification and measurement, with its gates and figures in columns for whoever wants to ask in SQL, and
its whole manifest, so that ``edgekit compare @12 build`` can hold a build against one whose folder is long gone.

Nothing is sent anywhere. ``EDGEKIT_HISTORY`` names another file; ``off`` keeps none.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import shlex
import sqlite3
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

from edgekit.artifact import manifest as manifests
from edgekit.artifact.manifest import Artifact, Manifest
from edgekit.errors import SourceError, UnknownNameError, UsageError
from edgekit.types import Gate, Measurement

VERSION = 1
_OFF = ("off", "no", "false", "0")
_BUSY_S = 10.0
_MOST_BYTES = 256 << 20
"""Of one manifest, unpacked."""
_MOST_CALLS = 2000
"""Raw times that are kept of a process: enough for its median, where there are a hundred thousand."""
_SCHEMA = """
CREATE TABLE runs (
  id INTEGER PRIMARY KEY,
  at TEXT NOT NULL,         -- UTC
  kind TEXT NOT NULL,       -- build, verify, bench
  target TEXT NOT NULL,
  source TEXT NOT NULL,
  directory TEXT NOT NULL,
  digest TEXT NOT NULL,     -- sha256 of the manifest without times and machine
  status TEXT NOT NULL,
  size INTEGER NOT NULL,    -- bytes
  metric REAL,
  snr_db REAL,
  edgekit TEXT NOT NULL,
  command TEXT NOT NULL,
  manifest BLOB NOT NULL,   -- zlib, JSON
  times BLOB NOT NULL       -- zlib, JSON: raw times in ms, a list a process, by device
);
CREATE TABLE gates (
  run INTEGER NOT NULL REFERENCES runs(id) ON DELETE CASCADE,
  name TEXT NOT NULL, verdict TEXT NOT NULL, value REAL, threshold REAL, message TEXT NOT NULL
);
CREATE TABLE measurements (
  run INTEGER NOT NULL REFERENCES runs(id) ON DELETE CASCADE,
  device TEXT NOT NULL, threads INTEGER NOT NULL, p50_ms REAL NOT NULL, p90_ms REAL NOT NULL, p99_ms REAL,
  mad_ms REAL NOT NULL, load_ms REAL NOT NULL, first_ms REAL NOT NULL, peak_memory INTEGER, model_memory INTEGER,
  validity TEXT NOT NULL, reasons TEXT NOT NULL
);
CREATE INDEX runs_of_target ON runs (target, at);
"""


class Kind(StrEnum):
    """What was done."""

    BUILD = "build"
    VERIFY = "verify"
    BENCH = "bench"


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


def place() -> Path | None:
    """The file: ``$EDGEKIT_HISTORY``, else ``edgekit/history.sqlite3`` in ``$XDG_DATA_HOME`` or ``~/.local/share``.

    ``None`` where the variable says ``off``.
    """
    named = os.environ.get("EDGEKIT_HISTORY", "")
    if named.lower() in _OFF:
        return None
    if named:
        return Path(named)
    data = os.environ.get("XDG_DATA_HOME")
    return (Path(data) if data else Path.home() / ".local" / "share") / "edgekit" / "history.sqlite3"


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
        with _opened(file) as database:
            if kind is Kind.BUILD and _is_last(database, artifact):
                return
            _insert(database, kind, artifact, gates, status, measurement)
    except (OSError, RuntimeError, sqlite3.Error, SourceError) as error:
        logging.getLogger("edgekit").warning(
            "the history was not written: %s; EDGEKIT_HISTORY names another file, or off", error
        )


def runs(query: Query) -> tuple[Run, ...]:
    """The newest rows first. Raises :class:`SourceError` where the file is none of edgekit's."""
    since = _moment(query.since) if query.since else ""
    asked = {**dataclasses.asdict(query), "targets": json.dumps(query.targets), "since": since}
    with _reading() as database:
        rows = database.execute(_ROWS, asked).fetchall()
    return tuple(_run(row) for row in rows)


def latest() -> tuple[Run, ...]:
    """The newest measurement of each target of each source on each device, by source, target and device."""
    with _reading() as database:
        rows = database.execute(_LATEST).fetchall()
    return tuple(_run(row) for row in rows)


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
ORDER BY r.id DESC LIMIT :limit
""",
    )
)
_LATEST = "".join(
    (
        _COLUMNS,
        """
WHERE r.id IN (SELECT max(b.id) FROM runs b JOIN measurements n ON n.run = b.id
  WHERE b.kind != 'verify' GROUP BY b.source, b.target, n.device)
ORDER BY r.source, r.target, m.device
""",
    )
)


def artifact_of(number: int) -> tuple[Artifact, Mapping[str, Sequence[Sequence[float]]]]:
    """The artifact as it was at one row, and its raw times by device. Its files may be gone, or others.

    Raises :class:`UnknownNameError` where there is no such row.
    """
    with _reading() as database:
        row = database.execute(
            "SELECT directory, manifest, times FROM runs WHERE id = ?", (number,)
        ).fetchone()
        known = [str(r[0]) for r in database.execute("SELECT id FROM runs ORDER BY id DESC LIMIT 50")]
    if row is None:
        raise UnknownNameError("run of the history", str(number), known)
    directory, packed, times = row
    where = f"run {number} of {place()}"
    try:
        manifest = manifests.parse(_unpacked(packed), where)
        raw = json.loads(_unpacked(times))
    except (zlib.error, ValueError) as error:
        raise SourceError(f"{where} is damaged: {error}", hint="compare with another run") from error
    return Artifact(directory=Path(directory), manifest=manifest), raw


def before(artifact: Artifact) -> int | None:
    """The newest row of the same target and source that is of another artifact than this one; ``None``: there is none.

    A build that was benched, verified or built again since is this artifact still.
    """
    manifest = artifact.manifest
    with _reading() as database:
        row = database.execute(
            "SELECT id FROM runs WHERE target = ? AND source = ? AND digest != ? AND kind != 'verify' "
            "ORDER BY id DESC LIMIT 1",
            (artifact.target, manifest.source.text, manifest.digest),
        ).fetchone()
    return None if row is None else int(row[0])


def prune(days: float) -> int:
    """Remove rows older than so many days; returns how many."""
    oldest = datetime.fromtimestamp(datetime.now(UTC).timestamp() - days * 86400, UTC)
    with _reading() as database:
        count = database.execute("DELETE FROM runs WHERE at < ?", (_text(oldest),)).rowcount
        database.commit()
        database.execute("VACUUM")
    return count


# --- the file ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[sqlite3.Connection]:
    """The database, made where there is none; committed at the end, closed in any case."""
    database = sqlite3.connect(file, timeout=_BUSY_S)
    try:
        database.execute("PRAGMA foreign_keys = ON")
        with database:
            database.execute("BEGIN IMMEDIATE")
            _prepare(database, file)
            yield database
    finally:
        database.close()


def _prepare(database: sqlite3.Connection, file: Path) -> None:
    version = database.execute("PRAGMA user_version").fetchone()[0]
    if version == VERSION:
        return
    if version > VERSION:
        raise SourceError(
            f"{file} was written by a newer edgekit (its format is {version})",
            hint="upgrade edgekit, or name another file in EDGEKIT_HISTORY",
        )
    if database.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]:
        raise SourceError(
            f"{file} is a database of something else", hint="name another file in EDGEKIT_HISTORY"
        )
    for statement in filter(str.strip, _SCHEMA.split(";")):
        database.execute(statement)
    database.execute(f"PRAGMA user_version = {VERSION}")


@contextlib.contextmanager
def _reading() -> Iterator[sqlite3.Connection]:
    file = place()
    if file is None:
        raise UsageError("no history is kept: EDGEKIT_HISTORY is off", hint="name a file in it, or unset it")
    if not file.is_file():
        raise SourceError(f"there is no history at {file}", hint="edgekit build, verify and bench write it")
    try:
        database = sqlite3.connect(file, timeout=_BUSY_S)
        try:
            database.execute("PRAGMA foreign_keys = ON")
            _prepare(database, file)
            yield database
        finally:
            database.close()
    except sqlite3.Error as error:
        raise SourceError(
            f"{file} cannot be read: {error}",
            hint="name another file in EDGEKIT_HISTORY, or move this one away",
        ) from error


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


def _run(row: Sequence[object]) -> Run:
    fields = dict(zip([f.name for f in dataclasses.fields(Run)], row, strict=True))
    return Run(**{**fields, "kind": Kind(str(fields["kind"]))})  # type: ignore[arg-type]  # columns of these types


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
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _moment(text: str) -> str:
    """A date, a time, or so many days (``7d``) ago, as rows have it."""
    if text.endswith("d") and text[:-1].isdigit():
        return _text(datetime.fromtimestamp(datetime.now(UTC).timestamp() - int(text[:-1]) * 86400, UTC))
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise UsageError(
            f"--since {text!r} is no date", hint="2026-11-30, 2026-11-30T12:00 (UTC), or 7d for a week ago"
        ) from error
    return _text(moment if moment.tzinfo is None else moment.astimezone(UTC))
