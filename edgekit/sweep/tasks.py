"""What is to be done for each cell, in which order, and when it is tried again. No processes here."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, replace

from edgekit.sweep.cells import Cell
from edgekit.sweep.journal import CellResult, Failure, Verdict

TRIED_AGAIN = (6, 7)
"""Exit codes of what may go well another time: a runtime or tool, a device."""
_SAME_EACH_TIME = frozenset(
    {
        "MissingExtraError",
        "RuntimeMissingError",
        "ToolMissingError",
        "PluginError",
        "NotRunnableError",
        "OpenAxesError",
    }
)
"""Errors with these codes that say what is not there."""

LOST = "LostError"
"""The type of a failure whose process left no word: killed from outside, or its machine is gone."""


class Kind(enum.StrEnum):
    """Build a cell, or time what it built."""

    BUILD = "build"
    TIME = "time"


@dataclass(frozen=True, kw_only=True)
class Task:
    """A piece of work for one process. ``attempt`` counts from 1."""

    cell: Cell
    kind: Kind = Kind.BUILD
    attempt: int = 1

    @property
    def device(self) -> str:
        """The device that it needs for itself; empty where any number of tasks may run beside it."""
        return self.cell.device if self.cell.device not in ("", "local") else ""

    @property
    def processes(self) -> int:
        """How many processes of it work at a time: those of a recipe's training or of a search, else one."""
        cell = self.cell
        if self.kind is not Kind.BUILD:
            return 1
        if cell.search is not None:
            return cell.search.workers
        return cell.options.processes if cell.recipe else 1

    @property
    def needs_silence(self) -> bool:
        """Whether nothing else of the sweep may run on this machine meanwhile."""
        return self.kind is Kind.TIME and not self.device

    def again(self) -> Task:
        """The next attempt."""
        return replace(self, attempt=self.attempt + 1)


def to_do(cell: Cell, known: CellResult | None) -> Task | None:
    """What is left of a cell of which this much is known."""
    if known is None:
        return Task(cell=cell)
    built = known.verdict in (Verdict.PASSED, Verdict.UNPROVEN) and bool(known.digest)
    if cell.bench is not None and built and known.failure is None and not known.timed:
        return Task(cell=cell, kind=Kind.TIME)
    return None


def tried_again(task: Task, failure: Failure | None, retries: int) -> bool:
    """Whether a task that ended so gets another attempt."""
    return (
        failure is not None
        and task.attempt <= retries
        and failure.exit_code in TRIED_AGAIN
        and failure.type not in _SAME_EACH_TIME
    )


@dataclass(kw_only=True)
class Room:
    """What is at work, and what it leaves room for. ``memory``: bytes that cells may take together."""

    workers: int
    memory: int
    running: list[Task]
    ready: set[str]
    """Shared parts (:attr:`Cell.shared`) that are in the cache by now."""
    taken: int = 0

    def begin(self, task: Task, need: int) -> None:
        """A task is at work now."""
        self.running.append(task)
        self.taken += need

    def end(self, task: Task, need: int) -> None:
        """It is no more."""
        self.running.remove(task)
        self.taken -= need
        self.ready |= set(task.cell.shared)

    def next(self, waiting: Sequence[Task], needs: Sequence[int]) -> int | None:
        """The index of the task to begin now; ``None`` while none can.

        First those that wait for nobody: of several cells that would prepare the same, one goes ahead, and the others
        find it in the cache.
        """
        if len(self.running) >= self.workers or any(t.needs_silence for t in self.running):
            return None
        busy = {t.device for t in self.running} - {""}
        preparing = {s for t in self.running for s in t.cell.shared} - self.ready
        second: int | None = None
        for index, task in enumerate(waiting):
            if task.device in busy or not self._fits(needs, index) or not self._free(task):
                continue
            if task.needs_silence:
                if not self.running and not any(t.kind is Kind.BUILD for t in waiting):
                    return index
                continue
            if task.kind is Kind.TIME or preparing.isdisjoint(task.cell.shared):
                return index
            second = index if second is None else second
        return second

    def _free(self, task: Task) -> bool:
        return not self.running or sum(t.processes for t in (*self.running, task)) <= self.workers

    def _fits(self, needs: Sequence[int], index: int) -> bool:
        return not self.running or self.taken + needs[index] <= self.memory
