"""Keeping libraries' chatter off the terminal: edgekit's own words are the only ones printed."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def silence(*, native: bool = False) -> Iterator[None]:
    """Nothing that Python code prints, logs or warns inside gets out; with ``native``, nothing at all.

    ``native`` turns off the process' own descriptors, a progress bar in another thread included: for short
    calls of native code only. What is turned off belongs to the whole process: where threads overlap, the first turns
    it off and the last one on again (each by itself would put back what it found, the other's silence).
    """
    # Two levels, each turned off and on by itself: with one that does both, the plain one could end while the native
    # one holds what it found (the other's nowhere, closed by then), and would put that back.
    with _shared("python", _python), _shared("native", _native) if native else contextlib.nullcontext():
        yield


_lock = threading.Lock()
_inside: dict[str, int] = {"python": 0, "native": 0}
_turned_off: dict[str, contextlib.ExitStack] = {}


@contextlib.contextmanager
def _shared(level: str, turn_off: Callable[[], contextlib.AbstractContextManager[None]]) -> Iterator[None]:
    """``turn_off`` for as long as any thread is inside."""
    with _lock:
        _inside[level] += 1
        if _inside[level] == 1:
            _turned_off[level] = contextlib.ExitStack()
            _turned_off[level].enter_context(turn_off())
    try:
        yield
    finally:
        with _lock:
            _inside[level] -= 1
            if not _inside[level]:
                _turned_off.pop(level).close()


@contextlib.contextmanager
def _python() -> Iterator[None]:
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            open(os.devnull, "w") as nowhere,  # noqa: PTH123 - a text file, as sys.stdout is
            warnings.catch_warnings(),
            contextlib.redirect_stdout(nowhere),
            contextlib.redirect_stderr(nowhere),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


@contextlib.contextmanager
def _native() -> Iterator[None]:
    for stream in (sys.__stdout__, sys.__stderr__):
        if stream is not None:
            with contextlib.suppress(ValueError):  # closed, or detached by who made a stream of his own of it
                stream.flush()
    copies = [(number, os.dup(number)) for number in (1, 2)]
    try:
        with open(os.devnull, "wb") as nowhere:  # noqa: PTH123 - its descriptor is used
            for number, _ in copies:
                os.dup2(nowhere.fileno(), number)
        yield
    finally:
        for number, copy in copies:
            os.dup2(copy, number)
            os.close(copy)
