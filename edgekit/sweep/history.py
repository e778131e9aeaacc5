"""What cells took so far, on this machine: one line a cell, from which needs and times are estimated."""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from edgekit.core import files
from edgekit.core.store import canonical_json, default_root
from edgekit.sweep.cells import Cell
from edgekit.sweep.journal import CellResult

FILE = "history/cells.jsonl"
_MOST_BYTES = 8 << 20
"""Beyond it the older half goes."""
_FIRST_NEED = 1 << 30
"""Of a cell of which nothing is known: PyTorch, an export and a runtime take 0.6 GB for a small model."""
_MARGIN = 1.25


@dataclass(frozen=True, kw_only=True)
class Row:
    """One cell as it ran: seconds of its process, bytes of memory, seconds of each step when it was made, bytes of
    what it left; candidates of its search, where it searched."""

    when: float
    source: str
    recipe: str
    target: str
    device: str
    verdict: str
    seconds: float
    memory: int
    size: int = 0
    trials: int = 0
    stages: Mapping[str, float] = field(default_factory=dict)


def add(cell: Cell, result: CellResult, root: Path | None = None) -> None:
    """A line for the cell; nothing where the history cannot be written."""
    row = Row(
        when=round(time.time(), 1),
        source=cell.source,
        recipe=cell.compression,
        target=cell.target.name,
        device=cell.device,
        verdict=str(result.verdict),
        seconds=result.seconds,
        memory=result.memory,
        size=result.size or 0,
        trials=_trials(cell),
        stages=dict(result.stages),
    )
    path = (root or default_root()) / FILE
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = files.ours(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            os.write(descriptor, canonical_json(row) + b"\n")  # one write: lines of two sweeps do not mix
            full = os.fstat(descriptor).st_size > _MOST_BYTES
        finally:
            os.close(descriptor)
        if full:
            _halve(path)


def _trials(cell: Cell) -> int:
    return 0 if cell.search is None else cell.search.trials


def _halve(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    files.write(path, b"".join(lines[len(lines) // 2 :]))


def read(root: Path | None = None) -> tuple[Row, ...]:
    """All lines that can be read, the oldest first."""
    decoder = msgspec.json.Decoder(Row)
    rows: list[Row] = []
    try:
        lines = files.read((root or default_root()) / FILE, most=2 * _MOST_BYTES).splitlines()
    except OSError:
        return ()
    for line in lines:
        with contextlib.suppress(msgspec.MsgspecError):
            rows.append(decoder.decode(line))
    return tuple(rows)


class Estimate:
    """What a cell will take, from the rows that are most like it."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._by: dict[tuple[str, ...], list[Row]] = {}
        for row in rows:
            own = (row.source, row.recipe, row.target), (row.source, row.recipe)
            # A search is no measure of the builds beside it.
            for key in own if row.trials else (*own, (row.source,), ()):
                self._by.setdefault(key, []).append(row)

    def seconds(self, cell: Cell) -> float | None:
        """The median of the like; ``None`` where nothing is known.

        A search takes what such a search took for each of its candidates; while none has run, each is taken for a build
        as the others are, which is rather much.
        """
        rows, trials = self._like(cell), _trials(cell)
        if not rows:
            return None
        return statistics.median(r.seconds * max(trials, 1) / max(r.trials, 1) for r in rows)

    def memory(self, cell: Cell) -> int:
        """Bytes, with a margin."""
        rows = [r for r in self._like(cell) if r.memory]
        return int(_MARGIN * max(r.memory for r in rows)) if rows else _FIRST_NEED

    def _like(self, cell: Cell) -> Sequence[Row]:
        for key in (
            (cell.source, cell.compression, cell.target.name),
            (cell.source, cell.compression),
            (cell.source,),
            (),
        ):
            if rows := self._by.get(key):
                return rows[-20:]
        return ()
