"""How long work tells the user where it is: to a function that takes events, or to nobody."""

from __future__ import annotations

import contextlib
import enum
import itertools
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from edgekit.core import contained


class Task(Protocol):
    """One running piece of work."""

    def advance(self, steps: int = 1) -> None:
        """``steps`` more of the total are done."""
        ...

    def total(self, steps: int) -> None:
        """The amount of work is known now."""
        ...


class Progress(Protocol):
    """Where work is reported to."""

    def task(self, label: str, total: int | None = None) -> contextlib.AbstractContextManager[Task]:
        """A piece of work that begins now and ends with the ``with`` block."""
        ...

    def note(self, text: str) -> None:
        """One line that the user should see (a cache hit, a warning)."""
        ...


class Silent:
    """Reports nothing. Satisfies both protocols."""

    def advance(self, steps: int = 1) -> None:
        """Nothing."""

    def total(self, steps: int) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""

    @contextlib.contextmanager
    def task(self, label: str, total: int | None = None) -> Iterator[Task]:  # noqa: ARG002
        """Nothing."""
        yield self


class EventKind(enum.StrEnum):
    """What an event tells."""

    START = "start"
    ADVANCE = "advance"
    END = "end"
    NOTE = "note"


@dataclass(frozen=True, kw_only=True)
class Event:
    """One step of progress: a task that starts, advances or ends, or a note for the user.

    ``task`` tells tasks apart that run at the same time; ``done`` of ``total`` steps are done, if the total is known.
    """

    kind: EventKind
    text: str
    task: int = 0
    done: int = 0
    total: int | None = None


Listener = Callable[[Event], None]
"""What takes events. It is called by one thread at a time, not always the same."""


_numbers = itertools.count(1)
"""Of tasks, for all reporters: two may speak to one listener."""


class Reporter:
    """Progress as events."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._lock = threading.Lock()

    def tell(self, event: Event) -> None:
        """Pass one event on."""
        contained.beat()
        with self._lock:
            self._listener(event)

    def note(self, text: str) -> None:
        """One line that the user should see."""
        self.tell(Event(kind=EventKind.NOTE, text=text))

    @contextlib.contextmanager
    def task(self, label: str, total: int | None = None) -> Iterator[Task]:
        """A piece of work that begins now and ends with the block."""
        task = _Reported(reporter=self, number=next(_numbers), label=label, steps=total)
        task.tell(EventKind.START)
        try:
            yield task
        finally:
            task.tell(EventKind.END)


@dataclass(kw_only=True)
class _Reported:
    reporter: Reporter
    number: int
    label: str
    steps: int | None
    done: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def tell(self, kind: EventKind) -> None:
        self.reporter.tell(
            Event(kind=kind, text=self.label, task=self.number, done=self.done, total=self.steps)
        )

    def advance(self, steps: int = 1) -> None:
        with self._lock:  # samples are counted by the threads that work on them
            self.done += steps
        self.tell(EventKind.ADVANCE)

    def total(self, steps: int) -> None:
        self.steps = steps
        self.tell(EventKind.ADVANCE)


def reporting(listener: Listener | None) -> Progress:
    """Progress to ``listener``; silent without one."""
    return Reporter(listener) if listener is not None else Silent()


_watcher: Progress = Silent()


@contextlib.contextmanager
def watching(progress: Progress) -> Iterator[None]:
    """For the whole process, until the block ends: what is deep inside of other work and may take minutes (an engine
    that is built before it can be run) is reported to ``progress``."""
    global _watcher
    before, _watcher = _watcher, progress
    try:
        yield
    finally:
        _watcher = before


def watcher() -> Progress:
    """Where :func:`watching` says, else nowhere."""
    return _watcher
