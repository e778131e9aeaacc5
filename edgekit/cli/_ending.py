"""How the process ends: on signals as with Ctrl-C, and never with 0 because somebody else's code ended it."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import NoReturn

from edgekit.core import contained, stops
from edgekit.errors import FactoryError, Stopped

STOPS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
_ONE_STOP_S = 2.0
"""A terminal that closes is told of twice, by the system and by the shell: within this time it is one stop."""

_ends: dict[str, Callable[..., NoReturn]] = {name: getattr(os, name) for name in ("_exit", "execv", "execve")}


def prepare() -> None:
    """Install all of it; once, by the process whose program edgekit is."""
    if threading.current_thread() is not threading.main_thread():
        return
    handle = _handler(os.getpid())
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupts(os.getpid()))
    for number in STOPS:
        if signal.getsignal(number) is signal.SIG_DFL:  # nohup's and a parent's wishes are respected
            signal.signal(number, handle)
    _guard(os.getpid())


def settle() -> None:
    """The end has begun: stops no longer disturb it, and whoever ends the process now may."""
    for name, function in _ends.items():
        setattr(os, name, function)
    if threading.current_thread() is threading.main_thread():
        for number in STOPS:
            if callable(signal.getsignal(number)):
                signal.signal(number, signal.SIG_IGN)


def _handler(process: int) -> Callable[[int, FrameType | None], None]:
    last = -_ONE_STOP_S

    def handle(number: int, _: FrameType | None) -> None:
        nonlocal last
        if os.getpid() != process:  # a fork of the user's, such as a data loader's worker
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        if time.monotonic() - last >= _ONE_STOP_S:
            last = time.monotonic()
            contained.stopping()
            stops.ask(Stopped(number))

    return handle


def _interrupts(process: int) -> Callable[[int, FrameType | None], None]:
    def handle(number: int, frame: FrameType | None) -> None:
        if os.getpid() != process:
            signal.default_int_handler(number, frame)
        contained.stopping()
        stops.ask(KeyboardInterrupt())

    return handle


# --- code that ends the process ---------------------------------------------------------------------------


def ended_by_code(end: SystemExit) -> FactoryError:
    """The error where something called ``sys.exit``: the command itself never does while it works."""
    from edgekit.load.usercode import user_traceback

    call = end.call if isinstance(end, stops.Left) else f"exit({end.code!r})"
    return FactoryError(
        f"the process was ended by code that ran in it: {call}",
        hint="models, data and metrics must return or raise; the traceback shows who ended it",
        user_traceback=user_traceback(end),
    )


def _guard(process: int) -> None:
    """``os._exit`` and ``os.exec*`` in this process are ``sys.exit``; in forks they are what they were."""

    def leave(status: int = 0) -> NoReturn:
        if os.getpid() != process:
            _ends["_exit"](status)
        if threading.current_thread() is threading.main_thread():
            raise stops.Left(f"os._exit({status})", status)
        sys.stderr.write(f"error: a thread of the code that ran here ended the process: os._exit({status})\n")
        sys.stderr.flush()
        _ends["_exit"](status or FactoryError.exit_code)

    os._exit = leave
    for name in ("execv", "execve"):
        setattr(os, name, _not_replaced(process, name))


def _not_replaced(process: int, name: str) -> Callable[..., NoReturn]:
    def instead(*arguments: str | Sequence[str]) -> NoReturn:
        if os.getpid() != process:
            _ends[name](*arguments)
        raise stops.Left(f"os.{name}(…)", f"os.{name}")

    return instead
