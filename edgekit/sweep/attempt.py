"""One attempt at a task: a process of its own, and what it leaves. The same on this machine and on a cluster's node."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from edgekit.sweep import journal, order
from edgekit.sweep.journal import CellResult, Failure
from edgekit.sweep.tasks import LOST, Kind, Task

_PATIENCE_S = 15.0
"""How long a cell's process that was told to end may take to clean up."""


class Attempt:
    """A process at work on a task. ``folder`` is the project, where relative names of the sweep are looked for;
    ``key`` the cell's, where another machine has computed it."""

    def __init__(self, task: Task, out: Path, folder: Path, key: str = "") -> None:
        self.task, self._out, self._key = task, out, key or task.cell.key
        path = journal.log(out, task.cell)
        own = journal.folder(out, task.cell)
        journal.refuse_links(own, path, *journal.places(out, task.cell))
        journal.refuse_odd(folders=(own,), written=(own / order.SPEC, own / journal.RESULT, path))
        spec = order.write_order(out, task.cell, self._key)
        if task.kind is Kind.BUILD:
            journal.forget(out, task.cell)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._started = time.time()
        with journal.opened_log(path, again=task.attempt > 1 or task.kind is Kind.TIME) as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-P", "-m", "edgekit", "sweep-cell", str(spec)),
                    *("--kind", str(task.kind), "--parent", str(os.getpid())),
                    *("--started", f"{self._started:.3f}"),
                ],
                cwd=folder,
                env=_environment(task.cell.threads),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the sweep, which ends its cells itself
            )

    def result(self) -> CellResult | None:
        """The result, once the process has ended; ``None`` before."""
        code = self.process.poll()
        if code is None:
            return None
        self._end_group()
        left = journal.read(self._out, self.task.cell)
        done = left is not None and left.key == self._key
        if done and left is not None and (self.task.kind is Kind.BUILD or left.timed):
            if left.attempts == self.task.attempt or self.task.kind is Kind.TIME:
                return left
            result = replace(left, attempts=self.task.attempt)
        else:
            result = self._lost(code, left)
        journal.write(self._out, self.task.cell, result)
        return result

    def wait(self) -> CellResult:
        """The result, at the moment when the process ends: nothing is asked again and again meanwhile."""
        self.process.wait()
        result = self.result()
        assert result is not None
        return result

    def _lost(self, code: int, left: CellResult | None) -> CellResult:
        """The row of a cell whose process left none."""
        cell = self.task.cell
        if code < 0:
            name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
            killed = "; the system does so when memory runs out" if -code == signal.SIGKILL else ""
            how = f"{name} ended the cell's process{killed}"
        else:
            how = f"the cell's process ended with {code} and left no result"
        with (
            contextlib.suppress(OSError),
            journal.opened_log(journal.log(self._out, cell), again=True) as log,
        ):
            log.write(f"error: {cell.name}: {how}\n".encode())
        failure = Failure(
            type=LOST,
            message=f"{cell.name}: {how}",
            hint=f"its last words are in {journal.log(self._out, cell)}; --workers 1 leaves each cell more memory",
            exit_code=6,
        )
        if self.task.kind is Kind.TIME and left is not None:
            return replace(left, timed=True, failure=failure)
        return replace(
            CellResult.failed(cell, self._key, failure),
            seconds=round(time.time() - self._started, 3),
            attempts=self.task.attempt,
            reads=cell.named_files(),
        )

    def tell(self) -> None:
        """Ask it to end."""
        with contextlib.suppress(OSError):
            self.process.terminate()

    def end(self, patience: float = _PATIENCE_S) -> None:
        """Wait until it has ended, and see to it."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(patience)
        self._end_group()
        self.process.wait()

    def _end_group(self) -> None:
        """Whatever it left behind."""
        with contextlib.suppress(OSError):
            os.killpg(self.process.pid, signal.SIGKILL)


def _environment(threads: int) -> Mapping[str, str]:
    """The sweep's own, with the cell's number of threads; options come with the order alone."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("EDGEKIT_") or k in _KEPT}
    return kept | dict.fromkeys(order.THREADS, str(threads)) | {"PYTHONUNBUFFERED": "1"}


_KEPT = ("EDGEKIT_CACHE", "EDGEKIT_CACHE_LIMIT", "EDGEKIT_LOCK", "EDGEKIT_DATA")
