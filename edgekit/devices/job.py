"""One job on one device: run the agent in a fresh process, turn its lines into a result or a typed error."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Generic, TypeVar

from edgekit.core import plugins
from edgekit.devices import protocol, wire
from edgekit.devices.transports.process import Completed, Patience
from edgekit.devices.wire import Failure, FailureKind
from edgekit.errors import (
    BackendError,
    DataError,
    DeviceError,
    DeviceTimeoutError,
    EdgekitError,
    EngineMismatchError,
    MissingExtraError,
    NotRunnableError,
    RuntimeCrashError,
    RuntimeMissingError,
    UsageError,
)

if TYPE_CHECKING:
    from edgekit.devices.transports.transport import Transport

R = TypeVar("R", bound=wire.Message)


@dataclass(frozen=True, kw_only=True)
class Task(Generic[R]):
    """One fresh process. ``id`` is unique in its plan, ``agent`` the archive's path on the device, ``result`` the
    message that the job ends with, ``timeout`` in seconds; ``quick``, too: how long it may say nothing."""

    id: str
    backend: str
    agent: PurePosixPath
    job: wire.Job
    result: type[R]
    timeout: float
    quick: float = float("inf")


@dataclass(frozen=True, kw_only=True)
class TaskResult(Generic[R]):
    """What a job gave, and the versions of what ran it."""

    result: R
    versions: Mapping[str, str] = field(default_factory=dict)


class Transcript(Generic[R]):
    """What one job has said so far."""

    def __init__(
        self,
        device: str,
        task: Task[R],
        on_progress: Callable[[int], None] | None = None,
        on_phase: Callable[[str], None] | None = None,
    ) -> None:
        self.phase = "start"
        self.versions: Mapping[str, str] = {}
        self.result: R | None = None
        self.failure: Failure | None = None
        self._kind, self._on_progress, self._on_phase = task.result, on_progress, on_phase
        # The agent reports its progress twice a second; ten times that is no agent of ours.
        most = 1000 + int(20 * task.timeout)
        self._events = protocol.Events(device, {**wire.JOB_EVENTS, "result": task.result}, most)

    def line(self, text: str) -> None:
        """Take one line of the agent's stdout; raises :class:`DeviceError` if it is not the protocol's."""
        event = self._events.read(text)
        if isinstance(event, self._kind):
            self.result = event
        elif isinstance(event, wire.Phase):
            self.phase = event.name
            if self._on_phase is not None:
                self._on_phase(event.name)
        elif isinstance(event, wire.Versions):
            self.versions = event.versions
        elif isinstance(event, Failure):
            self.failure = event
        elif isinstance(event, wire.Progress) and self._on_progress is not None:
            self._on_progress(event.done)


def run_job(
    transport: Transport,
    task: Task[R],
    on_progress: Callable[[int], None] | None = None,
    on_phase: Callable[[str], None] | None = None,
) -> TaskResult[R]:
    """Run a task without the supervisor. Raises what :func:`outcome` raises."""
    transcript = Transcript(transport.name, task, on_progress, on_phase)
    completed = transport.run(
        [transport.python, str(task.agent)],
        stdin=protocol.encode(task.job),
        on_line=transcript.line,
        patience=Patience(whole=task.timeout, quick=task.quick),
    )
    return outcome(transport, task, transcript, completed)


def report_device(transport: Transport, agent: PurePosixPath) -> wire.DeviceReport:
    """What the device is, and how it is now. Raises :class:`DeviceError` when it does not answer."""
    events = protocol.Events(transport.name, {"result": wire.DeviceReport}, 1)
    reports: list[wire.Message] = []
    completed = transport.run(
        [transport.python, str(agent), "state"],
        stdin=b"",
        on_line=lambda line: reports.append(events.read(line)),
        patience=Patience(whole=30),
    )
    for report in reports:
        if isinstance(report, wire.DeviceReport):
            return report
    raise DeviceError(
        f"{transport.name} does not say what it is (status {completed.returncode}){_last_words(completed)}",
        hint="run it again; if it ends so again, report it with the lines above",
    )


def outcome(
    transport: Transport, task: Task[R], transcript: Transcript[R], completed: Completed
) -> TaskResult[R]:
    """The result of a job that has ended.

    Raises, as it ended, :class:`MissingExtraError`, :class:`NotRunnableError`, :class:`DataError`,
    :class:`UsageError`, :class:`BackendError` or :class:`RuntimeCrashError`; across a link
    :class:`RuntimeMissingError` and :class:`DeviceTimeoutError`, which are :class:`DeviceError` too.
    """
    if transcript.failure is not None:
        raise _reported(transport, task.backend, transcript.failure)
    if completed.timed_out:
        raise _timed_out(transport, task, transcript.phase, completed)
    if completed.returncode != 0 or transcript.result is None:
        raise _crashed(task.backend, transcript.phase, completed)
    return TaskResult(result=transcript.result, versions=transcript.versions)


def _reported(transport: Transport, backend: str, failure: Failure) -> EdgekitError:
    device, message, title = transport.name, failure.message, plugins.info(backend).title
    match failure.kind:
        case FailureKind.MISSING | FailureKind.UNLOADABLE:
            return _missing(transport, backend, failure)
        case FailureKind.PROGRAM:
            return RuntimeCrashError(
                f"on {device} {message}",
                hint="run it by hand there; a program for another version of the runtime may refuse the model",
            )
        case FailureKind.UNUSABLE:
            return NotRunnableError(
                f"{title} cannot run on {device}: {message}",
                hint="verify it on a device that has the hardware: edgekit verify ARTIFACT --device NAME",
            )
        case FailureKind.PROCESSORS:
            return UsageError(
                f"{device} cannot run it on these processors: {message}",
                hint="name processors that it has (--cpus 0-3); edgekit devices check shows how many",
            )
        case FailureKind.DISK:
            return DeviceError(
                f"{device} cannot write: {message}",
                hint="free some space there, or set TMPDIR for the user to a disk that has some",
            )
        case FailureKind.INPUT:
            return DataError(
                f"{title}: {message}", hint="compare with the inputs in the artifact's manifest.json"
            )
        case FailureKind.ENGINE:
            return EngineMismatchError(f"{device} refuses the engine before it is loaded: {message}")
        case FailureKind.LOAD:
            return BackendError(
                f"{title} cannot load the artifact: {message}",
                hint="rebuild it; if it still fails, report it with the artifact",
            )
    trace = failure.traceback
    return BackendError(f"{title} failed: {message}", hint=f"the traceback there:\n{trace}".rstrip())


def _missing(transport: Transport, backend: str, failure: Failure) -> EdgekitError:
    info = plugins.info(backend)
    if not transport.remote:
        return MissingExtraError(
            f"{info.title} ({failure.message}) on {transport.name}", requirement=info.requirement
        )
    foreign = failure.kind is FailureKind.UNLOADABLE
    return RuntimeMissingError(
        f"{info.title} {'cannot be loaded' if foreign else 'is not installed'} on {transport.name}: "
        f"{failure.message}",
        hint=("what is installed there may be for another architecture or system; " if foreign else "")
        + f"edgekit devices prepare {transport.name} --backend {backend} puts the right wheels there",
    )


def _timed_out(transport: Transport, task: Task[R], phase: str, completed: Completed) -> RuntimeCrashError:
    kind = DeviceTimeoutError if transport.remote else RuntimeCrashError
    title, waited = plugins.info(task.backend).title, min(task.timeout, task.quick)
    return kind(
        f"{title} gave no answer within {waited:g} s (during {phase}) and was ended" + _last_words(completed),
        hint="give it more time (--timeout SECONDS), fewer samples, or look whether the machine is busy",
    )


def _crashed(backend: str, phase: str, completed: Completed) -> RuntimeCrashError:
    title = plugins.info(backend).title
    if completed.returncode < 0:
        what = f"{title} ended its process with {completed.signal_name} during {phase}"
        hint = "try another version of the runtime (edgekit doctor lists known-bad combinations)"
        if completed.signal_name == "SIGKILL":
            hint = "the kernel may have run out of memory: try a smaller batch, and see dmesg"
    else:
        what = f"{title} ended its process with status {completed.returncode} during {phase}"
        hint = "see the last lines of its output above"
    return RuntimeCrashError(what + _last_words(completed), hint=hint)


def _last_words(completed: Completed) -> str:
    tail = completed.stderr.strip()
    return f"; its last output:\n{tail}" if tail else ""
