"""One job on one device: send the agent, run it, turn its lines into a result or a typed error."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgekit.devices.process import Completed, Patience
from edgekit.errors import (
    BackendError,
    DataError,
    DeviceError,
    EdgekitError,
    MissingExtraError,
    NotRunnableError,
    RuntimeCrashError,
)

if TYPE_CHECKING:
    from edgekit.devices.transport import Transport

_RUNTIMES = {
    "onnxruntime": ("ONNX Runtime", "onnxruntime"),
    "openvino": ("OpenVINO", "openvino"),
    "tflite": ("LiteRT", "tflite"),
    "tensorrt": ("TensorRT", "tensorrt"),
    "tensorrt_rtx": ("TensorRT-RTX", "tensorrt-rtx"),
}


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
    return outcome(backend, completed, transcript, timeout, device=transport.name)


def outcome(
    backend: str, completed: Completed, transcript: Transcript, timeout: float, *, device: str = "the device"
) -> Mapping[str, Any]:
    """The ``result`` event of a job that has ended.

    Raises :class:`MissingExtraError`, :class:`NotRunnableError`, :class:`DataError`,
    :class:`BackendError` or :class:`RuntimeCrashError`, as it ended.
    """
    if transcript.error is not None:
        raise _reported(backend, transcript.error, device)
    if completed.returncode != 0 or completed.timed_out or transcript.result is None:
        raise _crashed(backend, completed, transcript, timeout)
    return transcript.result


def _reported(backend: str, error: Mapping[str, Any], device: str) -> EdgekitError:
    name, extra = _RUNTIMES.get(backend, (backend, backend))
    kind, message = error.get("kind"), str(error.get("message", ""))
    if kind == "missing":
        missing = MissingExtraError(f"{name} ({message}) on {device}", extra)
        if device not in ("local", "the device"):
            missing.hint = f"edgekit devices prepare {device} --backend {backend}"
        return missing
    if kind == "unusable":
        return NotRunnableError(
            f"{name} cannot run on {device}: {message}",
            hint="verify it on a device that has the hardware: edgekit verify ARTIFACT --device NAME",
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


def _crashed(backend: str, completed: Completed, transcript: Transcript, timeout: float) -> RuntimeCrashError:
    name, _ = _RUNTIMES.get(backend, (backend, backend))
    where = f"during {transcript.phase}"
    if completed.timed_out:
        what = f"{name} gave no answer within {timeout:g} s ({where}) and was ended"
        hint = "give it more time (a time-out option), fewer samples, or look whether the machine is busy"
    elif completed.returncode < 0:
        what = f"{name} ended its process with {completed.signal_name} {where}"
        hint = "try another version of the runtime (edgekit doctor lists known-bad combinations)"
        if completed.signal_name == "SIGKILL":
            hint = "the kernel may have run out of memory: try a smaller batch, and see dmesg"
    else:
        what = f"{name} ended its process with status {completed.returncode} {where}"
        hint = "see the last lines of its output above"
    tail = completed.stderr.strip()
    return RuntimeCrashError(what + (f"; its last output:\n{tail}" if tail else ""), hint=hint)
