"""Latency and memory of artifacts on a device, so that the numbers hold when somebody measures again.

What makes them hold: every replicate is a fresh process (what differs from process to process is most of
the variance), variants are interleaved, inputs are filled outside the timer, load, first inference and
steady state are kept apart, raw samples are kept, and what else the machine did is recorded and judged.
"""

from __future__ import annotations

import json
import statistics as stdlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from edgekit.core.files import temporary
from edgekit.devices import vendor_run
from edgekit.devices.arrays import write_arrays
from edgekit.devices.execute import LOCAL, model_job
from edgekit.devices.health import Health, assess, energy, hottest
from edgekit.devices.plan import Look, Task, TaskResult, Watch, look, mended, run_plan
from edgekit.devices.replicates import Replicate, judge, model_memory, peak_memory, replicate
from edgekit.devices.statistics import Difference, Summary, interleave, paired_difference, summarize
from edgekit.devices.transports.connect import connect, send_agent
from edgekit.errors import EdgekitError, UsageError
from edgekit.types import Device, Measurement

if TYPE_CHECKING:
    from edgekit.devices.runnable import Runnable
    from edgekit.devices.transports.transport import Transport


REDOS = 2
"""How often a run on a device that throttled is done again."""

COOL_DOWN_S = 300.0


@dataclass(frozen=True, kw_only=True)
class BenchSettings:
    """How long and how often. ``processes`` a variant; within each at least ``seconds`` and ``iterations``
    of steady state, at most ``max_iterations``, after at most ``warmup_s`` seconds of warm-up.
    ``timeout`` is one process's, in seconds; ``cancel`` ends the run from another thread;
    ``wait_s`` is how long to wait for a device that another benchmark holds (0: say so at once).

    ``threads`` (0: as the variant says) and ``cpus``, the processors to run on (none: all), are part of what is
    measured. ``governor`` is set on the device while the run lasts, and put back. ``on_partial`` is told what was
    measured when a run is cut short, before its error goes on; each process's figures are appended to ``keep``,
    one JSON line each, as they come in: not even the end of this process loses them."""

    processes: int = 10
    seconds: float = 0.5
    iterations: int = 10
    max_iterations: int = 20_000
    warmup_s: float = 2.0
    timeout: float = 600.0
    on_progress: Callable[[int, int], None] | None = None
    cancel: threading.Event | None = None
    wait_s: float = 0.0
    threads: int = 0
    cpus: tuple[int, ...] = ()
    governor: str = ""
    on_partial: Callable[[Measurement | Comparison], None] | None = None
    keep: Path | None = None

    def __post_init__(self) -> None:
        if self.processes < 1 or self.iterations < 1 or self.max_iterations < self.iterations:
            raise UsageError(
                "a benchmark needs at least one process and one iteration",
                hint="raise --processes or --iterations",
            )


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A against B, interleaved on one device."""

    first: Measurement
    second: Measurement
    difference: Difference


def bench_artifact(
    runnable: Runnable, *, device: Device = LOCAL, settings: BenchSettings | None = None
) -> Measurement:
    """Measure one variant in fresh processes.

    Raises what :func:`~edgekit.devices.execute.run_artifact` does, and
    :class:`~edgekit.errors.DeviceBusyError` when another benchmark holds the device.
    """
    settings = settings or BenchSettings()
    found = _run(device, [runnable], "A" * settings.processes, settings)
    assert isinstance(found, Measurement)
    return found


def compare_artifacts(
    first: Runnable, second: Runnable, *, device: Device = LOCAL, settings: BenchSettings | None = None
) -> Comparison:
    """Measure two variants interleaved and say whether the second is faster, slower or no different."""
    settings = settings or BenchSettings()
    found = _run(device, [first, second], interleave(max(2, settings.processes)), settings)
    assert isinstance(found, Comparison)
    return found


def bench_devices(
    runnables: Sequence[Runnable], devices: Sequence[Device], *, settings: BenchSettings | None = None
) -> dict[str, Measurement | Comparison | EdgekitError]:
    """Measure one variant, or compare two, on several devices side by side; by device name.

    A device that fails does so alone: its error is its result. Ctrl-C ends the runs on all of them.
    ``settings.on_progress`` is called from several threads, once for the processes of all devices together.
    """
    settings = settings or BenchSettings()
    if not 1 <= len(runnables) <= 2:
        raise UsageError(
            "one or two artifacts can be measured side by side", hint="name one, or two to compare"
        )
    cancel, told = threading.Event(), _Together(settings.on_progress, len(devices))
    chosen = replace(settings, cancel=cancel, on_progress=None)

    def one(device: Device) -> Measurement | Comparison | EdgekitError:
        own = replace(chosen, on_progress=lambda done, whole: told(device.name, done, whole))
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
        except BaseException:
            cancel.set()
            raise


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


@dataclass(frozen=True, kw_only=True)
class Run:
    """The replicates of each variant (by letter), and the device before and while they ran.

    ``attempts`` is more than one if the device throttled and the run was done again; ``resumes`` counts
    links that broke and were mended. ``cut``: why the run ended before its ``planned`` processes a variant were
    measured (empty: it did not).
    """

    replicates: Mapping[str, Sequence[Replicate]]
    facts: Mapping[str, Any]
    states: Sequence[Mapping[str, Any]]
    health: Health
    planned: int
    attempts: int = 1
    resumes: int = 0
    cut: str = ""


@dataclass(kw_only=True)
class _Bench:
    """A run on one device: its tasks by letter, the order of the processes, and what came out so far."""

    device: Device
    transport: Transport
    prepared: Mapping[str, Task]
    order: str
    settings: BenchSettings
    run: Run | None = None
    began_celsius: float | None = None

    def attempt(self, number: int) -> Run:
        """One go through all processes. What they gave is in :attr:`run`, also when an error ends it."""
        before, hot = cool_down(
            self.transport, self.prepared["A"].agent, self.device, at_most=self.began_celsius
        )
        if self.began_celsius is None:
            self.began_celsius = hottest(before.state)
        tasks = [replace(self.prepared[x], id=f"{number}-{i}-{x}") for i, x in enumerate(self.order)]
        watch = Watch(
            on_done=self.settings.on_progress,
            on_result=self._keep if self.settings.keep else None,
            journal=f"journal-{number}",
            cancel=self.settings.cancel,
            wait_s=self.settings.wait_s,
            governor=self.settings.governor,
        )
        try:
            run_plan(self.transport, tasks, watch)
        finally:
            if watch.results:
                self.run = self._gather(watch, before, hot, number)
        assert self.run is not None
        return self.run

    def _gather(self, watch: Watch, before: Look, hot: str, number: int) -> Run:
        replicates: dict[str, list[Replicate]] = {letter: [] for letter in sorted(set(self.order))}
        for name, done in watch.results.items():
            replicates[name[-1]].append(replicate(done))
        states = [before.state, *watch.states]
        steady = [r.steady for rows in replicates.values() for r in rows]
        health = assess(before.facts, states, steady)
        return Run(
            replicates=replicates,
            facts=before.facts,
            states=states,
            health=replace(health, noisy=(*health.noisy, hot)) if hot else health,
            planned=self.order.count("A"),
            attempts=number + 1,
            resumes=watch.resumes,
        )

    def _keep(self, name: str, done: TaskResult) -> None:
        assert self.settings.keep is not None
        entry = {"device": self.device.name, "task": name, "variant": name[-1], "result": dict(done.result)}
        with self.settings.keep.open("ab") as file:
            file.write(json.dumps(entry).encode() + b"\n")


def _reason(error: BaseException) -> str:
    text = str(error).partition("\n")[0]
    return text or ("interrupted" if isinstance(error, KeyboardInterrupt) else type(error).__name__)


def _run(
    device: Device, runnables: Sequence[Runnable], order: str, settings: BenchSettings
) -> Measurement | Comparison:
    """Run fresh processes in ``order`` (its letters stand for the runnables), again if the device throttled."""
    if vendor_run.applies(device):
        return _by_program(device, runnables, order, settings)
    with connect(device) as transport, temporary("bench") as folder:
        prepared = {
            letter: mended(transport, partial(_send, transport, runnable, settings, Path(folder) / letter))
            for letter, runnable in zip("AB", runnables, strict=False)
        }
        bench = _Bench(device=device, transport=transport, prepared=prepared, order=order, settings=settings)
        try:
            for number in range(REDOS + 1):
                run = bench.attempt(number)
                if not run.health.throttled:
                    break
        except BaseException as error:
            if bench.run is not None and settings.on_partial is not None:
                found = _outcome(device, replace(bench.run, cut=_reason(error)))
                if found is not None:
                    settings.on_partial(found)
            raise
    whole = _outcome(device, run)
    assert whole is not None
    return whole


def _by_program(
    device: Device, runnables: Sequence[Runnable], order: str, settings: BenchSettings
) -> Measurement | Comparison:
    """Where no Python runs: the runtime's maker's program is timed, see :mod:`edgekit.devices.vendor`."""
    asked = vendor_run.VendorSettings(
        seconds=settings.seconds,
        iterations=settings.iterations,
        warmup_s=settings.warmup_s,
        timeout=settings.timeout,
        threads=settings.threads,
        cpus=settings.cpus,
        on_progress=settings.on_progress,
        cancel=settings.cancel,
    )
    found = vendor_run.measure(device, runnables, order, asked)
    if "B" not in found:
        return found["A"]
    difference = paired_difference(found["A"].samples, found["B"].samples)
    return Comparison(first=found["A"], second=found["B"], difference=difference)


def _outcome(device: Device, run: Run) -> Measurement | Comparison | None:
    """One variant measured, or two compared. Of a run cut short: what can be said of the last variant."""
    if "B" not in run.replicates:
        return _measurement(device, run, "A")
    a, b = run.replicates["A"], run.replicates["B"]
    pairs = min(len(a), len(b))
    if pairs < 2:
        return _measurement(device, run, "B") if b else None
    return Comparison(
        first=_measurement(device, run, "A"),
        second=_measurement(device, run, "B"),
        difference=paired_difference([r.samples_ms for r in a[:pairs]], [r.samples_ms for r in b[:pairs]]),
    )


def cool_down(
    transport: Transport, agent: PurePosixPath, device: Device, *, at_most: float | None = None
) -> tuple[Look, str]:
    """Wait until the device is as cool as its row wants (``cool_down_celsius``), or else as it was when it first
    began (``at_most``: a run is done again), five minutes at most.

    Returns the last look at it, where the temperature is that which the run begins with, and what there is to
    say of it.
    """
    limit = device.options.get("cool_down_celsius", at_most)
    known = {"emulated": True} if device.options.get("emulated") else {}
    end = time.monotonic() + COOL_DOWN_S
    while True:
        seen = mended(transport, partial(look, transport, agent))
        heat = hottest(seen.state)
        cool = limit is None or heat is None or heat <= float(limit)
        if cool or time.monotonic() > end:
            told = replace(seen, facts={**seen.facts, **known})
            return (
                told,
                "" if cool else f"it began at {heat:.0f} °C and would not cool to {float(limit or 0):.0f} °C",
            )
        time.sleep(2)


def _send(transport: Transport, runnable: Runnable, settings: BenchSettings, folder: Path) -> Task:
    """Put the agent, the model and its inputs on the device; the task that times them once."""
    folder.mkdir(exist_ok=True)
    sample = write_arrays(folder / "inputs", [runnable.bind(runnable.inputs)])
    job = model_job(transport, runnable, sample, folder=folder.name)
    job |= {
        "action": "bench",
        "cpus": settings.cpus,
        "bench": {
            "seconds": settings.seconds,
            "iterations": settings.iterations,
            "max_iterations": settings.max_iterations,
            "warmup_s": settings.warmup_s,
        },
    }
    if settings.threads:
        job["options"]["threads"] = settings.threads
    agent = send_agent(transport, runnable.backend, folder)
    return Task(id="", backend=runnable.backend, agent=agent, job=job, timeout=settings.timeout)


def _measurement(device: Device, run: Run, letter: str) -> Measurement:
    replicates = run.replicates[letter]
    summary = summarize([r.samples_ms for r in replicates])
    validity, reasons = judge(replicates, summary.cv, run.health)
    if run.cut:
        validity = "NOISY" if validity == "VALID" else validity
        reasons = (f"cut short after {len(replicates)} of {run.planned} processes: {run.cut}", *reasons)
    peaks = [p for p in (peak_memory(r.memory) for r in replicates) if p is not None]
    costs = [c for c in (model_memory(r.memory) for r in replicates) if c is not None]
    return Measurement(
        device=device.name,
        threads=replicates[0].threads,
        samples=tuple(r.samples_ms for r in replicates),
        import_ms=stdlib.median(r.import_ms for r in replicates),
        load_ms=stdlib.median(r.load_ms for r in replicates),
        first_ms=stdlib.median(r.first_ms for r in replicates),
        p50_ms=summary.p50,
        p90_ms=summary.p90,
        p99_ms=summary.p99,
        mad_ms=summary.mad,
        peak_memory=int(stdlib.median(peaks)) if peaks else None,
        model_memory=int(stdlib.median(costs)) if costs else None,
        validity=validity,
        reasons=reasons,
        facts=_facts(run, letter, summary),
    )


def _facts(run: Run, letter: str, summary: Summary) -> dict[str, Any]:
    replicates = run.replicates[letter]
    times = [t for r in replicates for t in r.samples_ms]
    rails = energy(run.states, [r.steady for r in replicates], run.states[0])
    for figures in rails.values():  # mW times ms are µJ
        figures["mj_per_inference"] = figures["mean_mw"] * stdlib.fmean(times) / 1e3
    cut = {"processes": len(replicates), "of": run.planned, "why": run.cut} if run.cut else None
    return {
        **({"partial": cut} if cut else {}),
        "device": dict(run.facts),
        "states": [dict(s) for s in run.states],
        "affinity": list(replicates[0].affinity),
        "resumes": run.resumes,
        "attempts": run.attempts,
        "energy": rails,
        "versions": dict(replicates[0].versions),
        "p50_interval_ms": [summary.interval.low, summary.interval.high],
        "p50_interval_method": summary.interval.method,
        "process_cv": summary.cv,
        "outliers": summary.outliers,
        "contention": [dict(r.contention) for r in replicates],
        "memory": [dict(r.memory) for r in replicates],
        "warmup": [dict(r.warmup) for r in replicates],
    }


def processors(text: str) -> tuple[int, ...]:
    """Processor numbers from ``"0-3,6"``, as taskset(1) takes them."""
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or (dash and int(last) < int(first)):
            raise UsageError(f"{text!r} names no processors", hint="write numbers and ranges: --cpus 0-3,6")
        found |= set(range(int(first), int(last or first) + 1))
    return tuple(sorted(found))
