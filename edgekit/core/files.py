"""Files that appear as a whole, folders that go with their process, and what killed processes left of both.

Whatever is being made has a name that says which process makes it. Where that process is gone, the next one that
makes something in the same place removes it.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import itertools
import lzma
import os
import re
import secrets
import shutil
import stat
import struct
import tempfile
import time
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

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
_OF_A_NAME = (
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
    errno.ENXIO,
)
"""What the system says of a name that it was given: nobody but who gave it can do anything about it."""
_OF_NO_FILE = (errno.ENXIO, errno.ELOOP, errno.EISDIR)
"""Its word for a pipe that nobody reads, a link, a folder."""
_SHOWN = 120
_OS_ERROR = re.compile(r"\(os error (\d+)\)")
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
        return int(_status(pid)[19])
    except (IndexError, ValueError):
        return 0


def _ended(pid: int) -> bool:
    """Whether nobody has asked yet how it ended: where no init does, in many a container, it stays so for ever."""
    return _status(pid)[:1] in ([b"Z"], [b"X"])


def _status(pid: int) -> list[bytes]:
    """What the system says of a process after its name."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123
            return file.read().rpartition(b")")[2].split()
    except OSError:
        return []


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
    return _began(pid) == int(match["start"]) and not _ended(pid)


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
    """A private folder for the files of one run, removed with the object that is returned.

    Raises :class:`UsageError` where none can be made.
    """
    place = temporary_place()
    sweep_once(str(place))
    try:
        folder = tempfile.TemporaryDirectory(prefix=f"edgekit-{kind}-{owner()}-", dir=place)
    except OSError as e:
        raise unwritable(place, e) from e
    own.add(f"{folder.name}{os.sep}")
    return folder


def temporary_place() -> Path:
    """``TMPDIR``, or what the system has in its place. Raises :class:`UsageError` where none can be written to."""
    try:
        return Path(tempfile.gettempdir())
    except OSError as e:
        raise unwritable(Path(os.environ.get("TMPDIR") or "/tmp"), e) from e  # noqa: S108


@functools.cache
def sweep_once(place: str) -> None:
    """:func:`sweep`, once a process."""
    sweep(Path(place))


# --- files and folders that appear as a whole -----------------------------------------------------------


def read(path: Path, *, most: int = 0) -> bytes:
    """The bytes of a file that somebody else put there. Raises ``OSError``, for a pipe or a device too: nothing would
    ever come out of the first, and the second has no end; and for more than ``most`` bytes (0: as many as there are).
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    if stat.S_ISDIR(os.fstat(descriptor).st_mode):
        os.close(descriptor)  # opened as a file, it would be named by its number
        raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
    with open(descriptor, "rb") as file:  # noqa: PTH123
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is no file", str(path))
        if most and os.fstat(descriptor).st_size > most:
            raise OSError(errno.EFBIG, f"it has more than {most:,} bytes", str(path))
        return file.read()


def opened(path: Path, *, append: bool = False) -> BinaryIO:
    """A file of edgekit's own to write into, made where there is none. Raises ``OSError`` for a link, a pipe or a
    device: what is behind it is somebody's, and a pipe waits until it is read."""
    flags = os.O_WRONLY | os.O_CREAT | (os.O_APPEND if append else os.O_TRUNC)
    return open(ours(path, flags), "ab" if append else "wb")


def ours(path: Path, flags: int, mode: int = 0o666) -> int:
    """The descriptor of a plain file, opened with ``flags``. Raises ``OSError`` as :func:`opened`."""
    for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC"):
        flags |= getattr(os, name, 0)
    try:
        descriptor = os.open(path, flags, mode)
    except OSError as error:
        if error.errno not in _OF_NO_FILE:
            raise
        raise OSError(error.errno, "it is no file, or a link", str(path)) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.ENXIO, "it is no file", str(path))
    return descriptor


def is_within(path: Path, folder: Path) -> bool:
    """Whether a path leads to something in ``folder``, links followed; not where it leads nowhere."""
    try:
        return path.resolve().is_relative_to(folder)
    except (OSError, RuntimeError, ValueError):  # a name that no file can have, a link to itself
        return False


def write(path: Path, data: bytes | memoryview) -> None:
    """Write a file under a temporary name, then rename: readers see the old content or the new one."""
    with whole(path) as part:
        part.write_bytes(data)


def put(path: Path, data: bytes) -> None:
    """:func:`write` to a place that the user named, its folder made where it is missing.

    Raises :class:`UsageError` where that cannot be.
    """
    if not path.name or path.is_dir():
        raise UsageError(f"{path} is no file to write to", hint="name a file, in a folder or here")
    try:
        with inside(path.parent):
            if path.is_symlink() or (path.exists() and not path.is_file()):
                _into(path, data)
            else:
                write(path, data)
    except OSError as error:
        raise unwritable(path, error) from error


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """``folder``, made where it is missing; folders that were made for nothing, as the system let nobody write into
    them, are taken away again."""
    new = _missing(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError:
        _untouch(new)
        raise


@contextlib.contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Around what writes below ``folder`` as it goes on: raises :class:`UsageError` where the disk is full, and takes
    away the folders that were made in vain."""
    new = _missing(folder)
    try:
        yield
    except OSError as e:
        if not disk_is_full(e):
            raise
        _untouch(new)
        raise unwritable(_full_of(folder, e), e) from e


def _into(path: Path, data: bytes) -> None:
    """Into what a link leads to, a pipe or a device (``/dev/stdout``): these are not replaced by a file. A pipe that
    nobody reads is refused by the system, and does not wait."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_NONBLOCK", 0)
    descriptor = os.open(path, flags, 0o666)
    os.set_blocking(descriptor, True)
    with open(descriptor, "wb") as file:  # noqa: PTH123
        file.write(data)


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A name beside ``path`` for a file or folder, which gets the name ``path`` where the block ends well."""
    sweep_once(str(path.parent))
    part = path.with_name(f".part-{owner()}-{secrets.token_hex(4)}")
    try:
        yield part
        if part.is_file():
            _by_umask(part)
        try:
            part.replace(path)
        except OSError as error:  # in words of the name that the user knows
            raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)


def _by_umask(part: Path) -> None:
    """Who may read a new file is the user's to say: some libraries write what only its owner may."""
    new = part.with_name(f"{part.name}-new")
    new.touch()
    mode = stat.S_IMODE(new.stat().st_mode)
    new.unlink()
    if stat.S_IMODE(part.stat().st_mode) != mode:
        part.chmod(mode)


@contextlib.contextmanager
def scratch(parent: Path) -> Iterator[Path]:
    """A private directory under ``parent``, removed at the end unless it was renamed away.

    Raises :class:`UsageError` when it cannot be made, or when the disk is full (or a quota or file-size
    limit reached) while the block runs, whatever the code inside made of that. Folders that were made for it are then
    taken away again.
    """
    new = _missing(parent)
    try:
        parent.mkdir(parents=True, exist_ok=True)
        sweep_once(str(parent))
        work = parent / f".part-{owner()}-{secrets.token_hex(4)}"
        work.mkdir()
    except OSError as e:
        _untouch(new)
        raise unwritable(parent, e) from e
    try:
        yield work
    except EdgekitError:
        raise
    except Exception as e:
        full = _full_of(parent, e)
        if not disk_is_full(e) and (isinstance(e, OSError) or _room(full) > _ALMOST_NOTHING):
            raise
        shutil.rmtree(work, ignore_errors=True)
        _untouch(new)
        raise unwritable(full, e) from e
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _missing(folder: Path) -> list[Path]:
    """``folder`` and its parents as far as they do not exist, the innermost first."""
    return list(itertools.takewhile(lambda place: not os.path.lexists(place), (folder, *folder.parents)))


def _untouch(folders: Iterable[Path]) -> None:
    """Remove folders that were made in vain; one that somebody has put something into stays."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def publish(work: Path, final: Path) -> None:
    """Move a complete directory to its place, replacing what was there in one step as seen by readers."""
    try:
        work.rename(final)
    except OSError:
        old = work.with_name(f".old-{owner()}-{final.name}")
        _remove(old)
        with contextlib.suppress(FileNotFoundError):
            final.rename(old)
        work.rename(final)
        _remove(old)


def _remove(path: Path) -> None:
    """A folder with all in it; of a link the link alone."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _full_of(parent: Path, error: Exception) -> Path:
    """Which of the folders that are written to is full: what is made in one is prepared in the other."""
    places = [parent, Path(tempfile.gettempdir())]
    # Of a copy both names are told; the second is the one that is written.
    name = (error.filename2 or error.filename) if isinstance(error, OSError) else None
    if isinstance(name, str | bytes) and name:
        named = Path(os.fsdecode(name))
        places = [place for place in places if named.is_relative_to(place)] or [named.parent]
    return min(places, key=_room)


def _room(place: Path) -> int:
    try:
        there = next(p for p in (place, *place.absolute().parents) if p.exists())
        return shutil.disk_usage(there).free
    except OSError:
        return 1 << 62


def disk_is_full(error: BaseException) -> bool:
    """Whether this is the operating system's word that nothing more can be written."""
    return isinstance(error, OSError) and error.errno in _FULL


@contextlib.contextmanager
def system_errors() -> Iterator[None]:
    """What safetensors makes of the operating system's word, as the ``OSError`` that it was: its number is at the end
    of ``I/O error: File too large (os error 27)``."""
    try:
        yield
    except Exception as error:
        number = _OS_ERROR.search(str(error))
        if type(error).__name__ != "SafetensorError" or number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error


def refused_by_system(error: BaseException) -> UsageError | None:
    """What to raise for an operating system's word that says nothing of edgekit: no room, no working folder."""
    if isinstance(error, UnicodeEncodeError) and "\udc00" <= error.object[error.start] <= "\udcff":
        return UsageError(  # how Python writes the bytes of a name that are no text
            f"a name here is no UTF-8: {ascii(error.object)[:_SHOWN]}",
            hint="rename the file or folder: runtimes, manifests and JSON take names in UTF-8 alone",
        )
    if not isinstance(error, OSError):
        return None
    if error.errno in (errno.ENOENT, errno.ESTALE) and working_folder_is_gone():
        return gone()
    if disk_is_full(error):
        return unwritable(_full_of(Path.cwd(), error), error)
    if error.errno in _OF_A_NAME and isinstance(error.filename, str | bytes):
        name = os.fsdecode(error.filename)
        named = name if len(name) <= _SHOWN else f"{name[:_SHOWN]}…"
        return UsageError(
            f"{named}: {error.strerror}", hint="check the name; another one, or another folder, may do"
        )
    return None


def working_folder_is_gone() -> bool:
    """Whether relative names mean nothing any more."""
    try:
        return not Path(os.getcwd()).is_dir()  # noqa: PTH109
    except OSError:
        return True


def gone() -> UsageError:
    """What to raise then."""
    return UsageError(
        "the working folder is gone: somebody removed or renamed it, or what it is mounted from",
        hint="change to a folder that exists, and run it again",
    )


def unwritable(parent: Path, error: Exception) -> UsageError:
    """What to raise when the operating system refuses to write below ``parent``."""
    if working_folder_is_gone():
        return gone()
    why = getattr(error, "strerror", None) or "the disk is full"
    what = " (TMPDIR)" if parent == Path(tempfile.tempdir or "") else ""
    return UsageError(
        f"cannot write to {parent}{what}: {why}",
        hint="free some space, or name another folder (--out; EDGEKIT_CACHE for the cache, TMPDIR for temporary files)",
    )
