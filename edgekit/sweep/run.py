"""A sweep from its file to its report: what is finished is kept, the rest goes to an engine, and all of it is written
down, however it ends."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edgekit.core.progress import Progress
from edgekit.errors import EdgekitError
from edgekit.sweep import history, journal, local, written
from edgekit.sweep.cells import Cell
from edgekit.sweep.history import Estimate
from edgekit.sweep.journal import CellResult
from edgekit.sweep.tasks import Kind, Task, to_do


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What there is to do. ``finished`` has the result of each cell that is not done again, by its name; ``doubts``
    why what was there of others is not believed."""

    cells: tuple[Cell, ...]
    tasks: tuple[Task, ...]
    finished: dict[str, CellResult]
    seconds: dict[str, float | None]
    doubts: Mapping[str, str] = field(default_factory=dict)

    @property
    def notes(self) -> tuple[str, ...]:
        """What to tell of the doubts."""
        kinds = {task.cell.name: task.kind for task in self.tasks}
        again = {Kind.BUILD: "built", Kind.TIME: "timed"}
        return tuple(
            f"{name}: {why}: it is {again[kinds[name]]} again"
            for name, why in self.doubts.items()
            if name in kinds
        )

    def total(self, workers: int) -> float | None:
        """Seconds on so many workers, if the cells take what cells like them took; ``None`` where nothing is known."""
        # What searches take says nothing of a build, nor the other way round.
        known = [
            s for t in self.tasks if t.cell.search is None and (s := self.seconds[t.cell.name]) is not None
        ]
        missing = [t for t in self.tasks if self.seconds[t.cell.name] is None]
        if missing and (not known or any(t.cell.search is not None for t in missing)):
            return None
        usual = math.fsum(known) / len(known) if known else 0.0
        times = [usual if (s := self.seconds[t.cell.name]) is None else s for t in self.tasks]
        return max(math.fsum(times) / workers, max(times, default=0.0))


@dataclass(kw_only=True)
class Sweeping:
    """Where and how a sweep runs.

    Attributes:
        out: its folder.
        folder: its project's, the working folder of every cell.
        engine: what works on tasks; :func:`edgekit.sweep.local.run` has its arguments.
        fetch: brings results of cells that others have finished.
        again: do those cells again that ended with an error of a runtime, a device or the time.
    """

    out: Path
    folder: Path
    workers: int
    retries: int
    progress: Progress
    engine: Callable[..., None] = local.run
    fetch: Callable[[Sequence[Task], Path], None] | None = None
    again: bool = False
    results: dict[str, CellResult] = field(default_factory=dict)


def plan(cells: Sequence[Cell], out: Path, *, again: bool = False) -> Plan:
    """What is left to do of ``cells``."""
    finished: dict[str, CellResult] = {}
    tasks: list[Task] = []
    doubts: dict[str, str] = {}
    estimate = Estimate(history.read())
    for cell in cells:
        found = journal.known(out, cell)
        known = found.result
        if found.doubt:
            doubts[cell.name] = found.doubt
        if again and known is not None and known.exit_code in (1, 6, 7, 8):
            known = None
        if (task := to_do(cell, known)) is not None:
            tasks.append(task)
        if known is not None:
            finished[cell.name] = known
    seconds = {t.cell.name: estimate.seconds(t.cell) for t in tasks}
    return Plan(cells=tuple(cells), tasks=tuple(tasks), finished=finished, seconds=seconds, doubts=doubts)


def run(cells: Sequence[Cell], how: Sweeping) -> tuple[CellResult, ...]:
    """Work on what is left; the results of all cells that have one, in their order.

    A stop is raised once everything that is finished is written down. Raises :class:`UsageError` where another sweep
    is at work in the folder.
    """
    with journal.held(how.out):
        journal.refuse_odd(written=(how.out / written.RESULTS, how.out / written.PAGE))
        if how.fetch is not None:
            how.fetch(plan(cells, how.out, again=how.again).tasks, how.out)
        left = plan(cells, how.out, again=how.again)
        how.results.update(left.finished)
        if left.finished:
            how.progress.note(f"{len(left.finished)} of {len(cells)} cells are finished already")
        for note in left.notes:
            how.progress.note(note)
        nothing = False
        try:
            _work(left, how)
        except EdgekitError:  # the engine itself: there is no cluster, say
            nothing = not how.results
            raise
        finally:
            for task in left.tasks:  # a cell may have finished while a stop was on its way
                if task.cell.name not in how.results and (late := journal.finished(how.out, task.cell)):
                    how.results[task.cell.name] = late
            results = tuple(how.results[c.name] for c in cells if c.name in how.results)
            if results or not nothing:
                _write(results, how, len(cells))
    return results


def _work(left: Plan, how: Sweeping) -> None:
    estimate = Estimate(history.read())
    with how.progress.task("cells", total=len(left.tasks)) as shown:

        def listen(task: Task, result: CellResult | None) -> None:
            if result is None:
                how.progress.note(f"{task.cell.name}: {task.kind}")
                return
            how.results[task.cell.name] = result
            history.add(task.cell, result)
            shown.advance()
            done = len(how.results)
            how.progress.note(f"{done} of {len(left.cells)} · {task.cell.name}: {outcome(result)}")

        how.engine(
            left.tasks,
            out=how.out,
            folder=how.folder,
            workers=how.workers,
            retries=how.retries,
            need=lambda task: estimate.memory(task.cell),
            listen=listen,
        )


def outcome(result: CellResult) -> str:
    """A result in a line."""
    if result.failure is not None:
        why = result.failure.message.partition("\n")[0]
        return f"{result.verdict}: {result.failure.type} ({result.exit_code}): {why}"
    figures = [str(result.verdict)]
    if result.metric is not None:
        figures.append(f"{result.metric_name or 'metric'} {result.metric:.4f}")
    if result.p50_ms is not None:
        figures.append(f"{result.p50_ms:.3g} ms")
    return f"{', '.join(figures)} in {result.seconds:.1f} s"


def _write(results: Sequence[CellResult], how: Sweeping, cells: int) -> None:
    """``results.json`` and the page; a page that cannot be made does not take the results with it."""
    written.write_json(results, how.out, cells)
    try:
        written.write_page(results, how.out, cells)
    except EdgekitError as error:
        how.progress.note(f"there is no page: {error.message} ({error.hint})")
