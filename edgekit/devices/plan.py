"""Many jobs on one device under the supervisor: locked, watched, resumed after a broken link."""

from __future__ import annotations

import getpass
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from edgekit.devices.job import Far, Transcript, outcome, protocol_line
from edgekit.devices.transports.process import CancelledError, Completed, Patience
from edgekit.errors import (
    DeviceBusyError,
    DeviceError,
    LinkLostError,
    RunCancelledError,
    UnreachableError,
    UsageError,
)

if TYPE_CHECKING:
    from pathlib import PurePosixPath

    from edgekit.devices.transports.transport import Transport

HEARTBEAT_S = 10.0
"""After this long without a sign of the host the device ends the run."""
SILENCE_S = 15.0
"""After this long without a sign of the supervisor (it beats every 2 s) the link counts as lost."""
RESUMES = 3
MEND_S = 60.0
"""How long to try to reach a device again after the link broke."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Task:
    """One fresh process. ``id`` is unique in the plan; ``agent`` the archive's path on the device."""

    id: str
    backend: str
    agent: PurePosixPath
    job: Mapping[str, Any]
    timeout: float


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """A task's result event, with the versions and the view of the model that came before it."""

    result: Mapping[str, Any]
    transcript: Transcript


@dataclass(kw_only=True)
class Watch:
    """What the host makes of a run while it goes on. ``exclusive``: take the device's lock. ``mend_s``: how
    long to try to reach a device again after the link broke, in seconds. ``journal``: its name on the device;
    plans of their own need journals of their own. ``wait_s``: how long to wait for a device that is busy.
    ``governor``: the processors' frequency governor while it goes on. ``on_result`` is told each task once.
    ``results`` has what is done so far, also when an error ends the run."""

    exclusive: bool = True
    state_s: float = 1.0
    mend_s: float = MEND_S
    journal: str = "journal"
    cancel: threading.Event | None = None
    wait_s: float = 0.0
    governor: str = ""
    on_done: Callable[[int, int], None] | None = None
    on_progress: Callable[[int], None] | None = None
    on_result: Callable[[str, TaskResult], None] | None = None
    results: dict[str, TaskResult] = field(default_factory=dict)
    states: list[Mapping[str, Any]] = field(default_factory=list)
    resumes: int = 0


def mended(transport: Transport, action: Callable[[], T], *, limit: float = MEND_S) -> T:
    """What ``action`` gives; begun again when the link breaks under it, :data:`RESUMES` times at most."""
    for left in reversed(range(RESUMES + 1)):
        try:
            return action()
        except LinkLostError:
            if not left:
                raise
            _mend(transport, limit)
    raise AssertionError


def _mend(transport: Transport, limit: float) -> None:
    """Connect again, with longer and longer pauses, until the device answers or the limit is reached."""
    end, pause = time.monotonic() + limit, 0.5
    while True:
        try:
            return transport.reopen()
        except UnreachableError:
            if time.monotonic() + pause > end:
                raise
            time.sleep(pause)
            pause = min(2 * pause, 10.0)


@dataclass(frozen=True, kw_only=True)
class Look:
    """A device's facts and one sample of its state (see ``agent/state.py``)."""

    facts: Mapping[str, Any]
    state: Mapping[str, Any]


def run_plan(transport: Transport, tasks: Sequence[Task], watch: Watch) -> dict[str, TaskResult]:
    """Run every task in order; the first that fails ends the plan with its error.

    A lost link is mended and the plan goes on from the journal on the device. Raises what
    :func:`~edgekit.devices.job.outcome` raises, :class:`DeviceBusyError` when another run holds the
    device, :class:`LinkLostError` when the link cannot be mended, and :class:`RunCancelledError`.
    """
    run = _Run(tasks, watch)
    patient_until = time.monotonic() + watch.wait_s
    while True:
        try:
            run.attempt(transport)
        except CancelledError as error:
            raise RunCancelledError(
                f"the run on {transport.name} was cancelled", hint="run it again"
            ) from error
        except DeviceBusyError:
            if time.monotonic() + 1 > patient_until:
                raise
            time.sleep(1)
        except LinkLostError:
            if watch.resumes >= RESUMES:
                raise
            watch.resumes += 1
            _mend(transport, watch.mend_s)
            # Our own supervisor holds the device until it has missed us for long enough.
            patient_until = max(patient_until, time.monotonic() + HEARTBEAT_S + 5)
        else:
            return watch.results


def look(transport: Transport, agent: PurePosixPath) -> Look:
    """What the device is, and how it is now. Raises :class:`DeviceError` when it does not answer."""
    transcript = Transcript()
    argv = [transport.python, str(agent), "state"]
    completed = transport.run(argv, stdin=b"", on_line=transcript.line, patience=Patience(whole=30))
    if transcript.result is None:
        raise _unfinished(transport.name, completed, "")
    return Look(facts=transcript.result["facts"], state=transcript.result["state"])


class _Run:
    """The state of one plan across attempts."""

    def __init__(self, tasks: Sequence[Task], watch: Watch) -> None:
        self.tasks = {task.id: task for task in tasks}
        self.watch = watch
        self.transcripts: dict[str, Transcript] = {}
        self.busy: Mapping[str, Any] | None = None
        self.refused = ""
        self.device = ""
        self.remote = False
        self.bye = ""
        self.expected = 1

    def attempt(self, transport: Transport) -> None:
        """Send the plan and listen until the supervisor says goodbye."""
        self.expected, self.bye, self.busy, self.refused = 1, "", None, ""
        self.device, self.remote = transport.name, transport.remote
        first = next(iter(self.tasks.values()))
        plan = json.dumps(self._plan(transport)).encode() + b"\n"
        whole = sum(t.timeout + 30 for t in self.tasks.values())
        completed = transport.run(
            [transport.python, str(first.agent), "supervisor"],
            stdin=plan,
            on_line=self._line,
            patience=Patience(whole=whole, silence=SILENCE_S, beat=2.0, cancel=self.watch.cancel),
        )
        if self.busy is not None:
            raise _busy(transport.name, self.busy)
        if self.refused:
            raise _refused(transport.name, self.watch.governor, self.refused)
        if self.bye != "done":
            raise _unfinished(transport.name, completed, self.bye)

    def _plan(self, transport: Transport) -> dict[str, Any]:
        return {
            "tasks": [
                {"id": t.id, "argv": ["{python}", str(t.agent)], "job": t.job, "timeout": t.timeout}
                for t in self.tasks.values()
            ],
            "journal": str(transport.root / self.watch.journal),
            "heartbeat": HEARTBEAT_S,
            "lock": _owner() if self.watch.exclusive else None,
            "state_s": self.watch.state_s,
            "governor": self.watch.governor,
        }

    def _line(self, text: str) -> None:
        event = protocol_line(text, self.expected)
        self.expected += 1
        kind = event["event"]
        if kind == "busy":
            self.busy = event["holder"]
        elif kind == "refused":
            self.refused = str(event["problem"])
        elif kind == "bye":
            self.bye = event["why"]
        elif kind == "state":
            self.watch.states.append(event["state"])
        elif kind == "started":
            self.transcripts[event["id"]] = Transcript(on_progress=self.watch.on_progress)
        elif kind == "line":
            self.transcripts[event["id"]].line(event["line"])
        elif kind == "ended":
            self._ended(event)

    def _ended(self, event: Mapping[str, Any]) -> None:
        task = self.tasks[event["id"]]
        transcript = self.transcripts.pop(task.id)
        completed = Completed(
            returncode=int(event["returncode"]),
            stderr=str(event["stderr"]),
            timed_out=bool(event["timed_out"]),
        )
        far = Far(device=self.device, remote=self.remote)
        result = outcome(task.backend, completed, transcript, task.timeout, far)
        done, known = TaskResult(result=result, transcript=transcript), task.id in self.watch.results
        self.watch.results[task.id] = done
        if self.watch.on_result is not None and not known:
            self.watch.on_result(task.id, done)
        if self.watch.on_done is not None:
            self.watch.on_done(len(self.watch.results), len(self.tasks))


def _owner() -> dict[str, Any]:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user id without a name
        user = str(os.getuid())
    return {"user": user, "host": socket.gethostname(), "pid": os.getpid(), "since": time.time()}


def _busy(device: str, holder: Mapping[str, Any]) -> DeviceBusyError:
    who = f"{holder.get('user', 'somebody')} on {holder.get('host', 'an unknown host')}"
    since = holder.get("since")
    ago = f" for {max(0, time.time() - float(since)):.0f} s" if isinstance(since, int | float) else ""
    return DeviceBusyError(
        f"{device} is busy: {who} (process {holder.get('pid', '?')}) has been benchmarking{ago}",
        hint="wait for it to finish, or choose another device",
    )


def _refused(device: str, governor: str, problem: str) -> DeviceError | UsageError:
    if "is none of its governors" in problem:
        return UsageError(f"{device}: {problem}", hint="name one of them, or leave --governor out")
    if "offers no governors" in problem:
        return DeviceError(f"{device}: {problem}", hint="leave --governor out: nobody can set one there")
    return DeviceError(
        f"{device} cannot be set to the governor {governor}: {problem}",
        hint="log in as a user who may write that file (a udev rule can allow it), or leave --governor out: "
        "edgekit never uses sudo",
    )


def _unfinished(device: str, completed: Completed, bye: str) -> DeviceError:
    if completed.timed_out:
        return LinkLostError(
            f"{device} has not answered for {SILENCE_S:.0f} s", hint="check the device's power and network"
        )
    if bye == "heartbeat-lost":
        return LinkLostError(f"{device} stopped hearing us", hint="check the network between here and there")
    tail = completed.stderr.strip()
    return DeviceError(
        f"the supervisor on {device} ended before the run did (status {completed.returncode})"
        + (f":\n{tail}" if tail else ""),
        hint="run it again; if it ends so again, report it with the lines above",
    )
