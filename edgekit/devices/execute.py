"""Run an artifact on its real runtime, in a fresh process on a device, and keep what came out."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from edgekit.core import contained
from edgekit.core.files import temporary
from edgekit.devices import engines, wire
from edgekit.devices.arrays import ArrayFile, write_arrays
from edgekit.devices.catalogue import LOCAL as LOCAL
from edgekit.devices.job import Task, TaskResult, run_job
from edgekit.devices.plan import Watch, mended, run_plan
from edgekit.devices.replicates import impossible
from edgekit.devices.transports.connect import connect, send_agent, send_model
from edgekit.errors import DeviceError
from edgekit.types import Device, Json

if TYPE_CHECKING:
    from edgekit.devices.runnable import Runnable
    from edgekit.devices.transports.transport import Transport
    from edgekit.types import Array

SAMPLE_BYTES = 1 << 30
"""More than the outputs of one sample have whose sizes only the run tells: a device that would send more is not let."""

_HEADER_BYTES = 16_384
"""What a record of ``.npy`` has before its numbers, at most."""


@dataclass(frozen=True, kw_only=True)
class Ports:
    """What a loaded model takes and gives, as its runtime tells it, by the names that were asked for."""

    inputs: Mapping[str, wire.Port]
    outputs: Mapping[str, wire.Port]


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a run gave. ``outputs``, in the source's layout, are read from a file that lives as long as this object.

    ``placement`` is the runner's raw report; ``seconds`` has import, load and run. ``ports`` are
    what the runtime takes and gives.
    """

    outputs: ArrayFile
    versions: Mapping[str, str]
    placement: Mapping[str, Json] | None
    seconds: Mapping[str, float]
    ports: Ports
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
    states: Mapping[str, str] | None = None,
    timeout: float = 600.0,
    on_progress: Callable[[int], None] | None = None,
) -> RunResult:
    """Run every sample of ``inputs`` through ``runnable`` on ``device``; memory stays flat.

    Args:
        inputs: Samples by the source's names, in the source's layout; so are the outputs.
        placement: Ask the runtime what it executes where.
        states: Inputs that take an output of the sample before in place of the sample's own, but for the first.
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
        outputs = wire.Stream(path=str(transport.root / "outputs"), names=runnable.outputs)
        fed = runnable.feeding(states or {})
        job = replace(job, action="run", outputs=outputs, placement=placement, fed=fed)
        agent = mended(transport, partial(send_agent, transport, runnable.backend, here))
        task = Task(
            id="run",
            backend=runnable.backend,
            agent=agent,
            job=job,
            result=wire.RunResult,
            timeout=timeout,
            quick=contained.quick_seconds(),
        )
        done = _run(transport, task, on_progress)
        names = _checked(device, runnable, samples, task.timeout, done.result)
        limit = samples.count * _sample_bytes(runnable)
        mended(transport, partial(transport.get, "outputs", here / "outputs", limit))
    samples.path.unlink()
    return RunResult(
        outputs=ArrayFile(
            path=here / "outputs",
            names=names,
            count=samples.count,
            channels_moved=runnable.channels_moved,
        ),
        versions=done.versions,
        placement=done.result.placement,
        seconds=done.result.seconds,
        ports=Ports(inputs=done.result.inputs, outputs=done.result.outputs),
        folder=folder,
    )


def _sample_bytes(runnable: Runnable) -> int:
    """The most that one sample's outputs can have: their declared sizes, in the widest type there is."""
    sizes = [runnable.sizes.get(name) for name in runnable.outputs]
    if not sizes or None in sizes:
        return SAMPLE_BYTES
    return sum(_HEADER_BYTES + 16 * size for size in sizes if size is not None)


def _checked(
    device: Device, runnable: Runnable, samples: ArrayFile, timeout: float, result: wire.RunResult
) -> tuple[str, ...]:
    """The names of the outputs, where every sample was run and they are what was asked for."""
    if max(result.seconds.values(), default=0.0) > 1.01 * timeout + 1:
        raise impossible(
            device.name, f"{max(result.seconds.values()):.0f} s in a process given {timeout:.0f}"
        )
    if result.done != samples.count or (runnable.outputs and result.names != runnable.outputs):
        raise DeviceError(
            f"{device.name} ran {result.done} of {samples.count} samples and has the outputs "
            f"{', '.join(result.names)}; asked for were {', '.join(runnable.outputs) or 'all'}",
            hint="run it again; if it stays so, report it",
        )
    return result.names


def model_job(
    transport: Transport, runnable: Runnable, samples: ArrayFile, *, folder: str = "model"
) -> wire.Job:
    """Put the model and its samples where the agent can read them; a job that runs them."""
    runnable = engines.ready(transport, runnable)
    model = send_model(transport, runnable, folder=folder)
    inputs = transport.put(samples.path, f"{folder}-inputs")
    return wire.Job(
        action="run",
        scratch=str(transport.root),
        model=str(model),
        options=runnable.options,
        inputs=wire.Stream(path=str(inputs), names=samples.names, count=samples.count),
        quantize=runnable.quantize,
    )


def _run(
    transport: Transport, task: Task[wire.RunResult], on_progress: Callable[[int], None] | None
) -> TaskResult[wire.RunResult]:
    """Directly here, where a process ends with us anyway; under the supervisor across a link."""
    if not transport.remote:
        return run_job(transport, task, on_progress)
    watch = Watch[wire.RunResult](exclusive=False, state_s=0, on_progress=on_progress)
    return run_plan(transport, [task], watch)[task.id]
