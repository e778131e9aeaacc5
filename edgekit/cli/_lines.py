"""Progress where there is no terminal: a line for what takes long, and ever fewer of them the longer it takes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from edgekit.core.progress import Event, EventKind

_FIRST_S = 2.0
_MOST_S = 60.0
_LOOK_S = 0.25


@dataclass
class _Running:
    event: Event
    since: float
    next_at: float
    pause: float = _FIRST_S
    said: bool = False


class Lines:
    """Takes events and says what still runs after two seconds, then after four more, eight, at most a minute apart;
    and the end of what it has spoken of. A context manager: a thread of its own looks at the clock."""

    def __init__(self, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._say, self._clock = say, clock
        self._running: dict[int, _Running] = {}
        self._lock, self._over = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="progress", daemon=True)

    def __enter__(self) -> Lines:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def __call__(self, event: Event) -> None:
        """One event."""
        now = self._clock()
        with self._lock:
            match event.kind:
                case EventKind.NOTE:
                    self._say(event.text)
                case EventKind.START:
                    self._running[event.task] = _Running(event, now, now + _FIRST_S)
                case EventKind.ADVANCE:
                    self._running[event.task].event = event
                case EventKind.END:
                    task = self._running.pop(event.task)
                    if task.said:
                        self._say(f"{event.text}: {now - task.since:.0f} s")

    def look(self) -> None:
        """Say what is due."""
        now = self._clock()
        with self._lock:
            for task in self._running.values():
                if now >= task.next_at:
                    self._say(_line(task.event, now - task.since))
                    task.said = True
                    task.pause = min(_MOST_S, 2 * task.pause)
                    task.next_at = now + task.pause

    def _watch(self) -> None:
        while not self._over.wait(_LOOK_S):
            self.look()


def _line(event: Event, seconds: float) -> str:
    done = f" {event.done} of {event.total}," if event.total and event.done else ""
    return f"{event.text} …{done} {seconds:.0f} s so far"
