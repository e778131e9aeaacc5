"""A command in a process of its own, so that what a foreign model does to that process is an error and nothing more.

The program forks before anything heavy is imported, which takes milliseconds. The child goes on with the command under
a limit of memory, and says which step it is at; the parent keeps the time. A child that crashes or is silent for too
long is started again, and then the step that ended it raises: what was finished before is in the cache, and other
targets get their artifacts.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from edgekit.core import stops
from edgekit.core.orphans import Silence, adopt_orphans, die_with, end_orphans
from edgekit.errors import MemoryLimitError, RuntimeCrashError, SourceError, Stopped, TimeLimitError

_LOOK_S = 0.2
_BEAT_S = 1.0
_DEAF_S = 10.0
"""How long a child may be in native code after it was told to stop."""
_TIDY_S = 30.0
"""How long a child may take to end what it has elsewhere, once it has heard that its time is over."""
_TIME_IS_OVER = getattr(signal, "SIGUSR2", None)
_TOLD = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_ASKED = {*_TOLD, signal.SIGPIPE}
"""Signals that end a process because somebody wants it to."""
_Handler = signal.Handlers | Callable[[int, FrameType | None], object] | int | None


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Seconds for the whole command (``None``: as long as it takes) and for a step that is ``quick`` (see
    :func:`step`), and bytes of memory for each process (0: no limit)."""

    whole: float | None = None
    quick: float = float("inf")
    memory: int = 0


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is contained: ``what`` (for messages), its limits, and where it may leave something half-written.

    ``prepare`` is called in each child before it goes on.
    """

    what: str
    limits: Limits
    places: tuple[Path, ...] = ()
    prepare: Callable[[], None] = lambda: None
    parts: tuple[str, ...] = ()
    """What it is made of, where that is several: an error that names one of them is not said of all."""

    def about(self, error: SourceError) -> SourceError:
        """The error, naming the job or the part of it that it is about."""
        return error if any(part in error.message for part in self.parts) else error.about(self.what)


class Ended(Exception):  # noqa: N818 - no error: the child has said everything
    """The child ended on its own terms, with ``code``."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


# --- in the child ----------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class _Child:
    job: Job
    pipe: int
    failed: Mapping[str, str]
    alone: bool
    beaten: float = 0.0

    def say(self, *words: str) -> None:
        with contextlib.suppress(OSError):  # the parent is gone, and this process with it
            os.write(self.pipe, ("\t".join(words) + "\n").encode())


_child: _Child | None = None
_program = False


@contextlib.contextmanager
def program() -> Iterator[None]:
    """Around the program whose process may be forked: a library that is called from anywhere is not."""
    global _program
    _program = hasattr(os, "fork")
    try:
        yield
    finally:
        _program = False


def possible() -> bool:
    """Whether :func:`contain` does anything here."""
    return _program and _child is None


def one_at_a_time() -> bool:
    """Whether steps must not run side by side: of several at work nobody could tell which ended the process."""
    return _child is not None and _child.alone


def limited() -> bool:
    """Whether a parent keeps the time of this process."""
    return _child is not None


def quick_seconds() -> float:
    """How long a program that runs a foreign model may say nothing; without end where nobody limits it."""
    return float("inf") if _child is None or _child.job.limits.whole else _child.job.limits.quick


def beat() -> None:
    """Something was done: a step that says so now and then is not silent."""
    if _child is not None and time.monotonic() - _child.beaten > _BEAT_S:
        _child.beaten = time.monotonic()
        _child.say("beat")


@contextlib.contextmanager
def elsewhere() -> Iterator[None]:
    """Around what goes on where no kill of this process reaches it: a build on a device.

    When the time is over meanwhile, this process is asked to end it, and is not killed at once.
    """
    if _child is None:
        yield
        return
    _child.say("elsewhere", "1")
    try:
        yield
    finally:
        _child.say("elsewhere", "-1")


def stopping() -> None:
    """A stop has been heard here, and this process is about to end in its own way."""
    if _child is not None:
        _child.say("stop")


@contextlib.contextmanager
def step(name: str, digest: str = "", *, quick: bool = False) -> Iterator[None]:
    """A piece of work on a foreign model, so that whatever it does has a name. ``quick``: it takes seconds.

    Raises :class:`RuntimeCrashError` where an earlier attempt at it ended the process, and :class:`MemoryLimitError`.
    """
    child, identity = _child, digest or name
    if child is None:
        yield
        return
    if identity in child.failed:
        raise _ended_at(name, child.job.what, child.failed[identity])
    child.say("begin", identity, name, "quick" if quick else "")
    try:
        yield
    except MemoryError as error:
        raise out_of_memory(name) from error
    except SourceError as error:  # what a library says names a file of the cache, if any
        raise child.job.about(error)  # noqa: B904 - the same error
    finally:
        child.say("end", identity)


def out_of_memory(where: str = "") -> MemoryLimitError:
    """What to raise for a ``MemoryError``."""
    at = f" ({where})" if where else ""
    if _child is None or not _child.job.limits.memory:
        return MemoryLimitError(
            f"there is not enough memory{at}", hint="close other programs, or use fewer and smaller samples"
        )
    return MemoryLimitError(
        f"{_child.job.what}{at} asks for more memory than {_child.job.limits.memory >> 20} MiB",
        hint="few models of its size need so much: do not trust it, or allow more (--memory 8GB)",
    )


def _ended_at(name: str, what: str, how: str) -> RuntimeCrashError:
    return RuntimeCrashError(
        f"{name} of {what}: {how}",
        hint="the model, or the library that reads it, is broken: export it again, or try another version of the "
        "runtime (edgekit doctor)",
    )


# --- in the parent ---------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class _Stop:
    """A stop that was passed on: which signal, since when, and whether the child's own code has heard of it."""

    number: int = 0
    since: float = float("inf")
    heard: bool = False

    @property
    def ignored(self) -> bool:
        """Whether the child is in a library's native call that will not return soon."""
        return not self.heard and time.monotonic() - self.since > _DEAF_S


@dataclass(kw_only=True)
class _Watched:
    """What is known of a child: the steps at work (name, and whether quick), how long it has said nothing, and whether
    it was told to stop."""

    pid: int
    pipe: int
    silence: Silence
    steps: dict[str, tuple[str, bool]] = field(default_factory=dict)
    stop: _Stop = field(default_factory=lambda: _Stop())
    said_bye: bool = False
    elsewhere: int = 0
    rest: bytes = b""

    def hear(self, data: bytes) -> None:
        *lines, self.rest = (self.rest + data).split(b"\n")
        for line in lines:
            self.silence.heard()
            match line.decode("utf-8", "replace").split("\t"):
                case ["begin", identity, name, quick]:
                    self.steps[identity] = (name, bool(quick))
                case ["end", identity]:
                    self.steps.pop(identity, None)
                case ["elsewhere", change]:
                    self.elsewhere += int(change)
                case ["stop"]:
                    self.stop.heard = True
                case ["bye"]:
                    self.said_bye = True

    def silent(self) -> bool:
        """Whether quick steps alone are at work, and nothing was heard for too long."""
        return bool(self.steps) and all(quick for _, quick in self.steps.values()) and self.silence.over


def contain(job: Job) -> None:
    """Go on in a child; the parent never comes back from here.

    Raises, in the parent, :class:`Ended` when the child has ended by itself, :class:`TimeLimitError` when the time
    is over, and :class:`RuntimeCrashError` when it crashed outside of every step.
    """
    if not possible():
        return
    started, failed, alone = time.monotonic(), dict[str, str](), False
    sys.stdout.flush()
    sys.stderr.flush()
    adopt_orphans()
    while True:
        with _later(_TOLD):  # one that came between the fork and the handlers would end the parent alone
            watched = _fork(job, failed, alone)
            if watched is None:
                return
            handlers = _pass_on(watched)
        try:
            how = _watch(watched, job.limits, started)
        except Ended:
            if watched.stop.ignored:
                _sweep(job)
            raise
        finally:
            _take_back(handlers)
        _sweep(job)
        if how == "":
            raise time_over(job.what, job.limits.whole or 0.0)
        at = list(watched.steps.items())
        # A step that ended it once more, or none: starting again would not help.
        if not at or any(identity in failed for identity, _ in at) or (alone and len(at) > 1):
            raise _ended_at(at[0][1][0] if at else "reading", job.what, how)
        if len(at) > 1:
            alone = True
            continue
        failed[at[0][0]] = how


def _sweep(job: Job) -> None:
    """Remove what a child that was killed has left."""
    from edgekit.core import files  # the help pages do without

    for place in job.places:
        files.sweep(place)


def time_over(what: str, seconds: float) -> TimeLimitError:
    """The error of something that took longer than it was allowed to."""
    return TimeLimitError(
        f"{what}: the time is over ({seconds:g} s), and what was at work has been ended",
        hint="give it more (--timeout SECONDS); a build goes on from the last step that was finished",
    )


def _fork(job: Job, failed: Mapping[str, str], alone: bool) -> _Watched | None:
    """The child as the parent sees it; ``None`` in the child."""
    global _child
    reading, writing = os.pipe()
    parent = os.getpid()
    pid = os.fork()
    if pid:
        os.close(writing)
        with contextlib.suppress(OSError):  # it has done so itself
            os.setpgid(pid, pid)
        quick = job.limits.quick if job.limits.whole is None else float("inf")
        return _Watched(pid=pid, pipe=reading, silence=Silence(pid, quick))
    os.close(reading)
    with contextlib.suppress(OSError):
        os.setpgid(0, 0)
    die_with(parent)
    for number in _TOLD:
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    if _TIME_IS_OVER is not None:
        signal.signal(_TIME_IS_OVER, _end_quietly)
    _child = _Child(job=job, pipe=writing, failed=dict(failed), alone=alone)
    _limit_memory(job.limits.memory)
    atexit.register(_child.say, "bye")
    job.prepare()
    return None


def _limit_memory(most: int) -> None:
    if not most:
        return
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    soft = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def lift() -> None:
    """Take this process's own limit of memory away, so that what Python does at its end has room."""
    if _child is None:
        return
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))


def _watch(watched: _Watched, limits: Limits, started: float) -> str:
    """Wait for the child. Returns how it ended where it did not do so by itself, empty where the whole time is over;
    raises :class:`Ended` otherwise."""
    deadline = float("inf") if limits.whole is None else started + limits.whole
    status = _wait(watched, deadline)
    if status is None:
        _let_tidy(watched)
        end_orphans(watched.pid)
        os.close(watched.pipe)
        if watched.stop.ignored:
            raise Ended(128 + watched.stop.number)
        if time.monotonic() >= deadline:
            return ""
        return f"it gave no answer for {limits.quick:.0f} s and was ended"
    os.close(watched.pipe)
    code = os.waitstatus_to_exitcode(status)
    if code < 0 and -code not in _ASKED:
        end_orphans(watched.pid)
        return f"{_signal_name(-code)} ended the process"
    if code >= 0 and not watched.said_bye:
        end_orphans(watched.pid)
        return f"something ended the process with status {code}"
    raise Ended(code if code >= 0 else 128 - code)


def _let_tidy(watched: _Watched) -> None:
    """A child whose time is over ends what it has elsewhere: a build on a device would take its death for a link that
    broke, go on, and keep the device."""
    if not watched.elsewhere or watched.stop.ignored or _TIME_IS_OVER is None:
        return
    with contextlib.suppress(OSError):
        os.kill(watched.pid, _TIME_IS_OVER)
    until = time.monotonic() + _DEAF_S
    while watched.elsewhere and time.monotonic() < until:
        if not select.select([watched.pipe], [], [], _LOOK_S)[0]:
            continue
        heard, data = watched.stop.heard, os.read(watched.pipe, 1 << 16)
        if not data:
            return
        watched.hear(data)
        if watched.stop.heard and not heard:
            until = time.monotonic() + _TIDY_S


def _end_quietly(_: int, __: FrameType | None) -> None:
    """The time is over: the parent says so, this process ends as on a stop."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nothing, stream)
    stopping()
    stops.ask(Stopped(signal.SIGTERM))


def _wait(watched: _Watched, deadline: float) -> int | None:
    """The child's status; ``None`` where it has to be killed: its time is over, or it does not hear a stop."""
    open_ = True
    while True:
        if open_ and select.select([watched.pipe], [], [], _LOOK_S)[0]:
            data = os.read(watched.pipe, 1 << 16)
            watched.hear(data)
            open_ = bool(data)
        pid, status = os.waitpid(watched.pid, 0 if not open_ and deadline == float("inf") else os.WNOHANG)
        if pid:
            _drain(watched)
            return status
        if time.monotonic() >= deadline or watched.silent() or watched.stop.ignored:
            return None
        if not open_:
            time.sleep(0.005)


def _drain(watched: _Watched) -> None:
    """What it said last: a fork of its own may hold the pipe open."""
    while select.select([watched.pipe], [], [], 0)[0] and (data := os.read(watched.pipe, 1 << 16)):
        watched.hear(data)


@contextlib.contextmanager
def _later(numbers: Iterable[int]) -> Iterator[None]:
    """Signals that come meanwhile are delivered at the end."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _pass_on(watched: _Watched) -> dict[int, _Handler]:
    """From now on stops go to the child, which ends in its own way; the parent waits for that. Returns what handled
    them before."""
    pid, stop = watched.pid, watched.stop

    def tell(number: int, _: FrameType | None) -> None:
        if not stop.number:
            stop.number, stop.since = number, time.monotonic()
        with contextlib.suppress(OSError):
            # As on a terminal: Ctrl-C is for the workers of the user's data loader, too.
            (os.killpg if number == signal.SIGINT else os.kill)(pid, number)

    before: dict[int, _Handler] = {number: signal.getsignal(number) for number in _TOLD}
    taken = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}
    for number in taken:
        signal.signal(number, tell)
    return taken


def _take_back(handlers: Mapping[int, _Handler]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
