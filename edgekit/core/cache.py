"""How much the cache may hold, what it holds, and what goes first: the entries that were used longest ago.

An entry is a step's result or a note; using it touches its record. Nothing goes that a running process may have used.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from edgekit.core import files
from edgekit.errors import ConfigError

RECORD = "step.json"
LOCKS = "locks"
"""A file whose bytes are locked, one for each step that a process makes."""
STEPS, NOTES, PARTS, RUNS = "steps", "notes", "parts", "runs"
UNFINISHED = ("compressing", "searches")
"""Folders of work that goes on where it was killed."""

LIMIT = "EDGEKIT_CACHE_LIMIT"
DEFAULT_LIMIT = "20GB"
_LOW = 0.9  # what is made room for at once, so that not every step has to make some

_UNITS = {
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
MOST_BYTES = 1 << 50
"""The system takes no limit that needs more than 63 bits; no size that is meant comes near."""
_SPANS = {"h": 3600, "d": 86400, "w": 7 * 86400}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One result or note. ``kind``: the step's name; ``used``: when, in seconds of the system's clock."""

    path: Path
    kind: str
    size: int
    used: float


@dataclass(frozen=True, kw_only=True)
class Removed:
    """What went: how many entries, and bytes."""

    entries: int = 0
    bytes: int = 0

    def __add__(self, other: Removed) -> Removed:
        return Removed(entries=self.entries + other.entries, bytes=self.bytes + other.bytes)


def parse_size(text: str, *, what: str) -> int:
    """Bytes of ``20GB`` or ``512 MiB``. Raises :class:`ConfigError` for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kKMGT]i?B)", text.strip())
    if match is None or match[2] not in _UNITS:
        raise ConfigError(
            f"{what}: {_cut(text)!r} is no size",
            hint=f"write a number and one of {', '.join(_UNITS)}, such as 20GB",
        )
    size = float(match[1]) * _UNITS[match[2]]
    if size > MOST_BYTES:
        raise ConfigError(f"{what}: {_cut(text)} is more than any machine has", hint="1024TiB at most")
    return round(size)


def parse_memory(text: str, *, what: str) -> int:
    """Bytes of a limit of memory, as :func:`parse_size`; none at all is no limit that anything can keep."""
    size = parse_size(text, what=what)
    if size < 1:
        raise ConfigError(
            f"{what}: {_cut(text)!r} leaves no memory", hint="write what a process may take, such as 4GB"
        )
    return size


def _cut(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:40]}…"


def parse_age(text: str, *, what: str) -> float:
    """Seconds of ``30d``, ``12h`` or ``4w``. Raises :class:`ConfigError` for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([hdw])", text.strip())
    if match is None:
        raise ConfigError(f"{what}: {text!r} is no age", hint="write a number and h, d or w, such as 30d")
    return float(match[1]) * _SPANS[match[2]]


def limit() -> int:
    """How many bytes the cache may hold: ``$EDGEKIT_CACHE_LIMIT``, else 20 GB."""
    return parse_size(os.environ.get(LIMIT) or DEFAULT_LIMIT, what=LIMIT)


def entries(root: Path) -> Iterator[Entry]:
    """Everything that can go, with unfinished work."""
    for place in (STEPS, NOTES):
        for kind in _listed(root / place):
            for path in _listed(kind):
                yield from _entry(path, f"note: {kind.name}" if place == NOTES else kind.name)
    for name in UNFINISHED:
        for path in _listed(root / name):
            yield from _entry(path, name)


def touch(path: Path) -> None:
    """This entry is used now. A cache that is read only keeps its times."""
    with contextlib.suppress(OSError):
        os.utime(path / RECORD if path.is_dir() else path)


def reduce(
    root: Path, *, size: int | None = None, used_before: float | None = None, kept: tuple[str, ...] = ()
) -> Removed:
    """Remove what was not used since ``used_before``, then what was used longest ago until ``size`` bytes are left.

    Entries of the kinds ``kept`` do not go for their size. What a process that runs may have used stays.
    """
    present = sorted(entries(root), key=lambda e: e.used)
    protected = _oldest_run(root)
    total, removed = sum(e.size for e in present), Removed()
    for entry in present:
        old = used_before is not None and entry.used < used_before
        if not old and (size is None or total <= size or entry.kind in kept):
            continue
        if entry.used >= protected or not _remove(root, entry):
            continue
        total -= entry.size
        removed += Removed(entries=1, bytes=entry.size)
    return removed


def forget(root: Path, results: Iterable[Path]) -> None:
    """Remove results that something newer stands for, but for those that a process which runs may have used."""
    protected = _oldest_run(root)
    for path in results:
        for entry in _entry(path, path.parent.name):
            if entry.used < protected:
                _remove(root, entry)


def begin_run(root: Path) -> None:
    """Say that this process uses the cache, until it ends."""
    marker = root / RUNS / f".run-{files.owner()}"
    if marker.exists() or not root.exists():
        return
    with contextlib.suppress(OSError):
        marker.parent.mkdir(exist_ok=True)
        files.sweep(marker.parent)
        marker.touch()
        atexit.register(_end_run, marker, os.getpid())


def _end_run(marker: Path, process: int) -> None:
    if os.getpid() == process:
        with contextlib.suppress(OSError):
            marker.unlink()


def _oldest_run(root: Path) -> float:
    """When the oldest process that runs began: what was used since may still be in use."""
    times = [float("inf")]
    for path in _listed(root / RUNS):
        with contextlib.suppress(OSError):
            if files.alive(path.name):
                times.append(path.stat().st_mtime)
    return min(times)


def make_room(root: Path, most: int) -> Removed:
    """Keep the cache within ``most`` bytes, with some room to spare once something has to go."""
    if sum(e.size for e in entries(root)) <= most:
        return Removed()
    return reduce(root, size=int(most * _LOW), kept=UNFINISHED)


def _remove(root: Path, entry: Entry) -> bool:
    """Out of sight in one step, so that whoever looks now finds all of it or nothing."""
    with contextlib.suppress(OSError), files.scratch(root / PARTS) as grave:
        entry.path.rename(grave / "removed")
        return True
    return False


def _entry(path: Path, kind: str) -> Iterator[Entry]:
    with contextlib.suppress(OSError):
        record = path / RECORD
        seen = record if record.is_file() else path
        yield Entry(path=path, kind=kind, size=_size(path), used=seen.stat().st_mtime)


def _size(path: Path) -> int:
    if not path.is_dir():
        return path.lstat().st_size
    with os.scandir(path) as found:
        return sum(
            _size(Path(e.path)) if e.is_dir(follow_symlinks=False) else e.stat(follow_symlinks=False).st_size
            for e in found
        )


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def prune(
    root: Path, *, size: int | None = None, used_before: float | None = None, kept: tuple[str, ...] = ()
) -> Removed:
    """:func:`reduce`, and what killed processes left."""
    removed = reduce(root, size=size, used_before=used_before, kept=kept)
    for place in (root / PARTS, *_listed(root / STEPS), *_listed(root / NOTES)):
        files.sweep(place)
        with contextlib.suppress(OSError):
            place.rmdir()  # where nothing is left in it
    return removed
