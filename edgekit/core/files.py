"""Files that appear as a whole, folders that go with their process, and what killed processes left of both.

Whatever is being made has a name that says which process makes it. Where that process is gone, the next one that
makes something in the same place removes it.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import lzma
import os
import re
import secrets
import shutil
import struct
import tempfile
import time
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from edgekit.core.dependency import own
from edgekit.errors import EdgekitError, UsageError

_NAME = re.compile(
    r"(?P<kind>\.part|\.old|\.run|edgekit[a-z-]*|ek)"
    r"-(?P<pid>\d+)\.(?P<start>\d+)\.(?P<space>[0-9a-f]+)(-(?P<rest>.*))?"
)
DAMAGED_ZIP = (
    OSError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    KeyError,
    MemoryError,
    OverflowError,
    struct.error,
)
"""What reading an archive raises where it is damaged, truncated, encrypted or of a kind that zipfile does not know."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_ALMOST_NOTHING = 1 << 20
_ELSEWHERE_S = 7 * 86400
"""How long what another machine or container makes in a shared folder is left alone: nobody here sees if it lives."""


def owner() -> str:
    """This process in names of files: its number, when it began, and where numbers of processes mean the same."""
    pid = os.getpid()
    return f"{pid}.{_began(pid)}.{_space()}"


def _began(pid: int) -> int:
    """Clock ticks from the boot of the machine to the start of a process, so that a number that was given again is
    told from the first; 0 where the system does not say."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123
            return int(file.read().rpartition(b")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return 0


@functools.cache
def _space() -> str:
    parts = [os.uname().nodename if hasattr(os, "uname") else ""]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii"))
    with contextlib.suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))  # noqa: PTH115
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:6]


def alive(name: str) -> bool:
    """Whether the process that a name tells of may still run; so it is with names that tell of none."""
    match = _NAME.fullmatch(name)
    if match is None or match["space"] != _space():
        return True
    pid = int(match["pid"])
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        pass
    return _began(pid) == int(match["start"])


def sweep(folder: Path) -> int:
    """Remove what dead processes of this user left in a folder; how much that was. A look at one list of names."""
    removed = 0
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in [e for e in entries if _NAME.fullmatch(e.name)]:
            with contextlib.suppress(OSError):
                removed += _swept(folder, entry)
    return removed


def _swept(folder: Path, entry: os.DirEntry[str]) -> bool:
    match, status = _NAME.fullmatch(entry.name), entry.stat(follow_symlinks=False)
    assert match is not None
    elsewhere = match["space"] != _space() and time.time() - status.st_mtime > _ELSEWHERE_S
    if status.st_uid != os.geteuid() or (alive(entry.name) and not elsewhere):
        return False
    final = folder / (match["rest"] or "")
    if match["kind"] == ".old" and not final.exists():  # killed between two renames: nothing is lost
        Path(entry.path).rename(final)
    elif entry.is_dir(follow_symlinks=False):
        shutil.rmtree(entry.path, ignore_errors=True)
    else:
        Path(entry.path).unlink()
    return True


# --- folders that go with the process -------------------------------------------------------------------


def temporary(kind: str) -> tempfile.TemporaryDirectory[str]:
    """A private folder for the files of one run, removed with the object that is returned."""
    sweep_once(tempfile.gettempdir())
    folder = tempfile.TemporaryDirectory(prefix=f"edgekit-{kind}-{owner()}-")
    own.add(f"{folder.name}{os.sep}")
    return folder


@functools.cache
def sweep_once(place: str) -> None:
    """:func:`sweep`, once a process."""
    sweep(Path(place))


# --- files and folders that appear as a whole -----------------------------------------------------------


def write(path: Path, data: bytes | memoryview) -> None:
    """Write a file under a temporary name, then rename: readers see the old content or the new one."""
    part = path.with_name(f".part-{owner()}-{secrets.token_hex(4)}")
    try:
        part.write_bytes(data)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def scratch(parent: Path) -> Iterator[Path]:
    """A private directory under ``parent``, removed at the end unless it was renamed away.

    Raises :class:`UsageError` when it cannot be made, or when the disk is full (or a quota or file-size
    limit reached) while the block runs, whatever the code inside made of that.
    """
    try:
        parent.mkdir(parents=True, exist_ok=True)
        sweep_once(str(parent))
        work = parent / f".part-{owner()}-{secrets.token_hex(4)}"
        work.mkdir()
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


def publish(work: Path, final: Path) -> None:
    """Move a complete directory to its place, replacing what was there in one step as seen by readers."""
    try:
        work.rename(final)
    except OSError:
        old = work.with_name(f".old-{owner()}-{final.name}")
        shutil.rmtree(old, ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):
            final.rename(old)
        work.rename(final)
        shutil.rmtree(old, ignore_errors=True)


def disk_is_full(error: BaseException) -> bool:
    """Whether this is the operating system's word that nothing more can be written."""
    return isinstance(error, OSError) and error.errno in _FULL


def unwritable(parent: Path, error: Exception) -> UsageError:
    """What to raise when the operating system refuses to write below ``parent``."""
    why = getattr(error, "strerror", None) or "the disk is full"
    return UsageError(
        f"cannot write to {parent}: {why}",
        hint="free some space, or name another folder (--out; the cache is set by EDGEKIT_CACHE)",
    )
