"""What a cell's process is told: a file in the cell's folder. Light to import, for whoever only starts processes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from edgekit.core import files
from edgekit.core.structure import structure, to_builtins
from edgekit.sweep import journal
from edgekit.sweep.cells import Cell

SPEC = "cell.json"
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
"""Variables that a cell's process gets from the sweep: its number of threads, which its key has."""
_MOST_BYTES = 16 << 20


@dataclass(frozen=True, kw_only=True)
class Order:
    """A cell to work on: where its result goes, and its key as the sweep knows it."""

    cell: Cell
    out: Path
    key: str


def write_order(out: Path, cell: Cell, key: str) -> Path:
    """The order for a cell's process, as a file in the cell's folder."""
    path = journal.folder(out, cell) / SPEC
    path.parent.mkdir(parents=True, exist_ok=True)
    order = Order(cell=cell, out=out.absolute(), key=key)
    files.write(path, msgspec.json.format(msgspec.json.encode(to_builtins(order)), indent=1))
    return path


def read_order(path: Path) -> Order:
    """What :func:`write_order` wrote."""
    return structure(Order, msgspec.json.decode(files.read(path, most=_MOST_BYTES)), where=str(path))
