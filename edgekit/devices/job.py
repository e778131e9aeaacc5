"""One job on one device: send the agent, run it, turn its lines into a result or a typed error."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgekit.core import plugins
from edgekit.devices.transports.process import Completed, Patience
from edgekit.errors import (
    BackendError,
    DataError,
    DeviceError,
    DeviceTimeoutError,
    EdgekitError,
    MissingExtraError,
    NotRunnableError,
    RuntimeCrashError,
    RuntimeMissingError,
    UsageError,
)

if TYPE_CHECKING:
    from edgekit.devices.transports.transport import Transport


@dataclass(frozen=True, kw_only=True)
class Far:
    """Whose answer it is. ``remote``: across a link, where not everything is as it is here."""

    device: str = "the device"
    remote: bool = False


@dataclass(kw_only=True)
class Transcript:
    """What the agent has said so far."""

    phase: str = "start"
    versions: Mapping[str, str] = field(default_factory=dict)
    ready: Mapping[str, Any] = field(default_factory=dict)
    result: Mapping[str, Any] | None = None
    error: Mapping[str, Any] | None = None
    expected: int = 1
    on_progress: Callable[[int], None] | None = None

    def line(self, text: str) -> None:
        """Take one line of the agent's stdout; raises :class:`DeviceError` if it is not the protocol's."""
        event = protocol_line(text, self.expected)
        self.expected += 1
        self._take(event["event"], event)

    def _take(self, kind: str, event: Mapping[str, Any]) -> None:
        if kind == "phase":
            self.phase = str(event["name"])
        elif kind == "versions":
            self.versions = event["versions"]
        elif kind == "ready":
            self.ready = event
        elif kind == "progress" and self.on_progress is not None:
            self.on_progress(int(event["done"]))
        elif kind == "result":
            self.result = event
        elif kind == "error":
            self.error = event


def protocol_line(text: str, expected: int) -> Mapping[str, Any]:
    """One event of the agent's, in sequence; raises :class:`DeviceError` if it is not."""
    try:
        event = json.loads(text)
        sequence, _ = event["seq"], event["event"]
    except (ValueError, TypeError, KeyError) as error:
        raise DeviceError(
            f"the agent sent a line that is not of its protocol: {text[:120]!r}",
            hint="check that nothing on the device writes to stdout at log-in (~/.bashrc and the like)",
        ) from error
    if sequence != expected:
        raise DeviceError(
            f"a message of the agent was lost: got number {sequence}, expected {expected}",
            hint="the connection is not reliable; run it again",
        )
    assert isinstance(event, dict)
    return event


def run_job(
    transport: Transport,
    backend: str,
    argv: Sequence[str],
    job: Mapping[str, Any],
    transcript: Transcript,
    timeout: float,
) -> Mapping[str, Any]:
    """Run ``job`` in a fresh process of the agent (``argv``), without the supervisor; its ``result`` event.

    Raises what :func:`outcome` raises.
    """
    line = json.dumps(job).encode() + b"\n"
    completed = transport.run(argv, stdin=line, on_line=transcript.line, patience=Patience(whole=timeout))
    far = Far(device=transport.name, remote=transport.remote)
    return outcome(backend, completed, transcript, timeout, far)


def outcome(
    backend: str, completed: Completed, transcript: Transcript, timeout: float, far: Far
) -> Mapping[str, Any]:
    """The ``result`` event of a job that has ended.

    Raises, as it ended, :class:`MissingExtraError`, :class:`NotRunnableError`, :class:`DataError`,
    :class:`UsageError`, :class:`BackendError` or :class:`RuntimeCrashError`; across a link
    :class:`RuntimeMissingError` and :class:`DeviceTimeoutError`, which are :class:`DeviceError` too.
    """
    if transcript.error is not None:
        raise _reported(backend, transcript.error, far)
    if completed.timed_out:
        raise _timed_out(backend, completed, transcript, timeout, far)
    if completed.returncode != 0 or transcript.result is None:
        raise _crashed(backend, completed, transcript)
    return transcript.result


def _reported(backend: str, error: Mapping[str, Any], far: Far) -> EdgekitError:
    name = plugins.info(backend).title
    kind, message = error.get("kind"), str(error.get("message", ""))
    if kind == "missing":
        return _missing(backend, message, far)
    if kind == "program":
        return RuntimeCrashError(
            f"on {far.device} {message}",
            hint="run it by hand there; a program for another version of the runtime may refuse the model",
        )
    if kind == "unusable":
        return NotRunnableError(
            f"{name} cannot run on {far.device}: {message}",
            hint="verify it on a device that has the hardware: edgekit verify ARTIFACT --device NAME",
        )
    if kind == "processors":
        return UsageError(
            f"{far.device} cannot run it on these processors: {message}",
            hint="name processors that it has (--cpus 0-3); edgekit devices check shows how many",
        )
    if kind == "disk":
        return DeviceError(
            f"{far.device} cannot write: {message}",
            hint="free some space there, or set TMPDIR for the user to a disk that has some",
        )
    if kind == "input":
        return DataError(f"{name}: {message}", hint="compare with the inputs in the artifact's manifest.json")
    if kind == "load":
        return BackendError(
            f"{name} cannot load the artifact: {message}",
            hint="rebuild it; if it still fails, report it with the artifact",
        )
    trace = str(error.get("traceback", ""))
    return BackendError(f"{name} failed: {message}", hint=f"the far side's traceback:\n{trace}".rstrip())


_FOREIGN = ("wrong ELF class", "invalid ELF header", "cannot open shared object file", "Exec format error")
"""What the dynamic linker says of another architecture's file, or of one whose libraries are not there."""


def _missing(backend: str, message: str, far: Far) -> EdgekitError:
    info = plugins.info(backend)
    name = info.title
    if not far.remote:
        return MissingExtraError(f"{name} ({message}) on {far.device}", requirement=info.requirement)
    foreign = any(text in message for text in _FOREIGN)
    return RuntimeMissingError(
        f"{name} {'cannot be loaded' if foreign else 'is not installed'} on {far.device}: {message}",
        hint=("what is installed there is for another architecture or system; " if foreign else "")
        + f"edgekit devices prepare {far.device} --backend {backend} puts the right wheels there",
    )


def _timed_out(
    backend: str, completed: Completed, transcript: Transcript, timeout: float, far: Far
) -> RuntimeCrashError:
    name = plugins.info(backend).title
    kind = DeviceTimeoutError if far.remote else RuntimeCrashError
    return kind(
        f"{name} gave no answer within {timeout:g} s (during {transcript.phase}) and was ended"
        + _last_words(completed),
        hint="give it more time (edgekit bench --timeout), fewer samples, or look whether the machine is busy",
    )


def _crashed(backend: str, completed: Completed, transcript: Transcript) -> RuntimeCrashError:
    name = plugins.info(backend).title
    if completed.returncode < 0:
        what = f"{name} ended its process with {completed.signal_name} during {transcript.phase}"
        hint = "try another version of the runtime (edgekit doctor lists known-bad combinations)"
        if completed.signal_name == "SIGKILL":
            hint = "the kernel may have run out of memory: try a smaller batch, and see dmesg"
    else:
        what = f"{name} ended its process with status {completed.returncode} during {transcript.phase}"
        hint = "see the last lines of its output above"
    return RuntimeCrashError(what + _last_words(completed), hint=hint)


def _last_words(completed: Completed) -> str:
    tail = completed.stderr.strip()
    return f"; its last output:\n{tail}" if tail else ""
