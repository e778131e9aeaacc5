"""The file of the history: where it is, what is in it, and what is done with one that is none."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

from edgekit.errors import SourceError, UsageError

VERSION = 1
_OFF = ("off", "no", "false", "0")
_BUSY_S = 10.0
_MOST_S = 60.0
"""Of one question: a million rows take a second, and a table may be anybody's query that never ends."""
_STEPS = 100_000
"""Instructions of SQLite between two looks at the clock."""
_SCHEMA = """
CREATE TABLE runs (
  id INTEGER PRIMARY KEY,
  at TEXT NOT NULL,         -- UTC
  kind TEXT NOT NULL,       -- build, verify, bench, soak
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


_TABLES = ("runs", "gates", "measurements")


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


@contextlib.contextmanager
def opened(file: Path) -> Iterator[sqlite3.Connection]:
    """The database, made where there is none; committed at the end, closed in any case."""
    if file.exists() and not file.is_file():
        raise SourceError(f"{file} is no file", hint="name another one in EDGEKIT_HISTORY")
    database = _connected(file)
    try:
        with database:
            database.execute("BEGIN IMMEDIATE")
            _prepare(database, file)
            yield database
    finally:
        database.close()


def _connected(file: Path) -> sqlite3.Connection:
    """A connection that ends a question which takes longer than any does."""
    database = sqlite3.connect(file, timeout=_BUSY_S)
    database.text_factory = _decoded
    end = time.monotonic() + _MOST_S
    database.set_progress_handler(lambda: time.monotonic() > end, _STEPS)
    database.execute("PRAGMA foreign_keys = ON")
    database.execute("PRAGMA trusted_schema = OFF")
    return database


def _decoded(text: bytes) -> str:
    return text.decode("utf-8", "replace")


def _prepare(database: sqlite3.Connection, file: Path) -> None:
    version = database.execute("PRAGMA user_version").fetchone()[0]
    if version == VERSION:
        _refuse_views(database, file)
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


def _refuse_views(database: sqlite3.Connection, file: Path) -> None:
    """A view or a virtual table of a table's name runs somebody's query, which need not end."""
    rows = database.execute("SELECT name, type, sql FROM sqlite_master").fetchall()
    plain = {
        str(n) for n, kind, sql in rows if kind == "table" and str(sql).upper().startswith("CREATE TABLE")
    }
    if missing := [name for name in _TABLES if name not in plain]:
        raise SourceError(
            f"{file} has no table {missing[0]}: it is none of edgekit's, or damaged",
            hint="name another file in EDGEKIT_HISTORY, or move this one away",
        )


@contextlib.contextmanager
def reading() -> Iterator[sqlite3.Connection]:
    """The database that is there. Raises :class:`UsageError` where none is kept, :class:`SourceError` where there is
    none yet, or it cannot be read."""
    file = place()
    if file is None:
        raise UsageError("no history is kept: EDGEKIT_HISTORY is off", hint="name a file in it, or unset it")
    if not file.is_file():
        raise SourceError(f"there is no history at {file}", hint="edgekit build, verify and bench write it")
    try:
        database = _connected(file)
        try:
            _prepare(database, file)
            yield database
        finally:
            database.close()
    except sqlite3.Error as error:
        raise SourceError(
            f"{file} cannot be read: {error}",
            hint="name another file in EDGEKIT_HISTORY, or move this one away",
        ) from error
