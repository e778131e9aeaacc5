"""A time limit inside a process that goes on afterwards: what a function that is called from Python may take.

The command line ends its child, whatever that is doing. Here nothing can be killed: the calling thread is interrupted
as by Ctrl-C, between two instructions of Python, so that a library's native call is waited for. Programs that were
started end with the block that started them.
"""

from __future__ import annotations

import contextlib
import ctypes
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from edgekit.core import contained


class _Over(KeyboardInterrupt):
    """The time is over. What waits, and what cleans up, knows how to end on an interrupt."""


@contextlib.contextmanager
def within(seconds: float | None, what: str) -> Iterator[None]:
    """Raise :class:`~edgekit.errors.TimeLimitError` when the block takes longer (``None``: it may)."""
    if seconds is None or contained.limited():
        yield
        return
    try:
        with _interrupted(seconds):
            yield
    except _Over:
        raise contained.time_over(what, seconds) from None


@contextlib.contextmanager
def _interrupted(seconds: float) -> Iterator[None]:
    """:class:`_Over` in this thread: by a signal where that can be had, which ends waiting, too."""
    main = threading.current_thread() is threading.main_thread()
    if main and hasattr(signal, "setitimer") and signal.getsignal(signal.SIGALRM) is signal.SIG_DFL:
        signal.signal(signal.SIGALRM, _raise)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
        return
    caller, lock, done = threading.get_ident(), threading.Lock(), False

    def interrupt() -> None:
        with lock:
            if not done:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(caller), ctypes.py_object(_Over))

    timer = threading.Timer(seconds, interrupt)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        with lock:
            done = True


def _raise(_: int, __: FrameType | None) -> None:
    raise _Over
