"""Many jobs on one device under the supervisor: locked, watched, resumed after a broken link."""

from __future__ import annotations

import getpass
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar

from edgekit.devices import protocol, wire
from edgekit.devices.job import R, Task, TaskResult, Transcript, outcome
from edgekit.devices.transports.process import OUTPUT_BYTES, CancelledError, Completed, Patience
from edgekit.devices.wire import RefusalKind
from edgekit.errors import (
    DeviceBusyError,
    DeviceError,
    LinkLostError,
    RunCancelledError,
    UnreachableError,
    UsageError,
)

if TYPE_CHECKING:
    from edgekit.devices.transports.transport import Transport

HEARTBEAT_S = 10.0
"""After this long without a sign of the host the device ends the run."""
SILENCE_S = 15.0
"""After this long without a sign of the supervisor (it beats every 2 s) the link counts as lost."""
RESUMES = 3
MEND_S = 60.0
"""How long to try to reach a device again after the link broke."""

T = TypeVar("T")


@dataclass(kw_only=True)
class Watch(Generic[R]):
    """What the host makes of a run while it goes on. ``exclusive``: take the device's lock. ``mend_s``: how
    long to try to reach a device again after the link broke, in seconds. ``journal``: its name on the device;
    plans of their own need journals of their own. ``wait_s``: how long to wait for a device that is busy.
    ``governor``: the processors' frequency governor while it goes on. ``linger_s``: how long a task goes on there while
    the link is broken; else it ends with it. ``on_result`` is told each task once, ``on_phase`` what a task is at.
    ``results`` has what is done so far, also when an error ends the run."""

    exclusive: bool = True
    state_s: float = 1.0
    mend_s: float = MEND_S
    journal: str = "journal"
    cancel: threading.Event | None = None
    wait_s: float = 0.0
    governor: str = ""
    linger_s: float = 0.0
    on_phase: Callable[[str], None] | None = None
    on_done: Callable[[int, int], None] | None = None
    on_progress: Callable[[int], None] | None = None
    on_result: Callable[[str, TaskResult[R]], None] | None = None
    results: dict[str, TaskResult[R]] = field(default_factory=dict)
    states: list[wire.DeviceState] = field(default_factory=list)
    resumes: int = 0

    def add(self, task: str, result: TaskResult[R], whole: int) -> None:
        """A task of a plan of ``whole`` has ended; a journal may say so twice."""
        is_new = task not in self.results
        self.results[task] = result
        if self.on_result is not None and is_new:
            self.on_result(task, result)
        if self.on_done is not None:
            self.on_done(len(self.results), whole)


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


def run_plan(transport: Transport, tasks: Sequence[Task[R]], watch: Watch[R]) -> dict[str, TaskResult[R]]:
    """Run every task in order; the first that fails ends the plan with its error.

    A lost link is mended and the plan goes on from the journal on the device. Raises what
    :func:`~edgekit.devices.job.outcome` raises, :class:`DeviceBusyError` when another run holds the
    device, :class:`LinkLostError` when the link cannot be mended, and :class:`RunCancelledError`.
    """
    run = _Run(transport, tasks, watch)
    patient_until = time.monotonic() + watch.wait_s
    while True:
        try:
            run.attempt()
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


class _Run(Generic[R]):
    """One plan across its attempts."""

    def __init__(self, transport: Transport, tasks: Sequence[Task[R]], watch: Watch[R]) -> None:
        self._transport, self._watch = transport, watch
        self._tasks = {task.id: task for task in tasks}
        self._whole = sum(task.timeout + 30 for task in tasks)
        self._transcripts: dict[str, Transcript[R]] = {}
        self._events = self._new_events()
        self._bye = ""

    def attempt(self) -> None:
        """Send the plan and listen until the supervisor says goodbye."""
        self._events, self._bye = self._new_events(), ""
        transport, agent = self._transport, next(iter(self._tasks.values())).agent
        completed = transport.run(
            [transport.python, str(agent), "supervisor"],
            stdin=protocol.encode(self._plan()),
            on_line=self._line,
            patience=Patience(
                whole=self._whole,
                silence=SILENCE_S,
                beat=2.0,
                cancel=self._watch.cancel,
                most=OUTPUT_BYTES * (1 + len(self._tasks)),
            ),
        )
        lacking = self._tasks.keys() - self._watch.results.keys()
        if self._bye != "done" or lacking:
            raise _unfinished(transport.name, completed, self._bye)

    def _new_events(self) -> protocol.Events:
        # A beat every two seconds, a state every one, progress twice a second: three times that is no agent of ours.
        most = 1000 * (1 + len(self._tasks)) + int(10 * self._whole)
        return protocol.Events(self._transport.name, wire.PLAN_EVENTS, most)

    def _plan(self) -> wire.Plan:
        return wire.Plan(
            tasks=tuple(
                wire.PlannedTask(id=t.id, argv=("{python}", str(t.agent)), job=t.job, timeout=t.timeout)
                for t in self._tasks.values()
            ),
            journal=str(self._transport.root / self._watch.journal),
            heartbeat=HEARTBEAT_S,
            lock=_owner(self._lasting()) if self._watch.exclusive else None,
            state_s=self._watch.state_s,
            governor=self._watch.governor,
            linger=self._watch.linger_s,
        )

    def _lasting(self) -> str:
        """What tells a run that goes on without us from others of this process; empty for one that does not."""
        return str(self._transport.root / self._watch.journal) if self._watch.linger_s else ""

    def _line(self, text: str) -> None:
        event = self._events.read(text)
        match event:
            case wire.Busy():
                raise _busy(self._transport.name, event.holder)
            case wire.Refused():
                raise _refused(self._transport.name, self._watch.governor, event)
            case wire.Bye():
                self._bye = event.why
            case wire.StateEvent():
                self._watch.states.append(event.state)
            case wire.Started():
                task = self._task(event.id, text)
                self._transcripts[task.id] = Transcript(
                    self._transport.name, task, self._watch.on_progress, self._watch.on_phase
                )
            case wire.Line():
                self._transcript(event.id, text).line(event.line)
            case wire.Ended():
                self._ended(event, self._transcript(event.id, text))

    def _task(self, name: str, text: str) -> Task[R]:
        if name not in self._tasks:
            raise protocol.malformed(self._transport.name, text, "a task that the plan does not have")
        return self._tasks[name]

    def _transcript(self, name: str, text: str) -> Transcript[R]:
        if name not in self._transcripts:
            raise protocol.malformed(self._transport.name, text, "a task that is not at work")
        return self._transcripts[name]

    def _ended(self, event: wire.Ended, transcript: Transcript[R]) -> None:
        del self._transcripts[event.id]
        completed = Completed(returncode=event.returncode, stderr=event.stderr, timed_out=event.timed_out)
        result = outcome(self._transport, self._tasks[event.id], transcript, completed)
        self._watch.add(event.id, result, len(self._tasks))


def _owner(plan: str = "") -> wire.Owner:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user id without a name
        user = str(os.getuid())
    return wire.Owner(user=user, host=socket.gethostname(), pid=os.getpid(), since=time.time(), plan=plan)


def _busy(device: str, holder: wire.Owner) -> DeviceBusyError:
    ago = "" if holder.since is None else f" for {max(0, time.time() - holder.since):.0f} s"
    process = "?" if holder.pid is None else holder.pid
    return DeviceBusyError(
        f"{device} is busy: {holder.user} on {holder.host} (process {process}) has been benchmarking{ago}",
        hint="wait for it to finish, or choose another device",
    )


def _refused(device: str, governor: str, event: wire.Refused) -> DeviceError | UsageError:
    match event.kind:
        case RefusalKind.UNKNOWN:
            return UsageError(f"{device}: {event.problem}", hint="name one of them, or leave --governor out")
        case RefusalKind.UNSUPPORTED:
            return DeviceError(
                f"{device}: {event.problem}", hint="leave --governor out: nobody can set one there"
            )
    return DeviceError(
        f"{device} cannot be set to the governor {governor}: {event.problem}",
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
