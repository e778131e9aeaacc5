"""What the process of a cell does: build it, or time what it built, and leave a result."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from edgekit.artifact import manifest as manifests
from edgekit.artifact.manifest import Manifest
from edgekit.artifact.measure import measure
from edgekit.core import contained, dependency, files
from edgekit.core.config import Options
from edgekit.core.progress import Event, EventKind
from edgekit.devices.bench import BenchSettings
from edgekit.devices.catalogue import LOCAL
from edgekit.errors import DefectError, EdgekitError
from edgekit.pipeline import api
from edgekit.pipeline.build import failure as refused
from edgekit.search.limits import Limits
from edgekit.sweep import journal
from edgekit.sweep.cells import Cell
from edgekit.sweep.journal import CellResult, Failure
from edgekit.sweep.order import THREADS, Order
from edgekit.sweep.plan import SearchRow

SEARCH = "search"
"""In a cell's folder: what its search has tried, and the plan that it found."""


Shown = Callable[[EdgekitError], None]
"""Writes an error down for people, as the command line does of a build."""


def make(order: Order, started: float, show: Shown) -> CellResult:
    """Build the cell, and say what became of it. An error is a result, and ``show`` has put it into the cell's log;
    only stops are raised.

    ``started``: when the process began, on the clock of ``time.time``.
    """
    cell = order.cell
    options = replace(cell.options, out=journal.folder(order.out, cell))
    found = ""
    try:
        source: str | Path = cell.source
        if cell.search is not None:
            source, found = _searched(cell, cell.search, options)
        asked = api.request(source, None, options, calibration=None, evaluation=None)
        (outcome,) = api.built(asked, api.context(options, _said))
        error = refused(outcome, options)
        manifest = None if outcome.artifact is None else outcome.artifact.manifest
    except EdgekitError as raised:
        error, manifest = (_out_of_memory(cell, raised) if _memory(raised) else raised), None
    except Exception as raised:  # noqa: BLE001 - a defect is a row, too
        error, manifest = files.refused_by_system(raised) or DefectError.of(raised, cell.name), None
    if error is not None:
        show(error)
    return replace(result_of(order, started, error, manifest), found=found)


def _searched(cell: Cell, asked: SearchRow, options: Options) -> tuple[Path, str]:
    """The plan that the cell's search has found, in its folder, and its recipe on a line. A search that was stopped
    goes on from the candidates in its journal."""
    from edgekit.search.compress import compress

    folder = options.out / SEARCH
    limits = Limits(
        trials=asked.trials, seed=asked.seed, epochs=asked.epochs, steps=asked.steps, workers=asked.workers
    )
    context = api.context(replace(options, out=folder), _said)
    found = compress(context, cell.source, budget=asked.budget, limits=limits)
    return found.folder, found.recipe.line


def _out_of_memory(cell: Cell, raised: EdgekitError) -> EdgekitError:
    error = contained.out_of_memory(cell.source)
    error.__cause__ = raised  # it has the user's traceback
    return error


def _memory(error: BaseException | None) -> bool:
    """Whether an error came of one that says that there is no memory left: of the user's own code, too."""
    while error is not None:
        if isinstance(error, MemoryError):
            return True
        error = error.__cause__
    return False


def _said(event: Event) -> None:
    """Into the cell's log."""
    if event.kind in (EventKind.NOTE, EventKind.START):
        print(f"{time.strftime('%H:%M:%S')} {event.text}", flush=True)


def result_of(
    order: Order, started: float, error: EdgekitError | None, manifest: Manifest | None = None
) -> CellResult:
    """The row of a cell with this outcome."""
    cell = order.cell
    reads = {d.name: d for d in cell.named_files()} if error is not None else {}
    reads |= dependency.used
    row = replace(
        CellResult.failed(cell, order.key, None if error is None else Failure.of(error)),
        seconds=round(time.time() - started, 3),
        memory=peak_memory(),
        reads=tuple(reads[name] for name in sorted(reads) if not _is_the_sweeps(name)),
        host=platform.node(),
    )
    return row if manifest is None else row.with_figures(manifest)


def _is_the_sweeps(name: str) -> bool:
    """Whether a variable is what the sweep made it: elsewhere it has another value, and that changes nothing."""
    return name in THREADS or name == "PYTHONUNBUFFERED" or name.startswith("EDGEKIT_")


def peak_memory() -> int:
    """The largest resident size of this process and of those that it waited for, in bytes."""
    try:
        import resource
    except ImportError:
        return 0
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return max(resource.getrusage(kind).ru_maxrss for kind in kinds) << 10


def leave(order: Order, result: CellResult) -> None:
    """The cell is finished, for whoever asks."""
    journal.write(order.out, order.cell, result)


def time_cell(order: Order, show: Shown) -> None:
    """Time what was built before, and add it to the result."""
    result = journal.read(order.out, order.cell)
    if result is not None:
        leave(order, _timed(order, result, show))


def _timed(order: Order, result: CellResult, show: Shown) -> CellResult:
    """Time the cell's artifact on its device; the device is one benchmark's at a time, whoever asks for it."""
    cell = order.cell
    bench = cell.bench
    assert bench is not None
    settings = BenchSettings(processes=bench.processes, seconds=bench.seconds, wait_s=bench.wait)
    try:
        artifact = manifests.read(journal.folder(order.out, cell) / cell.target.name)
        measured, errors = measure([artifact], devices=[cell.place or LOCAL], settings=settings)
        if errors:
            raise errors[0]
        return replace(result, p50_ms=measured[0].measurement.p50_ms, timed=True, failure=None)
    except EdgekitError as error:
        show(error)
        return replace(result, timed=True, failure=Failure.of(error))
