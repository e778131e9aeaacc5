"""Keeping libraries' chatter off the terminal: edgekit's own words are the only ones printed."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def silence(*, native: bool = False) -> Iterator[None]:
    """Nothing that Python code prints, logs or warns inside gets out; with ``native``, nothing at all.

    ``native`` turns off the process' own descriptors, a progress bar in another thread included: for short
    calls of native code only. What is turned off belongs to the whole process: where threads overlap, the first turns
    it off and the last one on again (each by itself would put back what it found, the other's silence).
    """
    with _lock:
        _inside[native] += 1
        if _inside[native] == 1:
            _turned_off[native] = contextlib.ExitStack()
            _turned_off[native].enter_context(_silence(native=native))
    try:
        yield
    finally:
        with _lock:
            _inside[native] -= 1
            if not _inside[native]:
                _turned_off.pop(native).close()


_lock = threading.Lock()
_inside = {True: 0, False: 0}
_turned_off: dict[bool, contextlib.ExitStack] = {}


@contextlib.contextmanager
def _silence(*, native: bool) -> Iterator[None]:
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            open(os.devnull, "w") as nowhere,  # noqa: PTH123 - its descriptor is used
            _redirected(nowhere.fileno() if native else None),
            warnings.catch_warnings(),
            contextlib.redirect_stdout(nowhere),
            contextlib.redirect_stderr(nowhere),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


@contextlib.contextmanager
def _redirected(target: int | None) -> Iterator[None]:
    if target is None:
        yield
        return
    sys.stdout.flush()
    sys.stderr.flush()
    copies = [(number, os.dup(number)) for number in (1, 2)]
    try:
        for number, _ in copies:
            os.dup2(target, number)
        yield
    finally:
        for number, copy in copies:
            os.dup2(copy, number)
            os.close(copy)
