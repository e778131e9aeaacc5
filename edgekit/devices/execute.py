"""Run an artifact on its real runtime, in a fresh process on a device, and keep what came out."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.core.files import temporary
from edgekit.devices.arrays import ArrayFile, write_arrays
from edgekit.devices.catalogue import LOCAL as LOCAL
from edgekit.devices.job import Transcript, run_job
from edgekit.devices.plan import Task, TaskResult, Watch, mended, run_plan
from edgekit.devices.transports.connect import connect, send_agent, send_model
from edgekit.types import Device, Option

if TYPE_CHECKING:
    from edgekit.devices.runnable import Runnable
    from edgekit.devices.transports.transport import Transport
    from edgekit.types import Array


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a run gave. ``outputs``, in the source's layout, are read from a file that lives as long as this object.

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


def run_artifact(
    runnable: Runnable,
    inputs: Iterable[Mapping[str, Array]],
    *,
    device: Device = LOCAL,
    placement: bool = False,
    timeout: float = 600.0,
    on_progress: Callable[[int], None] | None = None,
) -> RunResult:
    """Run every sample of ``inputs`` through ``runnable`` on ``device``; memory stays flat.

    Args:
        inputs: Samples by the source's names, in the source's layout; so are the outputs.
        placement: Ask the runtime what it executes where.
        timeout: Seconds for the whole run.
        on_progress: Called with the number of samples done.

    Raises:
        DataError: the inputs do not fit the model.
        MissingExtraError: the runtime is not installed there.
        NotRunnableError: the hardware is missing.
        BackendError: the runtime refused.
        RuntimeCrashError: a signal, an abort, or no answer in time.
        DeviceError: the device failed. A link that breaks is mended first.
    """
    folder = temporary("run")
    here = Path(folder.name)
    samples = write_arrays(here / "inputs", (runnable.bind(sample) for sample in inputs))
    with connect(device) as transport:
        job = mended(transport, partial(model_job, transport, runnable, samples))
        job |= {
            "action": "run",
            "outputs": {"path": str(transport.root / "outputs"), "names": runnable.outputs},
            "placement": placement,
        }
        agent = mended(transport, partial(send_agent, transport, runnable.backend, here))
        task = Task(id="run", backend=runnable.backend, agent=agent, job=job, timeout=timeout)
        done = _run(transport, task, on_progress)
        mended(transport, partial(transport.get, "outputs", here / "outputs"))
    samples.path.unlink()
    result, transcript = done.result, done.transcript
    outputs = ArrayFile(
        path=here / "outputs",
        names=tuple(result["names"]),
        count=int(result["done"]),
        channels_moved=runnable.channels_moved,
    )
    return RunResult(
        outputs=outputs,
        versions=transcript.versions,
        inputs=tuple(transcript.ready["inputs"]),
        output_specs=tuple(transcript.ready["outputs"]),
        options=transcript.ready["options"],
        placement=result["placement"],
        seconds=result["seconds"],
        folder=folder,
    )


def model_job(
    transport: Transport, runnable: Runnable, samples: ArrayFile, *, folder: str = "model"
) -> dict[str, Any]:
    """Put the model and its samples where the agent can read them; what a job says of both."""
    return {
        "scratch": str(transport.root),
        "model": str(send_model(transport, runnable, folder=folder)),
        "options": dict(runnable.options),
        "inputs": {
            "path": str(transport.put(samples.path, f"{folder}-inputs")),
            "names": samples.names,
            "count": samples.count,
        },
        "quantize": runnable.quantize,
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
