"""What a sweep of thousands of cells would take on a cluster, by simulation from what small runs took.

    python tools/simulate_sweep.py --sweep DIR [--workers 2]                 # against the run in DIR
    python tools/simulate_sweep.py --sweep DIR --cells 10000 --nodes 100     # beyond this machine

Times of a cell are those of DIR/cells/*/result.json: the first cell of each source prepares it, the others do without.
The order is that of the engine itself (edgekit.sweep.tasks.Room); what is simulated is time. Devices are for one cell
at a time. Not in the model: nodes that are lost, a storage that is slow (its bytes are counted), cells that differ
from those that were measured.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path

from edgekit.core.config import Options
from edgekit.core.targets import find
from edgekit.sweep.cells import Cell
from edgekit.sweep.tasks import Room, Task


@dataclass(frozen=True)
class Costs:
    """Seconds that preparing a source adds, and of every cell; bytes that a cell leaves."""

    prepare: float
    cell: float
    size: float


def measured(folder: Path) -> tuple[Costs, list[dict[str, object]]]:
    rows = [json.loads(p.read_text()) for p in sorted((folder / "cells").glob("*/result.json"))]
    rows = [r for r in rows if r["failure"] is None]
    by_source: dict[str, list[float]] = {}
    for row in rows:
        by_source.setdefault(row["source"], []).append(row["seconds"])
    first = [max(times) for times in by_source.values() if len(times) > 1]
    rest = [s for times in by_source.values() for s in sorted(times)[: max(1, len(times) - 1)]]
    cell = statistics.mean(rest)
    prepare = max(0.0, statistics.mean(first) - cell) if first else 0.0
    size = sum(p.stat().st_size for p in (folder / "cells").rglob("*") if p.is_file()) / max(1, len(rows))
    return Costs(prepare, cell, size), rows


def grid(sources: int, targets: int, devices: int) -> list[Task]:
    plain = Cell(
        name="",
        source="",
        recipe="",
        variant="",
        target=find("ort-fp32"),
        device="",
        options=Options(target=("ort-fp32",)),
    )
    names = itertools.cycle([f"device{n}" for n in range(devices)] or [""])
    return [
        Task(cell=replace(plain, name=f"{s}-{t}", source=f"{s}.onnx", device=next(names)))
        for s in range(sources)
        for t in range(targets)
    ]


def simulate(tasks: list[Task], costs: Costs, workers: int) -> tuple[float, float, float]:
    """Seconds that it would take, seconds that workers would be at work, and seconds of the driver's own choosing."""
    room = Room(workers=workers, memory=1 << 62, running=[], ready=set())
    waiting, needs = list(tasks), [0] * len(tasks)
    ends: list[tuple[float, int, Task]] = []
    prepared_at: dict[str, float] = {}
    now = busy = chosen = 0.0
    number = itertools.count()
    while waiting or ends:
        began = time.perf_counter()
        while (index := room.next(waiting, needs)) is not None:
            task = waiting.pop(index)
            needs.pop()
            room.begin(task, 0)
            part = task.cell.shared[0]
            if part not in prepared_at:
                prepared_at[part] = now + costs.prepare
                end = now + costs.prepare + costs.cell
            else:  # who came too early waits for the lock
                end = max(now, prepared_at[part]) + costs.cell
            heapq.heappush(ends, (end, next(number), task))
            busy += end - now
        chosen += time.perf_counter() - began
        now, _, task = heapq.heappop(ends)
        room.end(task, 0)
    return now, busy, chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sweep", type=Path, required=True, help="the folder of a sweep that has run")
    parser.add_argument("--workers", type=int, default=2, help="of the run in DIR, or on each node")
    parser.add_argument("--took", type=float, help="seconds that the run in DIR took, to compare with")
    parser.add_argument("--cells", type=int)
    parser.add_argument("--targets", type=int, default=20)
    parser.add_argument("--nodes", type=int, default=100)
    parser.add_argument("--devices", type=int, default=0)
    asked = parser.parse_args()
    costs, rows = measured(asked.sweep)
    print(
        f"a cell: {costs.cell:.1f} s; preparing a source: {costs.prepare:.1f} s; {costs.size / 1e3:.0f} kB a cell"
    )
    if asked.cells is None:
        sources = len({r["source"] for r in rows})
        took, _, _ = simulate(grid(sources, len(rows) // sources, 0), costs, asked.workers)
        against = f", measured {asked.took:.0f} s ({took / asked.took:.2f})" if asked.took else ""
        print(f"{len(rows)} cells on {asked.workers} workers: {took:.0f} s by the model{against}")
        return
    workers = asked.nodes * asked.workers
    tasks = grid(asked.cells // asked.targets, asked.targets, asked.devices)
    took, busy, chosen = simulate(tasks, costs, workers)
    print(
        f"{len(tasks)} cells, {asked.nodes} nodes of {asked.workers}, {asked.devices} devices: {took / 60:.1f} min, "
        f"{busy / took / workers:.0%} of the workers at work, the driver chooses for {chosen:.1f} s, "
        f"{len(tasks) * costs.size / 1e9:.2f} GB through the storage ({len(tasks) * costs.size / took / 1e6:.1f} MB/s)"
    )


if __name__ == "__main__":
    main()
