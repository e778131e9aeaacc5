"""``edgekit sweep``, and the command that works on one of its cells."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgekit.cli._contained import contain
from edgekit.cli._options import json_flag
from edgekit.cli._output import print_json, progress, say, show_error, table
from edgekit.core import files
from edgekit.core.memory import available_memory
from edgekit.core.orphans import die_with, end_adopted
from edgekit.errors import EdgekitError, SweepError
from edgekit.load.spec import parse
from edgekit.sweep import cells as grid
from edgekit.sweep import plan as declared
from edgekit.sweep.journal import CellResult

if TYPE_CHECKING:
    from edgekit.sweep.run import Plan, Sweeping


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--out",
    "-o",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where everything goes (default: sweep beside FILE).",
)
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="Work on this machine, or on a Ray cluster.",
)
@click.option(
    "--address",
    default="auto",
    metavar="HOST:PORT",
    help="The Ray cluster (default: RAY_ADDRESS, or the one here).",
)
@click.option(
    "--storage",
    default="",
    metavar="URL",
    help="What the cluster's nodes share: file:///…, s3://…, gs://… (default: DIR/storage, on a shared file system).",
)
@click.option("--workers", type=int, metavar="N", help="Cells at a time (default: a processor each).")
@click.option("--dry-run", is_flag=True, help="Show the cells, what is finished, and an estimate.")
@click.option("--again", is_flag=True, help="Do those again that a runtime, device, time or defect ended.")
@click.option(
    "--trust",
    is_flag=True,
    help="Allow FILE to name what lies outside of its folder, and sources that execute code when loaded.",
)
@click.option("--markdown", type=click.Path(path_type=Path), metavar="FILE", help="Write a Markdown table.")
@click.option("--junit", type=click.Path(path_type=Path), metavar="FILE", help="Write JUnit's XML.")
@json_flag
def sweep(
    file: Path,
    out: Path | None,
    engine: str,
    address: str,
    storage: str,
    workers: int | None,
    dry_run: bool,
    again: bool,
    trust: bool,
    markdown: Path | None,
    junit: Path | None,
    as_json: bool,
) -> None:
    """Build every cell of FILE's grid: sources × recipes × targets × options × devices.

    Each cell is a build in a process of its own; one that fails costs only itself. What is finished is kept
    whatever happens, and is not done again by the next run. DIR gets a folder for each cell, results.json
    and report.html. The code that FILE's folder holds is run.

    Example: edgekit sweep sweep.toml --workers 4 --markdown table.md
    """
    from edgekit.sweep import run as sweeping
    from edgekit.sweep import written as written_as

    count = workers if workers is not None else len(os.sched_getaffinity(0)) if engine == "local" else 4096
    declared.refuse_workers(count)
    asked = declared.read(file, trust=trust)
    folder = file.resolve().parent
    out = (out or folder / "sweep").absolute()
    written = [(path.absolute(), kind) for path, kind in ((markdown, "markdown"), (junit, "junit")) if path]
    os.chdir(folder)  # names in the file are relative to it
    cells = grid.cells(asked, trust=trust)
    if dry_run:
        from edgekit.sweep.checking import refusals

        left = sweeping.plan(cells, out, again=again)
        here = count if engine == "local" or workers is not None else None
        _plan(left, refusals(left.tasks, out), here, as_json)
        return
    with progress() as shown:
        how = sweeping.Sweeping(
            out=out,
            folder=folder,
            workers=count,
            retries=asked.limits.retries,
            progress=shown,
            again=again,
        )
        if engine == "ray":
            _on_cluster(how, address, storage)
        try:
            sweeping.run(cells, how)
        finally:
            results = tuple(how.results[c.name] for c in cells if c.name in how.results)
            _write(results, written)
    if as_json:
        print_json(written_as.document(results, len(cells)))
    else:
        _show(results)
        say(f"{out / 'report.html'} shows all of it, {out / 'results.json'} has it for programs", err=True)
    _end(results, as_json)


def _on_cluster(how: Sweeping, address: str, storage: str) -> None:
    from edgekit.sweep.cluster import Cluster, finished
    from edgekit.sweep.storage import Storage

    url = storage or f"file://{how.out / 'storage'}"
    opened = Storage(url)
    how.engine = Cluster(address=address, storage=url).run
    how.fetch = lambda tasks, out: finished(opened, tasks, out)


def _write(results: Sequence[CellResult], wanted: Sequence[tuple[Path, str]]) -> None:
    from edgekit.sweep import written

    for path, kind in wanted:
        text = written.markdown(results).encode() if kind == "markdown" else written.junit(results)
        files.put(path, text)


def _show(results: Sequence[CellResult]) -> None:
    from edgekit.sweep import written

    rows = [written.row(result) for result in results]
    table("", ("cell", *written.COLUMNS[5:]), [(r[0], *r[5:-1], r[-1].partition("\n")[0]) for r in rows])


_DRY = ("cell", "source", "recipe", "variant", "target", "device", "to do", "seconds")


def _plan(plan: Plan, refused: Mapping[str, EdgekitError], workers: int | None, as_json: bool) -> None:
    """What a sweep would do. ``workers``: ``None`` for as many as a cluster has. Ends as the sweep would where cells
    are ``refused``."""
    able = replace(plan, tasks=tuple(t for t in plan.tasks if t.cell.name not in refused))
    total = able.total(workers or 1)
    kinds = {
        task.cell.name: "refused" if task.cell.name in refused else str(task.kind) for task in plan.tasks
    }
    rows = [_planned(plan, cell, kinds) for cell in plan.cells]
    if as_json:
        errors = [None if (e := refused.get(cell.name)) is None else e.to_json() for cell in plan.cells]
        cells = [
            dict(zip(_DRY, row, strict=True)) | {"error": error}
            for row, error in zip(rows, errors, strict=True)
        ]
        print_json({"cells": cells, "workers": workers, "seconds": total})
    else:
        table("", _DRY, rows)
        _say_plan(able, workers, total)
    for name, error in refused.items():
        say(f"{name}: {type(error).__name__} ({error.exit_code}): {error.message} ({error.hint})", err=True)
    if refused:
        first = next(iter(refused.values()))
        error = SweepError(
            f"{len(refused)} of {len(plan.cells)} cells would be refused before any work",
            code=first.exit_code,
            hint="correct what each of them says; the others would be built",
        )
        if not as_json:
            show_error(error)
        raise click.exceptions.Exit(error.exit_code)


def _planned(plan: Plan, cell: grid.Cell, kinds: Mapping[str, str]) -> tuple[str, ...]:
    """A cell's row; ``kinds``: what is to do for those that are not done."""
    seconds, known = plan.seconds.get(cell.name), plan.finished.get(cell.name)
    todo = kinds.get(cell.name) or ("finished" if known is None or known.failure is None else "failed")
    return (
        *(cell.name, cell.source, cell.compression, cell.variant, cell.target.name, cell.device or "here"),
        todo,
        "-" if seconds is None or todo == "refused" else f"{seconds:.1f}",
    )


def _say_plan(plan: Plan, workers: int | None, total: float | None) -> None:
    for note in plan.notes:
        say(note, err=True)
    failed = sum(r.failure is not None for r in plan.finished.values())
    left = f"{len(plan.tasks)} of {len(plan.cells)} cells are to be done"
    if failed:
        left += f", and {failed} of those that are done failed"
    where = f"on {workers} workers" if workers is not None else "on as many workers as the cluster has"
    time_ = "how long they take is not known yet" if total is None else f"about {_duration(total)}"
    if workers is None and total is not None:
        time_ += " of work in all"
    say(f"{left}, {where}: {time_}", err=True)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _end(results: Sequence[CellResult], as_json: bool) -> None:
    """The exit code of the first cell that failed; 0 where all are well."""
    failed = [r for r in results if r.failure is not None]
    if not failed:
        return
    error = SweepError(
        f"{len(failed)} of {len(results)} cells failed; the first: {failed[0].cell}",
        code=failed[0].exit_code,
        hint="each row says why; logs/CELL.log has what its processes said, --again tries what may go well another "
        "time",
    )
    if not as_json:
        show_error(error)
    raise click.exceptions.Exit(error.exit_code)


@click.command("sweep-cell", hidden=True)
@click.argument("order", type=click.Path(path_type=Path))
@click.option("--kind", type=click.Choice(["build", "time"]), default="build")
@click.option("--parent", type=int, default=0)
@click.option("--started", type=float, default=0.0)
def sweep_cell(order: Path, kind: str, parent: int, started: float) -> None:
    """Work on one cell of a sweep."""
    from edgekit.sweep import work
    from edgekit.sweep.order import read_order

    started = started or time.time()
    if parent:
        die_with(parent)
    asked = read_order(order)
    if kind == "time":
        work.time_cell(asked, show_error)
        return
    try:
        _contain(asked.cell)
        result = work.make(asked, started, show_error)
    except EdgekitError as error:  # the process that was contained has crashed, or its time is over
        show_error(error)
        result = work.result_of(asked, started, error)
    work.leave(asked, result)
    raise click.exceptions.Exit(result.exit_code)


def _contain(cell: grid.Cell) -> None:
    """Every cell within limits of memory: one that asks for all there is ends alone."""
    options = cell.options
    if not options.memory:
        options = replace(options, memory=f"{max(available_memory() >> 20, 64)}MiB")
    try:
        source = parse(cell.source)
    except EdgekitError:  # said again where it is caught
        return
    foreign = source.kind not in ("factory", "plan") and source.path is not None
    try:
        contain(cell.name, options, *([source.path] if foreign and source.path else []))
    except click.exceptions.Exit:  # the child has ended, and what it started is nobody's
        if cell.place is None or cell.place.transport != "adb":  # adb's server is everybody's
            end_adopted()
        raise
