"""What a node of a cluster does for one task: fetch, work on it as one machine alone would, put its result into the
storage."""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from edgekit.core import files, versions
from edgekit.core.dependency import Dependency
from edgekit.core.store import canonical_json
from edgekit.core.structure import structure, to_builtins
from edgekit.errors import ConfigError
from edgekit.sweep import journal
from edgekit.sweep.attempt import Attempt
from edgekit.sweep.cells import Cell
from edgekit.sweep.journal import CELLS, LOGS, CellResult
from edgekit.sweep.shared_cache import SharedCache
from edgekit.sweep.storage import Storage, packed, unpacked
from edgekit.sweep.tasks import Kind, Task


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """A task for whichever node takes it. ``folder`` is the project's on the driver's machine; ``code`` that of the
    driver's edgekit; ``run`` is the driver's own: what another run left is not this one's answer."""

    task: Task
    key: str
    storage: str
    folder: Path
    code: str
    run: str


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A result in the storage, and the run that it was made for."""

    run: str
    result: CellResult


def encode(assignment: Assignment) -> bytes:
    """As it travels."""
    return canonical_json(assignment)


def decode(data: bytes) -> Assignment:
    """What :func:`encode` made."""
    return structure(Assignment, msgspec.json.decode(data), where="the driver's assignment")


def result_name(cell: Cell, key: str) -> str:
    """Where the storage has a cell's result; the archive of its files lies beside it."""
    return f"{CELLS}/{cell.name}/{key[:32]}.json"


def _archive_name(cell: Cell, key: str) -> str:
    return f"{CELLS}/{cell.name}/{key[:32]}.tar"


def stored(storage: Storage, cell: Cell, key: str) -> Stored | None:
    """The cell's result, where a node has finished it."""
    data = storage.get(result_name(cell, key))
    with contextlib.suppress(msgspec.MsgspecError):
        return None if data is None else msgspec.json.decode(data, type=Stored)
    return None


def work(data: bytes, base: Path, project: Path) -> bytes:
    """Do a task, with everything of this node below ``base``; the result as JSON.

    A task whose node was lost after its result was stored is not done again. What an earlier run stored is: the driver
    knows that result, and did not believe it (a file that the cell's code reads was edited). Raises
    :class:`ConfigError` where this node has another edgekit than the driver.
    """
    asked = decode(data)
    if versions.code() != asked.code:
        raise ConfigError(
            "a node of the cluster has another edgekit than this machine",
            hint="install the same version on every node: results would depend on where a cell runs",
        )
    task, storage = asked.task, Storage(asked.storage)
    known = stored(storage, task.cell, asked.key)
    if known is not None and known.run == asked.run and _answers(known.result, task):
        return canonical_json(known.result)
    out = base / "out"
    if task.kind is Kind.TIME:
        bring(storage, task.cell, asked.key, out)
    os.environ["EDGEKIT_CACHE"] = str(base / "cache")
    cache = SharedCache(storage, base / "cache")
    cache.fetch(task.cell)
    result = _attempt(Attempt(task, out, project, key=asked.key))
    cache.give(task.cell)
    result = replace(result, reads=tuple(_as_on_driver(result, project, asked.folder)))
    _leave(storage, asked, out, result)
    return canonical_json(result)


def _answers(result: CellResult, task: Task) -> bool:
    return result.timed if task.kind is Kind.TIME else result.attempts >= task.attempt


def _attempt(attempt: Attempt) -> CellResult:
    """Wait for its end; where Ray ends this task, the cell's process ends with it."""
    ended = False
    try:
        result = attempt.wait()
        ended = True
        return result
    finally:
        if not ended:
            attempt.tell()
            attempt.end()


def _as_on_driver(result: CellResult, project: Path, folder: Path) -> list[Dependency]:
    """What was read of the project, by the names that the driver's machine has for it."""
    mapped: list[Dependency] = []
    for read in result.reads:
        name = read.name
        if Path(name).is_absolute() and Path(name).is_relative_to(project):
            name = str(folder / Path(name).relative_to(project))
        mapped.append(replace(read, name=name, stamp=()))
    return mapped


def _leave(storage: Storage, asked: Assignment, out: Path, result: CellResult) -> None:
    """The files first, the result last: it is what says that the cell is finished."""
    cell, key = asked.task.cell, asked.key
    journal.write(out, cell, result)
    paths = [journal.folder(out, cell)]
    if (log := journal.log(out, cell)).is_file():
        paths.append(log)
    storage.put(_archive_name(cell, key), packed(out, paths))
    storage.put(
        result_name(cell, key), msgspec.json.encode(to_builtins(Stored(run=asked.run, result=result)))
    )


def bring(storage: Storage, cell: Cell, key: str, out: Path) -> None:
    """A finished cell's folder and log from the storage, in place of what is in ``out``."""
    data = storage.get(_archive_name(cell, key))
    if data is None:
        return
    with files.scratch(out) as scratch:
        unpacked(data, scratch)
        final = journal.folder(out, cell)
        final.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(final, ignore_errors=True)
        files.publish(scratch / CELLS / cell.name, final)
        log = scratch / LOGS / f"{cell.name}.log"
        if log.is_file():
            (out / LOGS).mkdir(exist_ok=True)
            log.replace(journal.log(out, cell))
