"""How fresh processes are started on a device: by the agent's supervisor, or by the shell of a phone without Python."""

from __future__ import annotations

import collections
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Protocol

from edgekit.devices.job import R, Task, TaskResult, report_device
from edgekit.devices.plan import Watch, mended, run_plan
from edgekit.devices.protocol import plain
from edgekit.devices.transports import android
from edgekit.devices.transports.process import CancelledError, Patience
from edgekit.devices.wire import DeviceReport, ProgramResult
from edgekit.errors import DeviceBusyError, DeviceError, RunCancelledError, RuntimeCrashError, UsageError

if TYPE_CHECKING:
    from edgekit.devices.transports.transport import Transport

_LINES = 4000
"""The last lines of a program's output are read for its figures."""

_WATCHED = """
exec 3<&0
"$@" </dev/null 3<&- &
p=$!
(exec <&3 3<&- >/dev/null 2>&1; while read -r x; do :; done; kill -9 $p) &
w=$!
exec 3<&-
wait $p; s=$?
kill -9 $w 2>/dev/null
exit $s
"""
"""Ends the program when stdin does: the host is gone. The watcher keeps neither of our outputs open (a redirection of
the whole group would, in mksh), and is a shell without children: nothing of it stays behind."""

_HOLD = """
lock=$1/edgekit-lock; read -r boot process rest < "$2/.edgekit"
if ! mkdir "$lock" 2>/dev/null; then
  read -r its_boot its_process who < "$lock/holder"
  if [ "$its_boot" = "$boot" ] && [ -d "/proc/$its_process" ]; then echo "held $who"; exit 0; fi
  rm -rf "$lock"; mkdir "$lock" || exit 1
fi
echo "$boot $process $3" > "$lock/holder"
echo "ours"
"""
"""A folder is the lock; it is free when the shell of the session that made it is no more."""


class Session(Protocol[R]):
    """A device that is connected, on which processes can be timed."""

    def report(self) -> DeviceReport:
        """What the device is, and how it is now."""
        ...

    def run(self, tasks: Sequence[Task[R]], watch: Watch[R]) -> None:
        """Run the tasks in order; ``watch`` has what they gave, also when an error ends the run."""
        ...


@dataclass(frozen=True, kw_only=True)
class AgentSession:
    """With Python there: under the supervisor, with its lock, heartbeat and journal."""

    transport: Transport
    agent: PurePosixPath

    def report(self) -> DeviceReport:
        """See :class:`Session`."""
        return mended(self.transport, partial(report_device, self.transport, self.agent))

    def run(self, tasks: Sequence[Task[R]], watch: Watch[R]) -> None:
        """See :class:`Session`."""
        run_plan(self.transport, tasks, watch)


@dataclass(frozen=True, kw_only=True)
class ShellSession:
    """Without Python there: one shell command after the other, the state looked at in between."""

    transport: Transport

    def report(self) -> DeviceReport:
        """See :class:`Session`."""
        return android.report_phone(self.transport)

    def run(self, tasks: Sequence[Task[ProgramResult]], watch: Watch[ProgramResult]) -> None:
        """See :class:`Session`."""
        if watch.governor:
            raise UsageError(
                f"{self.transport.name} has no Python: nothing there could put its governor back",
                hint="leave --governor out",
            )
        with _held(self.transport, watch.wait_s):
            for task in tasks:
                try:
                    result = self._once(task, watch)
                except CancelledError as error:
                    raise RunCancelledError(
                        f"the run on {self.transport.name} was cancelled", hint="run it again"
                    ) from error
                watch.states.append(android.sample(self.transport))
                watch.add(task.id, TaskResult(result=result), len(tasks))

    def _once(self, task: Task[ProgramResult], watch: Watch[ProgramResult]) -> ProgramResult:
        """One fresh process."""
        job, lines = task.job, collections.deque[str](maxlen=_LINES)
        mask = sum(1 << cpu for cpu in job.cpus)
        bound = ("taskset", f"{mask:x}") if mask else ()
        argv = ["sh", "-c", _WATCHED, "edgekit", *bound, *job.argv]
        patience = Patience(whole=task.timeout, cancel=watch.cancel)
        done = self.transport.run(argv, stdin=b"", on_line=lines.append, patience=patience)
        text = plain("\n".join([*lines, done.stderr]))  # some print their figures on stderr
        if done.returncode or done.timed_out:
            silent = f"gave no answer within {task.timeout:g} s"
            how = silent if done.timed_out else f"ended with {done.returncode}"
            raise RuntimeCrashError(
                f"{PurePosixPath(job.argv[0]).name} on {self.transport.name} {how}; its last output:\n"
                f"{text.strip()[-1500:]}",
                hint="run it by hand there; a program for another version of the runtime may refuse the model",
            )
        script = 'if [ -f "$1" ]; then cat "$1"; echo; rm -f "$1"; fi'
        return ProgramResult(text=text, file=short(self.transport, ["sh", "-c", script, "edgekit", job.file]))


@contextmanager
def _held(transport: Transport, wait_s: float) -> Iterator[None]:
    """The device for ourselves; raises :class:`DeviceBusyError` that says who has it for longer than ``wait_s``."""
    base, end = str(transport.root.parent), time.monotonic() + wait_s
    user = os.environ.get("USER") or str(os.getuid())
    owner = f"{user} on {socket.gethostname()} since {time.strftime('%H:%M:%S')}"
    argv = ["sh", "-c", _HOLD, "edgekit", base, str(transport.root), owner]
    while (answer := short(transport, argv)).startswith("held"):
        if time.monotonic() + 1 > end:
            raise DeviceBusyError(
                f"{transport.name} is busy: {answer.removeprefix('held').strip()} is benchmarking",
                hint="wait for it to finish, or choose another device",
            )
        time.sleep(1)
    try:
        yield
    finally:
        with suppress(DeviceError):
            short(transport, ["rm", "-rf", f"{base}/edgekit-lock"])


def short(transport: Transport, argv: Sequence[str]) -> str:
    """The output of a short command. Raises :class:`DeviceError` where it fails."""
    lines: list[str] = []
    done = transport.run(argv, stdin=b"", on_line=lines.append, patience=Patience(whole=60))
    if done.returncode or done.timed_out:
        raise DeviceError(
            f"{transport.name}: {argv[0]} failed: {done.stderr.strip()[-300:]}", hint="run it again"
        )
    return plain("\n".join(lines))
