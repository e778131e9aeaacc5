"""One process at a time for one piece of work: others wait, and then find what was made.

A lock is a byte of one file in the cache, at a place that the work's digest gives, locked by the system for as long as
its process lives: nothing is left behind by one that was killed, and a fork does not hold what its parent holds.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from edgekit.core import files

_LOOK_S = 0.05
_BITS = 62
"""Places in a file are signed numbers of 64 bits."""
_BUSY = (errno.EACCES, errno.EAGAIN)

_files: dict[tuple[int, str], int] = {}
_guard = threading.Lock()


@contextlib.contextmanager
def alone(file: Path, digest: str, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the work ``digest`` (hexadecimal) for the block; ``waiting`` is called while another process has it.

    Where the file system has no locks the block runs all the same: then work may be done twice, and no result is
    another one.
    """
    try:
        import fcntl
    except ImportError:  # no POSIX system
        yield
        return
    place = int(digest[:16], 16) >> (64 - _BITS)
    try:
        descriptor = _opened(file)
        while not _taken(descriptor, place):
            waiting()
            time.sleep(_LOOK_S)
    except OSError:
        yield
        return
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            fcntl.lockf(descriptor, fcntl.LOCK_UN, 1, place)


def _taken(descriptor: int, place: int) -> bool:
    import fcntl

    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
    except OSError as error:
        if error.errno in _BUSY:
            return False
        raise
    return True


def _opened(file: Path) -> int:
    """The file, opened once a process: the system drops all locks of a process that closes it anywhere."""
    key = (os.getpid(), str(file))
    with _guard:
        if key not in _files:
            file.parent.mkdir(parents=True, exist_ok=True)
            _files[key] = files.ours(file, os.O_RDWR | os.O_CREAT, 0o600)
        return _files[key]


@contextlib.contextmanager
def taken(file: Path) -> Iterator[bool]:
    """Hold a whole file for the block, where no other process does; whether it is ours. Raises ``OSError`` where it
    cannot be written, and for a link or what is no file."""
    try:
        import fcntl
    except ImportError:
        yield True
        return
    descriptor = files.ours(file, os.O_RDWR | os.O_CREAT)
    try:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = True
        except OSError as error:
            free = error.errno not in _BUSY  # no locks here: whoever shares this folder has to take care
        yield free
    finally:
        os.close(descriptor)
