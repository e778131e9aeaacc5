"""The content-addressed cache of finished steps.

A step's key is the sha256 of its name, its options, the sha256 of its inputs and the versions of what
runs it. Its value is a directory, produced under a temporary name and renamed into place when complete:
an interrupted step leaves nothing behind that a later run would take for a result.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import msgspec

from edgekit.core.dependency import Dependency, unchanged
from edgekit.core.structure import to_builtins
from edgekit.errors import EdgekitError, UsageError

RECORD = "step.json"


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


class Store:
    """Finished steps under one root directory. Safe for several processes at once."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or default_root()

    def step(self, key: Key, produce: Callable[[Path], None], reads: Reading | None = None) -> StepResult:
        """The result for ``key``: from the cache, else from ``produce(directory)``.

        ``produce`` writes into an empty directory; when it raises, the directory is removed and nothing
        is remembered. What it reads beyond the key is what ``reads`` saw: the result is another's once that
        changed, and nobody's where it cannot be told.
        """
        final = self.root / "steps" / key.name / key.digest[:32]
        record = _read_record(final)
        if record is not None and _holds(record):
            return StepResult(key=key, directory=final, seconds=record["seconds"], cached=True)
        with scratch(final.parent) as work:
            started = time.perf_counter()
            produce(work)
            seconds = time.perf_counter() - started
            record = {"key": key, "seconds": round(seconds, 3)}
            if reads is not None:
                record |= {"reads": reads.dependencies, "doubts": reads.doubts}
            (work / RECORD).write_bytes(canonical_json(record))
            publish(work, final)
        return StepResult(key=key, directory=final, seconds=seconds, cached=False)

    def remember(self, name: str, parts: object, value: object) -> None:
        """Keep a small JSON value under ``name`` and the digest of ``parts``."""
        path = self._note(name, parts)
        with scratch(path.parent) as work:
            (work / "note").write_bytes(canonical_json(value))
            (work / "note").replace(path)

    def recall(self, name: str, parts: object) -> Any:
        """What :meth:`remember` kept, or ``None``."""
        path = self._note(name, parts)
        try:
            return msgspec.json.decode(path.read_bytes())
        except (FileNotFoundError, msgspec.DecodeError):
            return None

    def _note(self, name: str, parts: object) -> Path:
        return self.root / "notes" / name / (hashlib.sha256(canonical_json(parts)).hexdigest()[:32] + ".json")


@contextlib.contextmanager
def scratch(parent: Path) -> Iterator[Path]:
    """A private directory under ``parent``, removed at the end unless it was renamed away.

    Raises :class:`UsageError` when it cannot be made, or when the disk is full (or a quota or file-size
    limit reached) while the block runs, whatever the code inside made of that.
    """
    try:
        parent.mkdir(parents=True, exist_ok=True)
        work = parent / f".part-{os.getpid()}-{secrets.token_hex(4)}"
        work.mkdir(mode=0o700)
    except OSError as e:
        raise unwritable(parent, e) from e
    try:
        yield work
    except OSError as e:
        if not disk_is_full(e):
            raise
        raise unwritable(parent, e) from e
    except EdgekitError:
        raise
    except Exception as e:
        if shutil.disk_usage(parent).free > _ALMOST_NOTHING:
            raise
        raise unwritable(parent, e) from e
    finally:
        shutil.rmtree(work, ignore_errors=True)


def disk_is_full(error: BaseException) -> bool:
    """Whether this is the operating system's word that nothing more can be written."""
    return isinstance(error, OSError) and error.errno in _FULL


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_ALMOST_NOTHING = 1 << 20


def unwritable(parent: Path, error: Exception) -> UsageError:
    """What to raise when the operating system refuses to write below ``parent``."""
    why = getattr(error, "strerror", None) or "the disk is full"
    return UsageError(
        f"cannot write to {parent}: {why}",
        hint="free some space, or name another folder (--out; the cache is set by EDGEKIT_CACHE)",
    )


def publish(work: Path, final: Path) -> None:
    """Move a complete directory to its place, replacing what was there in one step as seen by readers."""
    work.chmod(0o755)
    try:
        work.rename(final)
    except OSError:
        old = final.with_name(f".old-{os.getpid()}-{secrets.token_hex(4)}")
        with contextlib.suppress(FileNotFoundError):
            final.rename(old)
        work.rename(final)
        shutil.rmtree(old, ignore_errors=True)


def _holds(record: Any) -> bool:
    """Whether what the step read beyond its key is as it was."""
    reads = msgspec.convert(record.get("reads", ()), tuple[Dependency, ...])
    return not record.get("doubts") and unchanged(reads)


def _read_record(directory: Path) -> Any:
    try:
        return msgspec.json.decode((directory / RECORD).read_bytes())
    except (FileNotFoundError, msgspec.DecodeError):
        return None
