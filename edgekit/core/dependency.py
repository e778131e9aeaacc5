"""What a result was made from besides its key: files, folders, environment variables, and whether they are the same.

Light: the second identical build answers from these records alone.
"""

from __future__ import annotations

import contextlib
import enum
import hashlib
import os
import stat as modes
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgekit.types import sha256_file


class Kind(enum.StrEnum):
    """What was read of a name."""

    FILE = "file"
    FOLDER = "folder"  # listed: which names it holds
    PRESENT = "present"  # asked for only, and there
    ABSENT = "absent"  # asked for, and not there
    VARIABLE = "variable"


_stat = os.stat  # whoever watches what code reads puts another in its place

Stamp = tuple[int, ...]
"""Size, times of change (the inode's too, which nobody can set back), inode and device of a file; empty: unknown."""

assigned: dict[str, tuple[str | None, str | None]] = {}
"""Variables that the user's code set in this process: what they were before, and what it made of them."""

own: set[str] = set()
"""Folders (with a separator at the end) of edgekit's own that no result depends on: what is being made, notes."""

used: dict[str, Dependency] = {}
"""What the results of this process rest on besides their keys, by name; of failures, what was read until then."""

_RACY_NS = 2_000_000_000
"""A file this young may change again without another time stamp: file systems count in up to two seconds."""


@dataclass(frozen=True, kw_only=True)
class Dependency:
    """One thing as it was when it was read. ``name`` is an absolute path, or a variable's name.

    ``sha256`` is that of a file's content, of the names in a folder, or of a variable's value (``""`` where it
    was not set); ``stamp`` spares reading a file again that was not touched.
    """

    kind: Kind
    name: str
    sha256: str = ""
    stamp: Stamp = ()


def stamp(path: str) -> Stamp:
    """The stamp of what is at ``path``, symbolic links followed; empty where there is nothing."""
    try:
        status = _stat(path)
    except (OSError, ValueError):
        return ()
    return (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev)


def is_folder(path: str) -> bool:
    """Whether there is a folder at ``path``."""
    try:
        return modes.S_ISDIR(_stat(path).st_mode)
    except (OSError, ValueError):
        return False


def of_path(path: str, *, listed: bool = False) -> Dependency:
    """What is at ``path`` now: a file with its content, a folder with its names where it was ``listed``."""
    before = stamp(path)
    if not before:
        return Dependency(kind=Kind.ABSENT, name=path)
    kind, content = Kind.PRESENT, ""
    with contextlib.suppress(OSError):  # what may not be read has no content, and gets one when it may
        mode = _stat(path).st_mode
        if modes.S_ISREG(mode):
            kind, content = Kind.FILE, ""
            content = sha256_file(Path(path))
        elif modes.S_ISDIR(mode) and listed:
            kind, content = Kind.FOLDER, ""
            content = _names_in(path)
    racy = time.time_ns() - max(before[1:3]) < _RACY_NS
    return Dependency(kind=kind, name=path, sha256=content, stamp=() if racy else before)


def of_variable(name: str, value: str | None) -> Dependency:
    """An environment variable; only the digest of its value is kept: it may be a password."""
    content = "" if value is None else hashlib.sha256(value.encode("utf-8", "surrogateescape")).hexdigest()
    return Dependency(kind=Kind.VARIABLE, name=name, sha256=content)


def variable(name: str) -> str | None:
    """The value that a process begins with: what the user's own code made of it is no dependency of that code."""
    value = os.environ.get(name)
    before, after = assigned.get(name, (value, value))
    return before if value == after else value


def refreshed(dependencies: Iterable[Dependency]) -> tuple[Dependency, ...] | None:
    """The same with today's stamps; ``None`` when one of them is not as it was."""
    current: list[Dependency] = []
    for old in dependencies:
        if old.stamp and stamp(old.name) == old.stamp:
            current.append(old)
            continue
        new = _again(old)
        if (new.kind, new.sha256) != (old.kind, old.sha256):
            return None
        current.append(replace(old, stamp=new.stamp))
    return tuple(current)


def unchanged(dependencies: Iterable[Dependency]) -> bool:
    """Whether all of them are as they were."""
    return refreshed(dependencies) is not None


def digest(dependencies: Sequence[Dependency]) -> list[tuple[str, str, str]]:
    """What of them tells one result from another: names without their folders, and contents, in the order of the
    paths, so that two files of one name that change places are seen.

    What was looked for and not found is left out: where it is found, something else stands here in its place.
    """
    return [
        (d.kind, d.name if d.kind is Kind.VARIABLE else Path(d.name).name, d.sha256)
        for d in sorted(dependencies, key=lambda d: d.name)
        if d.kind is not Kind.ABSENT and not (d.kind is Kind.VARIABLE and not d.sha256)
    ]


def _again(old: Dependency) -> Dependency:
    if old.kind is Kind.VARIABLE:
        return of_variable(old.name, variable(old.name))
    if old.kind in (Kind.PRESENT, Kind.ABSENT):
        return replace(old, kind=Kind.PRESENT if stamp(old.name) else Kind.ABSENT, stamp=())
    return of_path(old.name, listed=old.kind is Kind.FOLDER)


def _names_in(path: str) -> str:
    names = sorted(n for n in os.listdir(path) if n != "__pycache__" and not n.startswith("."))  # noqa: PTH208
    return hashlib.sha256("\0".join(names).encode("utf-8", "surrogateescape")).hexdigest()
