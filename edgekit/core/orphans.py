"""Children, and what they leave behind: processes that belong to nobody any more.

Linux gives them to the nearest ancestor that asks for them; elsewhere those of the child's own group are ended.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from pathlib import Path

_SHARE = 0.1
"""What a process that works gets of a processor at the least, however busy the machine is."""
_PATIENCE = 4
"""Times a limit of processor time: so long something may take on a busy machine."""
_PDEATHSIG, _SUBREAPER = 1, 36
"""``PR_SET_PDEATHSIG`` and ``PR_SET_CHILD_SUBREAPER`` of Linux's prctl(2)."""


def adopt_orphans() -> None:
    """From here on, what children of this process leave behind becomes this process's."""
    _prctl(_SUBREAPER, 1)


def die_with(parent: int) -> None:
    """This process ends when ``parent``, which forked it, is killed."""
    _prctl(_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it was killed in between
        os.kill(os.getpid(), signal.SIGKILL)


def end_orphans(child: int) -> None:
    """Kill ``child``, its group, and whatever of its descendants became ours, and wait for them."""
    for end in (os.killpg, os.kill):
        with contextlib.suppress(OSError):
            end(child, signal.SIGKILL)
    _reap(child)
    end_adopted()


def end_adopted() -> None:
    """Kill whatever became ours (see :func:`adopt_orphans`), in a session of its own or not, and wait for it."""
    while orphans := _children():
        for pid in orphans:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
            _reap(pid)


class Silence:
    """How long a process has said nothing: of ``limit`` seconds, those that it worked or waited for something count,
    and not those that a busy machine gave to others."""

    def __init__(self, pid: int, limit: float) -> None:
        self._pid, self._limit = pid, limit
        self.heard()

    def heard(self) -> None:
        """It has said something now."""
        self._since = time.monotonic()
        self._used = processor_seconds(self._pid) if self._limit < float("inf") else 0.0

    @property
    def over(self) -> bool:
        """Whether it has been silent for too long."""
        since = time.monotonic() - self._since
        if since <= self._limit:
            return False
        used = processor_seconds(self._pid) - self._used
        return used > self._limit or used < _SHARE * since or since > _PATIENCE * self._limit


def processor_seconds(pid: int) -> float:
    """How long a process, with the children that it has waited for, has been on a processor; 0 where nobody tells."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return sum(int(ticks) for ticks in fields[11:15]) / os.sysconf("SC_CLK_TCK")
    return 0.0


def _reap(pid: int) -> None:
    with contextlib.suppress(OSError):
        os.waitpid(pid, 0)


def _children() -> list[int]:
    """This process's children; none where the system does not tell."""
    ours, found = str(os.getpid()).encode(), []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, IndexError):  # it ended meanwhile
            if status.read_bytes().rpartition(b")")[2].split()[1] == ours:
                found.append(int(status.parent.name))
    return found


def _prctl(option: int, value: int) -> None:
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(option, ctypes.c_ulong(value), 0, 0, 0)
