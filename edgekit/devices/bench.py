"""Latency and memory of artifacts on a device, so that the numbers hold when somebody measures again.

What makes them hold: every replicate is a fresh process (what differs from process to process is most of
the variance), variants are interleaved, inputs are filled outside the timer, load, first inference and
steady state are kept apart, raw samples are kept, and what else the machine did is recorded and judged.
The same engine serves the agent's processes and the vendors' own tools.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Generic

import msgspec

from edgekit.backends.base import Timing
from edgekit.core import files
from edgekit.core.files import temporary
from edgekit.devices import replicates, vendor, wire
from edgekit.devices.arrays import write_arrays
from edgekit.devices.execute import LOCAL, model_job
from edgekit.devices.health import hottest, is_emulated
from edgekit.devices.job import R, Task, TaskResult
from edgekit.devices.measurement import Comparison as Comparison
from edgekit.devices.measurement import Run
from edgekit.devices.plan import Watch, mended
from edgekit.devices.replicates import Replicate
from edgekit.devices.session import AgentSession, Session, ShellSession
from edgekit.devices.statistics import interleave
from edgekit.devices.transports.connect import connect, send_agent, without_python
from edgekit.errors import EdgekitError, UsageError
from edgekit.types import Device, Measurement

if TYPE_CHECKING:
    from edgekit.devices.runnable import Runnable
    from edgekit.devices.transports.transport import Transport

REDOS = 2
"""How often a run on a device that throttled is done again."""

COOL_DOWN_S = 300.0


@dataclass(frozen=True, kw_only=True)
class BenchSettings(Timing):
    """How long and how often; the fields of :class:`~edgekit.backends.base.Timing` are one process's.

    Attributes:
        processes: fresh processes a variant.
        timeout: one process's, in seconds.
        on_progress: called with the processes done and all of them.
        cancel: ends the run from another thread.
        wait_s: how long to wait for a device that another benchmark holds (0: say so at once).
        governor: set on the device while the run lasts, and put back.
        on_partial: called with what was measured when a run is cut short, before its error goes on.
        keep: each process's figures are appended to this file, one JSON line each, as they come in: not even the
            end of this process loses them.
    """

    processes: int = 10
    timeout: float = 600.0
    on_progress: Callable[[int, int], None] | None = None
    cancel: threading.Event | None = None
    wait_s: float = 0.0
    governor: str = ""
    on_partial: Callable[[Measurement | Comparison], None] | None = None
    keep: Path | None = None

    def __post_init__(self) -> None:
        if self.processes < 1 or self.iterations < 1 or self.max_iterations < self.iterations:
            raise UsageError(
                "a benchmark needs at least one process and one iteration",
                hint="raise --processes or --iterations",
            )


def bench_artifact(
    runnable: Runnable, *, device: Device = LOCAL, settings: BenchSettings | None = None
) -> Measurement:
    """Measure one runnable, on its ``inputs``, in fresh processes.

    Raises what :func:`~edgekit.devices.execute.run_artifact` does, and
    :class:`~edgekit.errors.DeviceBusyError` when another benchmark holds the device.
    """
    settings = settings or BenchSettings()
    outcome = _run(device, [runnable], "A" * settings.processes, settings)
    assert isinstance(outcome, Measurement)
    return outcome


def compare_artifacts(
    first: Runnable, second: Runnable, *, device: Device = LOCAL, settings: BenchSettings | None = None
) -> Comparison:
    """Measure two interleaved and say whether the second is faster, slower or no different."""
    settings = settings or BenchSettings()
    outcome = _run(device, [first, second], interleave(max(2, settings.processes)), settings)
    assert isinstance(outcome, Comparison)
    return outcome


def bench_devices(
    runnables: Sequence[Runnable], devices: Sequence[Device], *, settings: BenchSettings | None = None
) -> dict[str, Measurement | Comparison | EdgekitError]:
    """Measure one runnable, or compare two, on several devices side by side; by device name.

    A device that fails does so alone: its error is its result. Ctrl-C ends the runs on all of them.
    ``settings.on_progress`` is called from several threads, once for the processes of all devices together.
    """
    settings = settings or BenchSettings()
    if not 1 <= len(runnables) <= 2:
        raise UsageError(
            "one or two artifacts can be measured side by side", hint="name one, or two to compare"
        )
    cancel, report = threading.Event(), _Together(settings.on_progress, len(devices))
    shared = replace(settings, cancel=cancel, on_progress=None)

    def one(device: Device) -> Measurement | Comparison | EdgekitError:
        own = replace(shared, on_progress=lambda done, whole: report(device.name, done, whole))
        try:
            if len(runnables) == 1:
                return bench_artifact(runnables[0], device=device, settings=own)
            return compare_artifacts(runnables[0], runnables[1], device=device, settings=own)
        except EdgekitError as error:
            return error

    with ThreadPoolExecutor(max_workers=max(1, len(devices))) as pool:
        futures = {device.name: pool.submit(one, device) for device in devices}
        try:
            return {name: future.result() for name, future in futures.items()}
        finally:  # the pool waits for its threads: after Ctrl-C they must not go on
            cancel.set()


class _Together:
    """One progress callback for many devices."""

    def __init__(self, callback: Callable[[int, int], None] | None, devices: int) -> None:
        self._callback, self._devices = callback, devices
        self._done: dict[str, int] = {}
        self._lock = threading.Lock()

    def __call__(self, device: str, done: int, whole: int) -> None:
        with self._lock:
            self._done[device] = done
            if self._callback is not None:
                self._callback(sum(self._done.values()), whole * self._devices)


# --- the engine ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Timed(Generic[R]):
    """A runnable that lies on the device: the task that times it once, and how the result is read."""

    task: Task[R]
    read: Callable[[TaskResult[R]], Replicate]


def _run(
    device: Device, runnables: Sequence[Runnable], order: str, settings: BenchSettings
) -> Measurement | Comparison:
    """Run fresh processes in ``order`` (its letters stand for the runnables), again if the device throttled."""
    with connect(device) as transport, temporary("bench") as folder:
        setup = _Setup(transport=transport, device=device, settings=settings, folder=Path(folder))
        letters = dict(zip("AB", runnables, strict=False))
        if without_python(device):
            shell = ShellSession(transport=transport)
            return setup.run(shell, {x: setup.by_tool(x, r, shell) for x, r in letters.items()}, order)
        agent = AgentSession(transport=transport, agent=setup.agent(runnables[0].backend))
        if vendor.applies(device):
            return setup.run(agent, {x: setup.by_tool(x, r, agent) for x, r in letters.items()}, order)
        return setup.run(agent, {x: setup.by_agent(x, r) for x, r in letters.items()}, order)


@dataclass(frozen=True, kw_only=True)
class _Setup:
    """A device that is connected, what is asked of it, and a folder here for what is sent."""

    transport: Transport
    device: Device
    settings: BenchSettings
    folder: Path

    def agent(self, backend: str) -> PurePosixPath:
        """Send the agent with the runner of ``backend``."""
        return mended(self.transport, partial(send_agent, self.transport, backend, self.folder))

    def by_agent(self, letter: str, runnable: Runnable) -> _Timed[wire.BenchResult]:
        """Put the model and its inputs there, for the agent to time."""
        samples = write_arrays(self.folder / f"{letter}-inputs", [runnable.bind(runnable.inputs)])
        sent = mended(self.transport, partial(model_job, self.transport, runnable, samples, folder=letter))
        settings = self.settings
        threads = {"threads": settings.threads} if settings.threads else {}
        job = msgspec.structs.replace(
            sent,
            action="bench",
            options={**runnable.options, **threads},
            cpus=settings.cpus,
            bench=wire.BenchJob(
                seconds=settings.seconds,
                iterations=settings.iterations,
                max_iterations=settings.max_iterations,
                warmup_s=settings.warmup_s,
            ),
        )
        task = self._task(job, wire.BenchResult, runnable.backend, self.agent(runnable.backend))
        return _Timed(task=task, read=partial(replicates.replicate, self.device.name, task))

    def by_tool(
        self, letter: str, runnable: Runnable, session: Session[wire.ProgramResult]
    ) -> _Timed[wire.ProgramResult]:
        """Put the model and its vendor's tool there."""
        settings, facts = self.settings, session.report().facts
        job = vendor.job(self.transport, self.device, runnable, settings, facts, folder=letter)
        bare = isinstance(session, ShellSession)
        agent = PurePosixPath() if bare else self.agent(runnable.backend)
        threads = vendor.threads_of(runnable, settings, facts)
        return _Timed(
            task=self._task(job, wire.ProgramResult, runnable.backend, agent),
            read=partial(vendor.replicate, self.device.name, runnable.backend, threads),
        )

    def _task(self, job: wire.Job, result: type[R], backend: str, agent: PurePosixPath) -> Task[R]:
        return Task(
            id="", backend=backend, agent=agent, job=job, result=result, timeout=self.settings.timeout
        )

    def run(
        self, session: Session[R], timed: Mapping[str, _Timed[R]], order: str
    ) -> Measurement | Comparison:
        """Time what lies on the device."""
        bench = _Bench(device=self.device, session=session, timed=timed, order=order, settings=self.settings)
        with bench:
            run = bench.attempt(0)
            for number in range(1, REDOS + 1):
                if run.health.throttled:
                    run = bench.attempt(number)
        outcome = run.outcome()
        assert outcome is not None
        return outcome


@dataclass(kw_only=True)
class _Bench(Generic[R]):
    """A run on one device: what is timed, by letter, the order of the processes, and what came out so far.

    As a context it reports what was measured when an error ends the run.
    """

    device: Device
    session: Session[R]
    timed: Mapping[str, _Timed[R]]
    order: str
    settings: BenchSettings
    run: Run | None = None
    began_celsius: float | None = None

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None and self.run is not None and self.settings.on_partial is not None:
            outcome = replace(self.run, cut=_reason(error)).outcome()
            if outcome is not None:
                self.settings.on_partial(outcome)

    def attempt(self, number: int) -> Run:
        """One go through all processes. What they gave is in :attr:`run`, also when an error ends it."""
        before, hot = cool_down(self.session.report, self.device, at_most=self.began_celsius)
        if self.began_celsius is None:
            self.began_celsius = hottest(before.state)
        tasks = [replace(self.timed[x].task, id=f"{number}-{i}-{x}") for i, x in enumerate(self.order)]
        measured: dict[str, list[Replicate]] = {letter: [] for letter in self.timed}

        def on_result(name: str, result: TaskResult[R]) -> None:
            replicate = replicates.checked(self.device.name, self.timed[name[-1]].read(result))
            measured[name[-1]].append(replicate)
            self._keep(name, replicate)

        watch = Watch[R](
            on_done=self.settings.on_progress,
            on_result=on_result,
            journal=f"journal-{number}",
            cancel=self.settings.cancel,
            wait_s=self.settings.wait_s,
            governor=self.settings.governor,
        )
        try:
            self.session.run(tasks, watch)
        finally:
            run = Run(
                device=self.device.name,
                replicates=measured,
                facts=before.facts,
                states=[before.state, *watch.states],
                planned=self.order.count("A"),
                hot=hot,
                attempts=number + 1,
                resumes=watch.resumes,
            )
            if any(measured.values()):
                self.run = run
        return run

    def _keep(self, name: str, replicate: Replicate) -> None:
        if self.settings.keep is None:
            return
        entry = {
            "device": self.device.name,
            "task": name,
            "variant": name[-1],
            "result": msgspec.to_builtins(replicate),
        }
        with files.opened(self.settings.keep, append=True) as file:
            file.write(json.dumps(entry).encode() + b"\n")


def _reason(error: BaseException) -> str:
    text = str(error).partition("\n")[0]
    return text or ("interrupted" if isinstance(error, KeyboardInterrupt) else type(error).__name__)


def cool_down(
    report: Callable[[], wire.DeviceReport], device: Device, *, at_most: float | None = None
) -> tuple[wire.DeviceReport, str]:
    """Wait until the device is as cool as its row wants (``cool_down_celsius``), or else as it was when it first
    began (``at_most``: a run is done again), five minutes at most.

    Returns the last report, where the temperature is that which the run begins with, and what there is to say of it.
    """
    limit = device.options.get("cool_down_celsius", at_most)
    end = time.monotonic() + COOL_DOWN_S
    while True:
        before = report()
        heat = hottest(before.state)
        cool = limit is None or heat is None or heat <= float(limit)
        if cool or time.monotonic() > end:
            break
        time.sleep(2)
    facts = msgspec.structs.replace(before.facts, emulated=is_emulated(device, before.facts))
    note = "" if cool else f"it began at {heat:.0f} °C and would not cool to {float(limit or 0):.0f} °C"
    return msgspec.structs.replace(before, facts=facts), note


def processors(text: str) -> tuple[int, ...]:
    """Processor numbers from ``"0-3,6"``, as taskset(1) takes them."""
    numbers: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or (dash and int(last) < int(first)):
            raise UsageError(f"{text!r} names no processors", hint="write numbers and ranges: --cpus 0-3,6")
        numbers |= set(range(int(first), int(last or first) + 1))
    return tuple(sorted(numbers))
