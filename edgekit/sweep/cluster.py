"""The engine of a Ray cluster: a task for each cell, with the processors, memory and device that it needs.

Ray schedules, retries what a lost node had at work, and shows it in its dashboard; nothing of that is made anew here.
A device is a resource ``device:NAME`` of which a node that reaches it has one.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from edgekit.core import dependency, versions
from edgekit.core.dependency import Kind as Read
from edgekit.errors import BackendError, ConfigError, MissingExtraError, first_line
from edgekit.sweep import journal, node
from edgekit.sweep.journal import CellResult, Failure
from edgekit.sweep.local import Listener, drive
from edgekit.sweep.node import Assignment
from edgekit.sweep.storage import Storage
from edgekit.sweep.tasks import LOST, Kind, Room, Task

_LOST_NODES = 3
"""How many nodes a cell may lose before it is called lost itself."""
_EXCLUDED = [".git", "__pycache__", ".venv", "build"]


def resource(device: str) -> str:
    """What a node declares that reaches a device: ``ray start --resources '{"device:pi5": 1}'``."""
    return f"device:{device}"


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Which cluster, and what its nodes share. ``workers`` of 0: as many cells at a time as there are processors."""

    address: str
    storage: str

    def run(
        self,
        tasks: Sequence[Task],
        *,
        out: Path,
        folder: Path,
        workers: int,
        retries: int,
        need: Callable[[Task], int],
        listen: Listener,
    ) -> None:
        """Work on all tasks; the arguments are those of :func:`edgekit.sweep.local.run`.

        Raises :class:`MissingExtraError`, :class:`BackendError` where there is no cluster, and :class:`ConfigError`
        for what no node of it can do.
        """
        ray = _connected(self.address, folder, out)
        try:
            has = ray.cluster_resources()
            _refuse(tasks, has, [n.get("Resources", {}) for n in ray.nodes() if n.get("Alive")])
            run = secrets.token_hex(16)
            storage = Storage(self.storage)
            remote = ray.remote(max_retries=_LOST_NODES, retry_exceptions=False)(_work)

            def start(task: Task) -> _Remote:
                asked = Assignment(
                    task=task,
                    key=task.cell.key,
                    storage=self.storage,
                    folder=folder,
                    code=versions.code(),
                    run=run,
                )
                options: dict[str, Any] = {
                    "num_cpus": _processors(task),
                    "memory": need(task),
                    "name": task.cell.name,
                }
                if task.device:
                    options["resources"] = {resource(task.device): 1}
                if need(task) > has.get("memory", 0):
                    del options["memory"]
                ref = remote.options(**options).remote(node.encode(asked))
                return _Remote(ray=ray, ref=ref, task=task, storage=storage, out=out)

            room = Room(workers=workers, memory=int(has.get("memory", 0)) or 1 << 62, running=[], ready=set())
            drive(tasks, room, start, retries=retries, need=need, listen=listen)
        finally:
            ray.shutdown()


def finished(storage: Storage, tasks: Sequence[Task], out: Path) -> None:
    """Bring what nodes have finished since the driver was killed."""
    for task in tasks:
        key = task.cell.key
        if node.stored(storage, task.cell, key) is not None:
            node.bring(storage, task.cell, key, out)


def _connected(address: str, folder: Path, out: Path) -> Any:
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError("ray", "ray") from error
    excludes = [*_EXCLUDED, *([str(out.relative_to(folder))] if out.is_relative_to(folder) else [])]
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    environment = {"working_dir": str(folder), "excludes": excludes}
    try:
        ray.init(address=address, runtime_env=environment, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise BackendError(
            f"there is no Ray cluster at {address}: {first_line(error)}",
            hint="ray start --head here and ray start --address HOST:PORT on each node, or --engine local",
        ) from error
    for (
        number,
        handler,
    ) in handlers.items():  # Ray's own would end this process as if code had called sys.exit
        signal.signal(number, handler)
    return ray


def _processors(task: Task) -> int:
    return task.cell.threads * task.processes


def _refuse(tasks: Sequence[Task], has: dict[str, float], nodes: Sequence[dict[str, float]]) -> None:
    """What no node can do would be waited for, without a word and without end."""
    for task in tasks:
        if task.device and not has.get(resource(task.device)):
            raise ConfigError(
                f"no node of the cluster has the resource {resource(task.device)}",
                hint=f"""start the node that reaches it with --resources '{{"{resource(task.device)}": 1}}'""",
            )
        if task.cell.bench is not None and not task.device:
            raise ConfigError(
                "a sweep that times on a cluster has to say on which device",
                hint='write devices = ["NAME"]: a time of whichever node was free is none of a device',
            )
        fitting = [n for n in nodes if not task.device or n.get(resource(task.device))]
        most = int(max((n.get("CPU", 0) for n in fitting), default=0))
        if _processors(task) > most:
            raise ConfigError(
                f"{task.cell.name} takes {_processors(task)} processors at a time ({task.processes} processes of "
                f"{task.cell.threads} threads), and no node of the cluster{_reaching(task)} has more than {most}",
                hint="ask for fewer processes or threads, or start a larger node",
            )


def _reaching(task: Task) -> str:
    return f" that reaches {task.device}" if task.device else ""


def _work(data: bytes) -> bytes:
    """On a node: in the project's folder, with a place of its own for the node's cache."""
    import ray

    name = ray.get_runtime_context().get_node_id()[:12]
    user = os.getuid() if hasattr(os, "getuid") else 0
    base = Path(tempfile.gettempdir()) / f"edgekit-sweeps-{user}" / name
    base.mkdir(parents=True, exist_ok=True, mode=0o700)
    project = Path.cwd()
    # Ray makes the project importable as a whole; a cell imports what a build would.
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.environ["PYTHONPATH"] = os.pathsep.join(
        p for p in paths if p and Path(p).resolve() != project.resolve()
    )
    return node.work(data, base, project)


_MACHINES = frozenset(
    {
        "HOME",
        "HOSTNAME",
        "LANG",
        "LOGNAME",
        "OLDPWD",
        "PATH",
        "PWD",
        "PYTHONPATH",
        "SHELL",
        "SHLVL",
        "TEMP",
        "TERM",
    }
    | {"TMP", "TMPDIR", "USER", "VIRTUAL_ENV", "_"}
)
_MACHINES_KINDS = ("CONDA_", "CUDA_", "EDGEKIT_", "LC_", "LD_", "RAY_", "SSH_", "XDG_")
"""Variables that tell of a machine, not of what is asked for."""


def _other_variables(result: CellResult) -> list[str]:
    """Those that the cell's code read and that this machine has otherwise."""
    read = {d.name: d for d in result.reads if d.kind is Read.VARIABLE}
    return sorted(
        name
        for name, seen in read.items()
        if name not in _MACHINES
        and not name.startswith(_MACHINES_KINDS)
        and dependency.of_variable(name, dependency.variable(name)).sha256 != seen.sha256
    )


@dataclass(kw_only=True)
class _Remote:
    """A task that the cluster has."""

    ray: Any
    ref: Any
    task: Task
    storage: Storage
    out: Path

    def result(self) -> CellResult | None:
        """What a node made of it, with its files fetched; a lost one is a row, too."""
        ready, _ = self.ray.wait([self.ref], timeout=0)
        if not ready:
            return None
        try:
            result = msgspec.json.decode(self.ray.get(self.ref), type=CellResult)
        except self.ray.exceptions.RayTaskError as error:
            cause = error.cause if isinstance(error.cause, ConfigError | BackendError) else None
            if cause is not None:
                raise cause from None
            result = self._lost(error)
        except self.ray.exceptions.RayError as error:
            result = self._lost(error)
        else:
            node.bring(self.storage, self.task.cell, self.task.cell.key, self.out)
            if others := _other_variables(result):
                result = self._elsewhere(result, others)
        journal.write(self.out, self.task.cell, result)
        return result

    def _elsewhere(self, result: CellResult, names: Sequence[str]) -> CellResult:
        """The row of a cell whose code read variables that are otherwise on the node: it is not what was asked for."""
        shutil.rmtree(journal.folder(self.out, self.task.cell), ignore_errors=True)
        failure = Failure(
            type=ConfigError.__name__,
            message=f"{self.task.cell.name}: its code reads {', '.join(names)}, which the node has otherwise than "
            "this machine",
            hint="start Ray on every node with the same variables (NAME=VALUE ray start …): they do not travel",
            exit_code=ConfigError.exit_code,
        )
        return replace(CellResult.failed(self.task.cell, self.task.cell.key, failure), reads=result.reads)

    def _lost(self, error: Exception) -> CellResult:
        failure = Failure(
            type=LOST,
            message=f"{self.task.cell.name}: {type(error).__name__}: {first_line(error)}",
            hint="Ray's dashboard and logs say what became of the node",
            exit_code=6,
        )
        cell = self.task.cell
        if self.task.kind is Kind.TIME and (left := journal.read(self.out, cell)) is not None:
            return replace(left, timed=True, failure=failure)
        return replace(CellResult.failed(cell, cell.key, failure), attempts=self.task.attempt)

    def tell(self) -> None:
        """Ask it to end."""
        with contextlib.suppress(Exception):
            self.ray.cancel(self.ref)

    def end(self, patience: float) -> None:
        """Wait for its end, then do without."""
        with contextlib.suppress(Exception):
            self.ray.wait([self.ref], timeout=patience)
            self.ray.cancel(self.ref, force=True)
