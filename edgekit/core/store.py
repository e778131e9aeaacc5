"""The content-addressed cache of finished steps.

A step's key is the sha256 of its name, its options, the sha256 of its inputs and the versions of what
runs it. Its value is a directory, produced under a temporary name and renamed into place when complete:
an interrupted step leaves nothing behind that a later run would take for a result. Its record holds the sha256 of
every file, and each is checked before it is used: what is damaged is made again.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import msgspec

from edgekit.core import cache, dependency, files, stops
from edgekit.core.alone import alone
from edgekit.core.cache import LOCKS, NOTES, PARTS, RECORD, STEPS
from edgekit.core.dependency import Dependency, Stamp, stamp, unchanged
from edgekit.core.structure import to_builtins
from edgekit.errors import UsageError
from edgekit.types import sha256_file


@dataclass(frozen=True, kw_only=True)
class Key:
    """What a step's result depends on."""

    name: str
    inputs: tuple[str, ...]
    options: Mapping[str, Any]
    versions: Mapping[str, str]

    @property
    def digest(self) -> str:
        """sha256 over the canonical JSON of the key."""
        return hashlib.sha256(canonical_json(self)).hexdigest()


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """A finished step: its directory, how long it took when it ran, and whether it ran just now."""

    key: Key
    directory: Path
    seconds: float
    cached: bool


def canonical_json(value: object) -> bytes:
    """Sorted, compact JSON: equal values give equal bytes."""
    return msgspec.json.encode(to_builtins(value), order="sorted")


def default_root() -> Path:
    """``$EDGEKIT_CACHE``, else ``$XDG_CACHE_HOME/edgekit``, else ``~/.cache/edgekit``."""
    if explicit := os.environ.get("EDGEKIT_CACHE"):
        return Path(explicit)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgekit"


def _refuse_what_is_no_folder(root: Path) -> None:
    there = next((p for p in (root, *root.parents) if os.path.lexists(p)), root)
    if os.path.lexists(there) and not there.is_dir():
        raise UsageError(
            f"the cache is to be at {root}, and {there} is no folder",
            hint="set EDGEKIT_CACHE to a folder; it is made where there is none",
        )


class Reading(Protocol):
    """Looks at what code reads (see :class:`edgekit.load.record.Recorder`)."""

    @property
    def dependencies(self) -> tuple[Dependency, ...]:
        """What was read."""
        ...

    @property
    def doubts(self) -> tuple[str, ...]:
        """Why something may be missing there."""
        ...


@dataclass(frozen=True, kw_only=True)
class Record:
    """What ``step.json`` says: how the step was made, the sha256 of each of its files, and what it read besides."""

    key: dict[str, object]
    seconds: float
    files: dict[str, str]
    reads: tuple[Dependency, ...] = ()
    doubts: tuple[str, ...] = ()


class DamagedError(Exception):
    """Something in the cache is not what was written there."""


class Store:
    """Finished steps under one root directory. Safe for several processes at once.

    ``report`` is told, once each, what was found damaged.
    """

    def __init__(self, root: Path | None = None, report: Callable[[str], None] | None = None) -> None:
        self.root = root or default_root()
        _refuse_what_is_no_folder(self.root)
        self._report = report or _warn
        self._limit, self._size = cache.limit(), -1
        self._checked: dict[Path, dict[str, Stamp]] = {}
        dependency.own |= {f"{self.root.absolute() / name}{os.sep}" for name in (NOTES, PARTS)}

    def step(self, key: Key, produce: Callable[[Path], None], reads: Reading | None = None) -> StepResult:
        """The result for ``key``: from the cache, else from ``produce(directory)``.

        ``produce`` writes into an empty directory; when it raises, the directory is removed and nothing
        is remembered. What it reads beyond the key is what ``reads`` saw: the result is another's once that
        changed, and nobody's where it cannot be told.
        """
        self._begin()
        if (there := self._finished(key)) is not None:
            return there
        with self._alone(key):
            # Another process may have made it meanwhile.
            return self._finished(key) or self._produced(key, produce, reads)

    def has(self, key: Key) -> bool:
        """Whether :meth:`step` would find the result for ``key``."""
        return self._finished(key) is not None

    def _finished(self, key: Key) -> StepResult | None:
        for directory in self._versions(key):
            record = self._found(directory, key, current=True)
            if record is not None:
                cache.touch(directory)
                dependency.used.update((d.name, d) for d in record.reads)
                return StepResult(key=key, directory=directory, seconds=record.seconds, cached=True)
        return None

    def _versions(self, key: Key) -> list[Path]:
        """The results for ``key`` that are there: one for each state of what the step reads beyond it."""
        return sorted((self.root / STEPS / key.name).glob(f"{key.digest[:32]}*"))

    def _alone(self, key: Key) -> AbstractContextManager[None]:
        """No other process makes the same step meanwhile, but those that make it together."""
        self._make_root()
        if (
            int(os.environ.get("WORLD_SIZE", "1")) > 1
        ):  # processes of torchrun wait for each other within the step
            return nullcontext()
        return alone(self.root / LOCKS, key.digest, stops.check)

    def _produced(self, key: Key, produce: Callable[[Path], None], reads: Reading | None) -> StepResult:
        with self.scratch() as work:
            stops.check()
            started = time.perf_counter()
            produce(work)
            stops.check()  # what was made while a library swallowed one may be half of it
            seconds = time.perf_counter() - started
            record = Record(
                key=to_builtins(key),
                seconds=round(seconds, 3),
                files={name: sha256_file(work / name) for name in sorted(_stamps(work))},
                reads=reads.dependencies if reads is not None else (),
                doubts=reads.doubts if reads is not None else (),
            )
            (work / RECORD).write_bytes(sealed(asdict(record)))
            final = self.root / STEPS / key.name / (key.digest[:32] + _version(record))
            self._publish(work, final, key)
        dependency.used.update((d.name, d) for d in record.reads)
        self._checked[final] = _stamps(final)
        cache.forget(self.root, [other for other in self._versions(key) if other != final])
        self._grow(final)
        return StepResult(key=key, directory=final, seconds=seconds, cached=False)

    def _publish(self, work: Path, final: Path, key: Key) -> None:
        """Move a result to its place. What is there already stays: whoever found it is reading it, and it was made of
        the same (by another of the processes that train together, or by another machine on a shared disk)."""
        final.parent.mkdir(parents=True, exist_ok=True)
        try:
            work.rename(final)
        except OSError:
            if self._found(final, key) is None:  # what is damaged is out of the way after this look
                work.rename(final)

    def results(self, name: str) -> Iterator[Path]:
        """The directories of all results of a step that are there and whole."""
        for directory in sorted((self.root / STEPS / name).glob("*")):
            if self._found(directory, None) is not None:
                yield directory

    def remember(self, name: str, parts: object, value: object) -> None:
        """Keep a small JSON value under ``name`` and the digest of ``parts``."""
        path = self._note(name, parts)
        with self.scratch() as work:
            (work / "note").write_bytes(sealed({"name": name, "value": value}))
            path.parent.mkdir(parents=True, exist_ok=True)
            (work / "note").replace(path)

    def recall(self, name: str, parts: object) -> Any:
        """What :meth:`remember` kept, or ``None``."""
        path = self._note(name, parts)
        try:
            self._own(path)
            document = unsealed(path)
            if document.get("name") != name:
                raise DamagedError("it is another's")
            cache.touch(path)
            return document["value"]
        except FileNotFoundError:
            return None
        except (DamagedError, KeyError) as reason:
            self._remove(path, f"what was known of {name}", str(reason))
            return None

    def scratch(self) -> AbstractContextManager[Path]:
        """A directory in the cache for what is being made (see :func:`edgekit.core.files.scratch`)."""
        self._make_root()
        return files.scratch(self.root / PARTS)

    def _begin(self) -> None:
        """Once a process and cache: what was killed is swept, what this process will use is not removed by others."""
        files.sweep_once(str(self.root / PARTS))
        files.sweep_once(str(files.temporary_place()))
        cache.begin_run(self.root)

    def _grow(self, directory: Path) -> None:
        """Keep the cache within its limit. Its size is taken once, then counted on."""
        if self._size < 0:
            self._size = sum(e.size for e in cache.entries(self.root))
        else:
            self._size += sum(s[0] for s in self._checked[directory].values())
        if self._size > self._limit:
            removed = cache.make_room(self.root, self._limit)
            self._size = -1
            if removed.entries:
                self._report(f"the cache is full: {removed.entries} of its oldest entries were removed")

    def _note(self, name: str, parts: object) -> Path:
        return self.root / NOTES / name / (hashlib.sha256(canonical_json(parts)).hexdigest()[:32] + ".json")

    def _make_root(self) -> None:
        """A cache that is made here is nobody else's to read: it holds models and data."""
        try:
            if not self.root.exists():
                self.root.parent.mkdir(parents=True, exist_ok=True)
                self.root.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise files.unwritable(self.root, error) from error

    def refuse_others(self) -> None:
        """Raise :class:`UsageError` when the cache is another user's."""
        if self.root.exists() and not _is_ours(status := self.root.stat()):
            raise UsageError(
                f"the cache {self.root} belongs to another user (number {status.st_uid})",
                hint="name a folder of your own with EDGEKIT_CACHE",
            )

    def _own(self, path: Path) -> None:
        """Raise for what another user owns: it may be changed after it was checked."""
        self.refuse_others()
        if not _is_ours(path.lstat()):
            raise DamagedError("it belongs to another user")

    def _found(self, directory: Path, key: Key | None, *, current: bool = False) -> Record | None:
        """The record of a result that is there and whole; what is damaged is said and removed.

        With ``current`` only that of one which still holds: what it read is as it was, and all that it read is known.
        """
        reason: Exception | None = None
        for _ in range(2):  # another process may have put a new one in its place between two looks
            try:
                self._own(directory)
                return self._whole(directory, key, current=current)
            except FileNotFoundError as error:
                if not directory.exists():
                    return None
                reason = DamagedError(f"{Path(error.filename or '').name} is missing")
            except (DamagedError, OSError, msgspec.MsgspecError) as error:
                reason = error
        self._checked.pop(directory, None)
        self._remove(directory, f"the cached result of {directory.parent.name}", str(reason))
        return None

    def _whole(self, directory: Path, key: Key | None, *, current: bool) -> Record | None:
        record = msgspec.convert(unsealed(directory / RECORD), Record)
        if current and (record.doubts or not unchanged(record.reads)):
            return None  # before its files are read: they may be large
        if key is not None and canonical_json(record.key) != canonical_json(key):
            raise DamagedError("it is another's")
        present, checked = _stamps(directory), self._checked.get(directory, {})
        if odd := sorted(record.files.keys() ^ present.keys()):
            raise DamagedError(
                f"{odd[0]} {'is missing' if odd[0] in record.files else 'does not belong there'}"
            )
        for name, digest in record.files.items():
            if checked.get(name) != present[name] and sha256_file(directory / name) != digest:
                raise DamagedError(f"{name} is not what was written")
        self._checked[directory] = present
        return record

    def _remove(self, path: Path, what: str, reason: str) -> None:
        self._report(f"{what} was damaged ({reason}) and is made again")
        # Out of sight in one step: whoever looks now finds nothing, not a part.
        with contextlib.suppress(OSError, UsageError), self.scratch() as grave:
            path.rename(grave / "damaged")


def _version(record: Record) -> str:
    """What tells results of one key apart, in the names of their folders: a result is never replaced by another while
    somebody reads it. Nothing for a step that reads nothing beyond its key."""
    if record.doubts:
        return f"-{secrets.token_hex(8)}"
    return f"-{hashlib.sha256(canonical_json(record.reads)).hexdigest()[:16]}" if record.reads else ""


def _stamps(directory: Path, inside: str = "") -> dict[str, Stamp]:
    """The files below a directory, but for the record, by name. Raises :class:`DamagedError` for any other thing."""
    found: dict[str, Stamp] = {}
    with os.scandir(directory) as entries:
        for entry in entries:
            name, status = f"{inside}{entry.name}", entry.stat(follow_symlinks=False)
            if not _is_ours(status):
                raise DamagedError(f"{name} belongs to another user")
            if stat.S_ISDIR(status.st_mode):
                found |= _stamps(Path(entry.path), f"{name}/")
            elif not stat.S_ISREG(status.st_mode):
                raise DamagedError(f"{name} is no file")
            elif name != RECORD:
                found[name] = stamp(entry.path)
    return found


def _is_ours(status: os.stat_result) -> bool:
    return not hasattr(os, "geteuid") or status.st_uid == os.geteuid()


def sealed(document: dict[str, object]) -> bytes:
    """The document with its own sha256 in it, for :func:`unsealed`."""
    plain = to_builtins(document)
    return canonical_json({**plain, "sha256": hashlib.sha256(canonical_json(plain)).hexdigest()})


def unsealed(path: Path, *, most: int = 0) -> dict[str, Any]:
    """What :func:`sealed` made; every byte counts. Raises :class:`DamagedError`, FileNotFoundError."""
    try:
        raw = files.read(path, most=most)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise DamagedError(f"{path.name} is no file") from None
    try:
        document = msgspec.json.decode(raw, type=dict[str, Any])
    except msgspec.MsgspecError:
        raise DamagedError(f"{path.name} cannot be read") from None
    document.pop("sha256", None)
    if sealed(document) != raw:
        raise DamagedError(f"{path.name} is not what was written")
    return document


def _warn(message: str) -> None:
    import logging

    logging.getLogger("edgekit").warning(message)
