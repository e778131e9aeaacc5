"""One child process: what it writes as it comes, the end of its stderr kept, limits on its silence, life and output.

The child's stdin stays open until it ends: on the remote side its end means that we are gone.
"""

from __future__ import annotations

import collections
import os
import selectors
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import BinaryIO

from edgekit.core.orphans import Silence
from edgekit.devices.protocol import plain
from edgekit.errors import DeviceError

OUTPUT_BYTES = 64 << 20
"""So much of a program's output is read: twenty thousand raw samples are 400 kB, a vendor tool's log a few MB."""

_STDERR_LINES = 40
_LOOK_S = 0.5
"""Seconds between two looks at a process that is silent."""
_LAST_WORDS_S = 2.0
"""How long to read what a process that has ended left in its pipes."""


@dataclass(frozen=True, kw_only=True)
class Completed:
    """How a process ended. ``returncode`` is negative for a signal; ``timed_out`` says that we ended it."""

    returncode: int
    stderr: str
    timed_out: bool = False

    @property
    def signal_name(self) -> str:
        """``SIGSEGV`` and the like; empty if no signal ended the process."""
        if self.returncode >= 0:
            return ""
        try:
            return signal.Signals(-self.returncode).name
        except ValueError:
            return f"signal {-self.returncode}"


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long to wait, in seconds: ``whole`` for the process to end, ``silence`` for its next output,
    ``quick`` too, but for what a busy machine gives to others (:class:`edgekit.core.orphans.Silence`).

    ``beat`` is the pause between two empty lines written to its stdin (0: none). ``cancel`` ends the wait from
    another thread: within half a second :class:`CancelledError` is raised. ``alive`` says whether what carries the
    process still stands: once it does not, the wait is over as if time was. ``most`` bytes of stdout are read.
    """

    whole: float
    silence: float = float("inf")
    quick: float = float("inf")
    beat: float = 0.0
    cancel: threading.Event | None = None
    alive: Callable[[], bool] | None = None
    most: int = OUTPUT_BYTES

    def until(self, deadline: float) -> float:
        """Seconds to wait at most for the next event, the deadline and a look at ``cancel`` considered."""
        if self.cancel is not None and self.cancel.is_set():
            raise CancelledError
        looks = self.cancel is not None or self.alive is not None
        return max(0.0, min(deadline - time.monotonic(), 0.5 if looks else 3600.0))


class CancelledError(Exception):
    """Somebody set the event; the process has been ended."""


class Lines:
    """Takes bytes as they come, gives whole lines to ``on_line``."""

    def __init__(self, on_line: Callable[[str], None]) -> None:
        self._on_line, self._pending = on_line, bytearray()

    def __call__(self, data: bytes) -> None:
        """The next bytes."""
        self._pending += data
        if b"\n" in data:
            *whole, rest = bytes(self._pending).split(b"\n")
            self._pending[:] = rest
            for line in whole:
                self._on_line(line.decode("utf-8", "replace"))


def stream(
    argv: Sequence[str],
    *,
    stdin: bytes | BinaryIO,
    on_data: Callable[[bytes], object],
    patience: Patience,
    env: Mapping[str, str] | None = None,
) -> Completed:
    """Run ``argv`` with ``stdin`` (a file: as it is, to its end), give what it writes to ``on_data``.

    The child leads a process group of its own; the whole group is killed when patience ends, on an
    exception from ``on_data`` and on Ctrl-C. Raises ``OSError`` if the program cannot be started, and
    :class:`DeviceError` when it writes more than patience allows.
    """
    child = subprocess.Popen(
        list(argv),
        stdin=subprocess.PIPE if isinstance(stdin, bytes) else stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=None if env is None else dict(env),
        start_new_session=True,
    )
    over = threading.Event()
    if isinstance(stdin, bytes):
        threading.Thread(target=_feed, args=(child, stdin, patience.beat, over), daemon=True).start()
    try:
        timed_out, tail = _pump(child, on_data, patience)
    finally:
        over.set()
        end(child)
    return Completed(returncode=child.returncode, stderr=tail, timed_out=timed_out)


def _feed(child: subprocess.Popen[bytes], data: bytes, beat: float, over: threading.Event) -> None:
    assert child.stdin is not None
    # A child that ends early is told of by its return code; a pipe closed under our hands is a ValueError.
    with suppress(OSError, ValueError):
        child.stdin.write(data)
        child.stdin.flush()
        while beat and not over.wait(beat):
            child.stdin.write(b"\n")
            child.stdin.flush()


def _pump(
    child: subprocess.Popen[bytes], on_data: Callable[[bytes], object], patience: Patience
) -> tuple[bool, str]:
    """Read both pipes until both end or patience does; returns (timed out, end of stderr)."""
    assert child.stdout is not None
    assert child.stderr is not None
    count, errors, ended = 0, Tail(), 0.0
    deadline = time.monotonic() + patience.whole
    quiet, silence = time.monotonic() + patience.silence, Silence(child.pid, patience.quick)
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        selector.register(child.stderr, selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(min(patience.until(min(deadline, quiet)), _LOOK_S))
            now = time.monotonic()
            # It has ended and said everything. What it left behind may hold the pipes for as long as it likes.
            if ended and (not ready or now > ended + _LAST_WORDS_S):
                break
            ended = ended or (now if child.poll() is not None else 0.0)
            # One that never stops writing is over when its time is; one that is silent, when patience is.
            if now >= deadline or (not ready and (now >= quiet or silence.over)):
                return True, str(errors)
            if not ready and patience.alive is not None and not patience.alive():
                return True, str(errors)
            if ready:
                quiet = now + patience.silence
                silence.heard()
            for key, _ in ready:
                data = os.read(key.fd, 1 << 16)
                if not data:
                    selector.unregister(key.fileobj)
                elif key.fileobj is child.stderr:
                    errors(data)
                else:
                    count += len(data)
                    if count > patience.most:
                        raise _too_much(patience.most)
                    on_data(data)
    try:
        child.wait(max(0.0, min(deadline - time.monotonic(), 3600)))
    except subprocess.TimeoutExpired:
        return True, str(errors)
    return False, str(errors)


class Tail:
    """Takes bytes as they come, keeps the last lines of them."""

    def __init__(self) -> None:
        self._lines: collections.deque[bytes] = collections.deque(maxlen=_STDERR_LINES)
        self._rest = b""

    def __call__(self, data: bytes) -> None:
        """The next bytes."""
        *whole, rest = (self._rest + data).split(b"\n")
        self._lines.extend(line[-2000:] for line in whole)
        self._rest = rest[-2000:]

    def __str__(self) -> str:
        lines = [*self._lines, self._rest] if self._rest else [*self._lines]
        return plain(b"\n".join(lines).decode("utf-8", "replace"))


def _too_much(most: int) -> DeviceError:
    return DeviceError(
        f"a program wrote more than {most >> 20} MiB",
        hint="this is no agent of edgekit's, or a tool that logs everything",
    )


def end(child: subprocess.Popen[bytes]) -> None:
    """No process of the child's group outlives the call."""
    kill(child)
    close(child)


def kill(child: subprocess.Popen[bytes]) -> None:
    """End the child's group; what it wrote can still be read."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def close(child: subprocess.Popen[bytes]) -> None:
    """Close the pipes to a child. Nothing may be reading them: the descriptor's number is the next file's."""
    for pipe in (child.stdin, child.stdout, child.stderr):
        with suppress(OSError):
            if pipe is not None:
                pipe.close()
