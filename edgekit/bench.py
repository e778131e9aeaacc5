"""Latency and memory of artifacts on a device, so that the numbers hold when somebody measures again.

What makes them hold: every replicate is a fresh process (what differs from process to process is most of
the variance), variants are interleaved, inputs are filled outside the timer, load, first inference and
steady state are kept apart, raw samples are kept, and what else the machine did is recorded and judged.
"""

from __future__ import annotations

import statistics as stdlib
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from edgekit.devices.arrays import write_arrays
from edgekit.devices.connect import connect, send_agent, send_model
from edgekit.devices.execute import LOCAL
from edgekit.devices.health import Health, assess, energy, hottest
from edgekit.devices.pack import pack
from edgekit.devices.plan import Look, Task, TaskResult, Watch, look, run_plan
from edgekit.devices.statistics import Difference, interleave, paired_difference, summarize
from edgekit.errors import EdgekitError, UsageError
from edgekit.types import Device, Measurement, Option

if TYPE_CHECKING:
    from edgekit.devices.transport import Transport
    from edgekit.types import Array


REDOS = 2
"""How often a run on a device that throttled is done again."""

COOL_DOWN_S = 300.0


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What is timed: a model with one set of inputs on one runtime. ``files`` must lie beside the model."""

    backend: str
    model: Path
    inputs: Mapping[str, Array]
    options: Mapping[str, Option] = field(default_factory=dict)
    files: tuple[Path, ...] = ()
    quantize: bool = False


@dataclass(frozen=True, kw_only=True)
class BenchSettings:
    """How long and how often. ``processes`` a variant; within each at least ``seconds`` and ``iterations``
    of steady state, at most ``max_iterations``, after at most ``warmup_s`` seconds of warm-up.
    ``timeout`` is one process's, in seconds; ``cancel`` ends the run from another thread;
    ``wait_s`` is how long to wait for a device that another benchmark holds (0: say so at once)."""

    processes: int = 10
    seconds: float = 0.5
    iterations: int = 10
    max_iterations: int = 20_000
    warmup_s: float = 2.0
    timeout: float = 600.0
    on_progress: Callable[[int, int], None] | None = None
    cancel: threading.Event | None = None
    wait_s: float = 0.0

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


@dataclass(frozen=True, kw_only=True)
class Replicate:
    """One fresh process's figures, as the agent sent them."""

    samples_ms: tuple[float, ...]
    import_ms: float
    load_ms: float
    first_ms: float
    threads: int
    memory: Mapping[str, Any]
    contention: Mapping[str, Any]
    warmup: Mapping[str, Any]
    versions: Mapping[str, str]
    steady: tuple[float, float] = (0.0, 0.0)


def bench_artifact(
    variant: Variant, *, device: Device = LOCAL, settings: BenchSettings | None = None
) -> Measurement:
    """Measure one variant in fresh processes.

    Raises what :func:`~edgekit.devices.execute.run_artifact` does, and
    :class:`~edgekit.errors.DeviceBusyError` when another benchmark holds the device.
    """
    settings = settings or BenchSettings()
    run = _run(device, [variant], "A" * settings.processes, settings)
    return _measurement(device, run, "A")


def compare_artifacts(
    first: Variant, second: Variant, *, device: Device = LOCAL, settings: BenchSettings | None = None
) -> Comparison:
    """Measure two variants interleaved and say whether the second is faster, slower or no different."""
    settings = settings or BenchSettings()
    run = _run(device, [first, second], interleave(max(2, settings.processes)), settings)
    a, b = run.replicates["A"], run.replicates["B"]
    return Comparison(
        first=_measurement(device, run, "A"),
        second=_measurement(device, run, "B"),
        difference=paired_difference([r.samples_ms for r in a], [r.samples_ms for r in b]),
    )


def bench_devices(
    variants: Sequence[Variant], devices: Sequence[Device], *, settings: BenchSettings | None = None
) -> dict[str, Measurement | Comparison | EdgekitError]:
    """Measure one variant, or compare two, on several devices side by side; by device name.

    A device that fails does so alone: its error is its result. Ctrl-C ends the runs on all of them.
    ``settings.on_progress`` is called from several threads, once for the processes of all devices together.
    """
    settings = settings or BenchSettings()
    if not 1 <= len(variants) <= 2:
        raise UsageError(
            "one or two artifacts can be measured side by side", hint="name one, or two to compare"
        )
    cancel, told = threading.Event(), _Together(settings.on_progress, len(devices))
    chosen = replace(settings, cancel=cancel, on_progress=None)

    def one(device: Device) -> Measurement | Comparison | EdgekitError:
        own = replace(chosen, on_progress=lambda done, whole: told(device.name, done, whole))
        try:
            if len(variants) == 1:
                return bench_artifact(variants[0], device=device, settings=own)
            return compare_artifacts(variants[0], variants[1], device=device, settings=own)
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
    links that broke and were mended.
    """

    replicates: Mapping[str, Sequence[Replicate]]
    facts: Mapping[str, Any]
    states: Sequence[Mapping[str, Any]]
    health: Health
    attempts: int = 1
    resumes: int = 0


def _run(device: Device, variants: Sequence[Variant], order: str, settings: BenchSettings) -> Run:
    """Run fresh processes in ``order`` (its letters stand for the variants), again if the device throttled."""
    with connect(device) as transport, tempfile.TemporaryDirectory(prefix="edgekit-bench-") as folder:
        prepared = [
            _send(transport, variant, settings, Path(folder) / "AB"[i]) for i, variant in enumerate(variants)
        ]
        for attempt in range(REDOS + 1):
            before = cool_down(transport, prepared[0].agent, device)
            run = _attempt(transport, prepared, order, settings, before, attempt)
            if not run.health.throttled:
                break
    return run


def _attempt(
    transport: Transport,
    prepared: Sequence[Task],
    order: str,
    settings: BenchSettings,
    before: Look,
    attempt: int,
) -> Run:
    tasks = [
        replace(prepared["AB".index(letter)], id=f"{attempt}-{i}-{letter}") for i, letter in enumerate(order)
    ]
    watch = Watch(
        on_done=settings.on_progress,
        journal=f"journal-{attempt}",
        cancel=settings.cancel,
        wait_s=settings.wait_s,
    )
    found = run_plan(transport, tasks, watch)
    states = [before.state, *watch.states]
    return Run(
        replicates={
            letter: [_replicate(found[t.id]) for t in tasks if t.id.endswith(letter)]
            for letter in sorted(set(order))
        },
        facts=before.facts,
        states=states,
        health=assess(before.facts, states),
        attempts=attempt + 1,
        resumes=watch.resumes,
    )


def cool_down(transport: Transport, agent: PurePosixPath, device: Device) -> Look:
    """Wait until the device is as cool as its row wants (``cool_down_celsius``), five minutes at most.

    Returns the last look at it, where the temperature is that which the run begins with.
    """
    limit = device.options.get("cool_down_celsius")
    known = {"emulated": True} if device.options.get("emulated") else {}
    end = time.monotonic() + COOL_DOWN_S
    while True:
        seen = look(transport, agent)
        heat = hottest(seen.state)
        if limit is None or heat is None or heat <= float(limit) or time.monotonic() > end:
            return replace(seen, facts={**seen.facts, **known})
        time.sleep(2)


def _send(transport: Transport, variant: Variant, settings: BenchSettings, folder: Path) -> Task:
    """Put the agent, the model and its inputs on the device; the task that times them once."""
    folder.mkdir()
    sample = write_arrays(folder / "inputs", [variant.inputs])
    job = {
        "action": "bench",
        "scratch": str(transport.root),
        "model": str(send_model(transport, variant.model, variant.files, folder=folder.name)),
        "options": dict(variant.options),
        "inputs": {
            "path": str(transport.put(sample.path, f"{folder.name}-inputs")),
            "names": sample.names,
            "count": 1,
        },
        "quantize": variant.quantize,
        "bench": {
            "seconds": settings.seconds,
            "iterations": settings.iterations,
            "max_iterations": settings.max_iterations,
            "warmup_s": settings.warmup_s,
        },
    }
    agent = send_agent(transport, pack(variant.backend), folder)
    return Task(id="", backend=variant.backend, agent=agent, job=job, timeout=settings.timeout)


def _replicate(done: TaskResult) -> Replicate:
    result = done.result
    return Replicate(
        samples_ms=tuple(result["samples_ms"]),
        import_ms=result["seconds"]["import"] * 1e3,
        load_ms=result["seconds"]["load"] * 1e3,
        first_ms=result["first_ms"],
        threads=int(result["threads"]),
        memory=result["memory"],
        contention=result["contention"],
        warmup=result["warmup"],
        versions=done.transcript.versions,
        steady=(float(result["steady"][0]), float(result["steady"][1])),
    )


def _measurement(device: Device, run: Run, letter: str) -> Measurement:
    replicates = run.replicates[letter]
    summary = summarize([r.samples_ms for r in replicates])
    validity, reasons = judge(replicates, summary.cv, run.health)
    rails = energy(run.states, [r.steady for r in replicates], run.states[0])
    for figures in rails.values():  # mW times ms are µJ
        figures["mj_per_inference"] = figures["mean_mw"] * summary.p50 / 1e3
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
        facts={
            "device": dict(run.facts),
            "states": [dict(s) for s in run.states],
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
        },
    )


def peak_memory(memory: Mapping[str, Any]) -> int | None:
    """Highest VmHWM from load to the steady state, in bytes; ``None`` where the kernel does not tell."""
    phases = memory.get("phases", {})
    peaks = [phases[p]["peak"] for p in ("load", "first", "steady") if "peak" in phases.get(p, {})]
    return max(peaks, default=None)


def model_memory(memory: Mapping[str, Any]) -> int | None:
    """What the model costs: the peak less what the same process held once the runtime was imported.

    ``None`` where the kernel cannot start a new peak for each phase.
    """
    peak, baseline = peak_memory(memory), memory.get("phases", {}).get("import", {}).get("rss")
    if peak is None or baseline is None or not memory.get("resettable"):
        return None
    return max(0, peak - int(baseline))


def judge(
    replicates: Sequence[Replicate], cv: float, health: Health | None = None
) -> tuple[str, tuple[str, ...]]:
    """VALID, NOISY or INVALID, with reasons.

    INVALID: the process had less than half a CPU where it should have had one, the machine was stolen from
    for a tenth of the time, or no warm-up became stable. NOISY: a tenth of the CPU or 2 % stolen, other
    work waited for the CPU for a tenth of the time, half the warm-ups unstable, or the processes' medians
    scatter by more than 10 %. ``health`` is what the device's state says.
    """
    health = health or Health()
    invalid: list[str] = list(health.invalid)
    noisy: list[str] = list(health.noisy)
    shares = [s for s in (_figure(r, "cpu_per_wall") for r in replicates if r.threads == 1) if s is not None]
    if shares:
        share = stdlib.median(shares)
        target = invalid if share < 0.5 else noisy if share < 0.9 else None
        if target is not None:
            target.append(f"the process had {share:.0%} of a CPU")
    steal = stdlib.median([_figure(r, "steal") or 0.0 for r in replicates])
    if steal > 0.02:
        (invalid if steal > 0.1 else noisy).append(f"the hypervisor took {steal:.0%} of the time")
    pressure = stdlib.median([_figure(r, "pressure") or 0.0 for r in replicates])
    if pressure > 0.1:
        noisy.append(f"work waited for a CPU for {pressure:.0%} of the time (PSI)")
    unstable = sum(not r.warmup.get("stable") for r in replicates)
    if 2 * unstable > len(replicates):
        (invalid if unstable == len(replicates) else noisy).append(
            f"the warm-up of {unstable} of {len(replicates)} processes did not become stable"
        )
    if cv > 0.1:
        noisy.append(f"the processes' medians scatter by {cv:.0%}")
    verdict = "INVALID" if invalid else "NOISY" if noisy else "VALID"
    return verdict, tuple(invalid + noisy)


def _figure(replicate: Replicate, name: str) -> float | None:
    value = replicate.contention.get(name)
    return None if value is None else float(value)
