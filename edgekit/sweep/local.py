"""The way through all tasks, and the engine of this machine: processes side by side, as many as there is memory for,
each device for one at a time."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from edgekit.core.memory import available_memory
from edgekit.sweep.attempt import Attempt
from edgekit.sweep.journal import CellResult
from edgekit.sweep.tasks import Room, Task, to_do, tried_again

_LOOK_S = 0.02
_RESERVE = 0.9
"""The share of the free memory that cells may take together."""

Listener = Callable[[Task, CellResult | None], None]
"""Called when a task begins (without a result), and when it has ended for good."""


class Started(Protocol):
    """A task at work somewhere."""

    @property
    def task(self) -> Task:
        """Which."""
        ...

    def result(self) -> CellResult | None:
        """The result, once it has ended."""
        ...

    def tell(self) -> None:
        """Ask it to end."""
        ...

    def end(self, patience: float) -> None:
        """Wait so many seconds until it has ended, and see to it."""
        ...


def run(
    tasks: Sequence[Task],
    *,
    out: Path,
    folder: Path,
    workers: int,
    retries: int,
    need: Callable[[Task], int],
    listen: Listener,
) -> None:
    """Work on all tasks on this machine: :func:`drive` with a process for each.

    Args:
        tasks: in the order of preference.
        out: the folder of the sweep; ``folder`` that of its project.
        workers: how many processes at the most.
        retries: how often a task is tried again.
        need: bytes of memory that a task is expected to take.
        listen: what hears of it.
    """
    room = Room(workers=workers, memory=int(available_memory() * _RESERVE), running=[], ready=set())
    drive(tasks, room, lambda task: Attempt(task, out, folder), retries=retries, need=need, listen=listen)


def drive(
    tasks: Sequence[Task],
    room: Room,
    start: Callable[[Task], Started],
    *,
    retries: int,
    need: Callable[[Task], int],
    listen: Listener,
) -> None:
    """Start tasks as there is room for them, until all have ended for good. A stop (Ctrl-C, SIGTERM) ends what is at
    work and is raised again; what was finished is kept."""
    waiting, needs = list(tasks), [need(task) for task in tasks]
    started: list[tuple[Started, int]] = []
    try:
        while waiting or started:
            while (index := room.next(waiting, needs)) is not None:
                task, bytes_ = waiting.pop(index), needs.pop(index)
                started.append((start(task), bytes_))
                room.begin(task, bytes_)
                if task.attempt == 1:
                    listen(task, None)
            for one, bytes_ in tuple(started):
                if (result := one.result()) is None:
                    continue
                started.remove((one, bytes_))
                room.end(one.task, bytes_)
                if (follow := _next(one.task, result, retries)) is None:
                    listen(one.task, result)
                else:
                    waiting.append(follow)
                    needs.append(bytes_)
            time.sleep(_LOOK_S)
    except BaseException:
        _end([one for one, _ in started])
        raise


def _next(task: Task, result: CellResult, retries: int) -> Task | None:
    """Another attempt, or what comes after a task; ``None`` where its cell is done."""
    if tried_again(task, result.failure, retries):
        return task.again()
    follow = to_do(task.cell, result)
    return follow if follow is not None and follow.kind is not task.kind else None


def _end(attempts: Sequence[Started]) -> None:
    """All at once, so that nobody waits for the sum of their patience; a second stop ends them without any."""
    patience = 15.0
    for attempt in attempts:
        attempt.tell()
    for attempt in attempts:
        try:
            attempt.end(patience)
        except KeyboardInterrupt:
            patience = 0.0
            with contextlib.suppress(KeyboardInterrupt):
                attempt.end(patience)
