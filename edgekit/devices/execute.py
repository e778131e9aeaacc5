"""Run an artifact on its real runtime, in a fresh process on a device, and keep what came out."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.devices.arrays import ArrayFile, write_arrays
from edgekit.devices.catalogue import LOCAL as LOCAL
from edgekit.devices.job import Transcript, run_job
from edgekit.devices.pack import pack
from edgekit.devices.plan import Task, TaskResult, Watch, mended, run_plan
from edgekit.devices.transports.connect import connect, send_agent, send_model
from edgekit.types import Device, Option

if TYPE_CHECKING:
    from edgekit.devices.transports.transport import Transport
    from edgekit.types import Array


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a run gave. ``outputs`` reads from a temporary file that lives as long as this object.

    ``inputs`` and ``output_specs`` are the runtime's own view (name, aliases, dtype, shape, scale,
    zero_point); ``placement`` is the runner's raw report; ``seconds`` has import, load and run.
    """

    outputs: ArrayFile
    versions: Mapping[str, str]
    inputs: tuple[Mapping[str, Any], ...]
    output_specs: tuple[Mapping[str, Any], ...]
    options: Mapping[str, Option]
    placement: Mapping[str, Any] | None
    seconds: Mapping[str, float]
    folder: tempfile.TemporaryDirectory[str] = field(repr=False)

    def close(self) -> None:
        """Remove the outputs' file."""
        self.folder.cleanup()

    def __enter__(self) -> RunResult:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """How to run. ``outputs`` names what to keep, in order (default: all, the runtime's names).

    ``quantize``: floats go into integer inputs, and come out of integer outputs, by their scale and
    zero-point. ``files``: what the model needs beside it (``.bin`` of an ``.xml``, external data).
    ``timeout`` in seconds, for the whole job.
    """

    outputs: tuple[str, ...] = ()
    quantize: bool = False
    placement: bool = False
    files: tuple[Path, ...] = ()
    timeout: float = 600.0
    on_progress: Callable[[int], None] | None = None


def run_artifact(
    backend: str,
    model: Path,
    *,
    inputs: Iterable[Mapping[str, Array]],
    options: Mapping[str, Option] | None = None,
    device: Device = LOCAL,
    settings: RunSettings | None = None,
) -> RunResult:
    """Run every sample of ``inputs`` through ``model`` on ``device``; memory stays flat.

    Raises :class:`~edgekit.errors.DataError` (inputs that do not fit the model),
    :class:`~edgekit.errors.MissingExtraError` (runtime not installed there),
    :class:`~edgekit.errors.NotRunnableError` (hardware missing), :class:`~edgekit.errors.BackendError` (the
    runtime refused), :class:`~edgekit.errors.RuntimeCrashError` (signal, abort, time-out) and
    :class:`~edgekit.errors.DeviceError`. A link that breaks is mended.
    """
    settings = settings or RunSettings()
    folder = tempfile.TemporaryDirectory(prefix="edgekit-run-")
    here = Path(folder.name)
    samples = write_arrays(here / "inputs", inputs)
    with connect(device) as transport:
        job = mended(transport, partial(_job, transport, model, samples, settings))
        job |= {"options": dict(options or {})}
        agent = mended(transport, partial(send_agent, transport, pack(backend), here))
        task = Task(id="run", backend=backend, agent=agent, job=job, timeout=settings.timeout)
        done = _run(transport, task, settings.on_progress)
        mended(transport, partial(transport.get, "outputs", here / "outputs"))
    samples.path.unlink()
    result, transcript = done.result, done.transcript
    return RunResult(
        outputs=ArrayFile(path=here / "outputs", names=tuple(result["names"]), count=int(result["done"])),
        versions=transcript.versions,
        inputs=tuple(transcript.ready["inputs"]),
        output_specs=tuple(transcript.ready["outputs"]),
        options=transcript.ready["options"],
        placement=result["placement"],
        seconds=result["seconds"],
        folder=folder,
    )


def _job(transport: Transport, model: Path, samples: ArrayFile, settings: RunSettings) -> dict[str, Any]:
    """What the agent is told, once the model and the samples are where it can read them."""
    return {
        "action": "run",
        "scratch": str(transport.root),
        "model": str(send_model(transport, model, settings.files)),
        "inputs": {
            "path": str(transport.put(samples.path, "inputs")),
            "names": samples.names,
            "count": samples.count,
        },
        "outputs": {"path": str(transport.root / "outputs"), "names": settings.outputs},
        "quantize": settings.quantize,
        "placement": settings.placement,
    }


def _run(transport: Transport, task: Task, on_progress: Callable[[int], None] | None) -> TaskResult:
    """Directly here, where a process ends with us anyway; under the supervisor across a link."""
    if transport.remote:
        watch = Watch(exclusive=False, state_s=0, on_progress=on_progress)
        return run_plan(transport, [task], watch)[task.id]
    transcript = Transcript(on_progress=on_progress)
    argv = [transport.python, str(task.agent)]
    result = run_job(transport, task.backend, argv, task.job, transcript, task.timeout)
    return TaskResult(result=result, transcript=transcript)
