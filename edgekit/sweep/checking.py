"""What can be known to be wrong with a cell before any work: what a dry run says of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from edgekit.errors import EdgekitError
from edgekit.load import usercode
from edgekit.pipeline import api
from edgekit.search.limits import search_options
from edgekit.sweep import journal
from edgekit.sweep.cells import Cell
from edgekit.sweep.plan import leading
from edgekit.sweep.tasks import Kind, Task


def refusals(tasks: Sequence[Task], out: Path) -> Mapping[str, EdgekitError]:
    """The error of each cell, by its name, that its build would end with at once; the working folder is the sweep's."""
    return {
        task.cell.name: error
        for task in tasks
        if task.kind is Kind.BUILD and (error := _refusal(task.cell, out)) is not None
    }


def _refusal(cell: Cell, out: Path) -> EdgekitError | None:
    options = replace(cell.options, out=journal.folder(out, cell))
    try:
        # A search's builds have the calibration data of its training, and what it finds is built as any other.
        api.checked(cell.source, options if cell.search is None else search_options(options))
        for file in _code(cell):
            usercode.refuse_missing(file)
    except EdgekitError as error:
        return error
    return None


def _code(cell: Cell) -> Iterator[str]:
    """The files of the user's own code that its options name: of a task, of training data."""
    for name, value in vars(cell.options).items():
        yield from (parts[0] for text in leading(name, value) if (parts := usercode.split(text)) is not None)
