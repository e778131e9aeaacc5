"""One child process: lines out as they come, the end of its stderr kept, a limit on its silence and life.

The child's stdin stays open until it ends: on the far side its end means that we are gone.
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

_STDERR_LINES = 40
_MAX_LINE = 64 * 1024 * 1024


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
    """How long to wait, in seconds: ``whole`` for the process to end, ``silence`` for its next output.

    ``beat`` is the pause between two empty lines written to its stdin (0: none). ``cancel`` ends the wait from
    another thread: within half a second :class:`CancelledError` is raised.
    """

    whole: float
    silence: float = float("inf")
    beat: float = 0.0
    cancel: threading.Event | None = None

    def until(self, deadline: float) -> float:
        """Seconds to wait at most for the next event, the deadline and a look at ``cancel`` considered."""
        if self.cancel is not None and self.cancel.is_set():
            raise CancelledError
        return max(0.0, min(deadline - time.monotonic(), 3600.0 if self.cancel is None else 0.5))


class CancelledError(Exception):
    """Somebody set the event; the process has been ended."""


def stream(
    argv: Sequence[str],
    *,
    stdin: bytes,
    on_line: Callable[[str], None],
    patience: Patience,
    env: Mapping[str, str] | None = None,
) -> Completed:
    """Run ``argv``, feed it ``stdin``, give each line of its stdout to ``on_line``.

    The child leads a process group of its own; the whole group is killed when patience ends, on an
    exception from ``on_line`` and on Ctrl-C. Raises ``OSError`` if the program cannot be started.
    """
    child = subprocess.Popen(
        list(argv),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=None if env is None else dict(env),
        start_new_session=True,
    )
    over = threading.Event()
    feeder = threading.Thread(target=_feed, args=(child, stdin, patience.beat, over), daemon=True)
    feeder.start()
    try:
        timed_out, tail = _pump(child, on_line, patience)
    finally:
        over.set()
        _end(child)
        feeder.join(1)
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
    child: subprocess.Popen[bytes], on_line: Callable[[str], None], patience: Patience
) -> tuple[bool, str]:
    """Read both pipes until both end or patience does; returns (timed out, end of stderr)."""
    assert child.stdout is not None
    assert child.stderr is not None
    pending = bytearray()
    tail: collections.deque[bytes] = collections.deque(maxlen=_STDERR_LINES)
    rest = b""
    end = time.monotonic() + patience.whole
    quiet = time.monotonic() + patience.silence
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        selector.register(child.stderr, selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(patience.until(min(end, quiet)))
            if time.monotonic() >= min(end, quiet) and not ready:
                return True, _text(tail, rest)
            if ready:
                quiet = time.monotonic() + patience.silence
            for key, _ in ready:
                data = os.read(key.fd, 1 << 16)
                if not data:
                    selector.unregister(key.fileobj)
                elif key.fileobj is child.stdout:
                    _lines(pending, data, on_line)
                else:
                    *whole, rest = (rest + data).split(b"\n")
                    tail.extend(line[-2000:] for line in whole)
                    rest = rest[-2000:]
    try:
        child.wait(max(0.0, min(end - time.monotonic(), 3600)))
    except subprocess.TimeoutExpired:
        return True, _text(tail, rest)
    return False, _text(tail, rest)


def _lines(pending: bytearray, data: bytes, on_line: Callable[[str], None]) -> None:
    pending += data
    if len(pending) > _MAX_LINE:
        raise ValueError("the process wrote a line of more than 64 MiB")
    if b"\n" in data:
        *whole, rest = bytes(pending).split(b"\n")
        pending[:] = rest
        for line in whole:
            on_line(line.decode("utf-8", "replace"))


def _text(tail: collections.deque[bytes], rest: bytes) -> str:
    return b"\n".join([*tail, rest] if rest else tail).decode("utf-8", "replace")


def _end(child: subprocess.Popen[bytes]) -> None:
    """No process of the group outlives the call."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    for pipe in (child.stdin, child.stdout, child.stderr):
        with suppress(OSError):
            if pipe is not None:
                pipe.close()
