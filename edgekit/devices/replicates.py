"""What one fresh process measured, and what many of them together are worth."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from edgekit.devices import wire
from edgekit.devices.health import Health
from edgekit.devices.job import Task, TaskResult
from edgekit.devices.wire import BenchResult, Contention, Memory, Warmup
from edgekit.errors import DeviceError


@dataclass(frozen=True, kw_only=True)
class Replicate:
    """One fresh process's figures: times in milliseconds, memory in bytes; ``None``: it does not tell.

    ``samples_ms`` are the single inferences, or one figure that stands for them where a vendor's ``tool`` gives no more
    (``is_raw`` is false then, and ``p90_ms`` and ``p99_ms`` are the tool's). ``steady``: when the clock ran, in seconds
    since the epoch on the device's clock. ``affinity``: the processors that it might use. ``gpu_ms``: inferences
    by the GPU's own events.
    """

    samples_ms: tuple[float, ...]
    threads: int
    is_raw: bool = True
    import_ms: float | None = None
    load_ms: float | None = None
    first_ms: float | None = None
    p90_ms: float | None = None
    p99_ms: float | None = None
    peak_memory: int | None = None
    model_memory: int | None = None
    memory: Memory | None = None
    contention: Contention | None = None
    warmup: Warmup | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    steady: tuple[float, float] | None = None
    affinity: tuple[int, ...] = ()
    gpu_ms: tuple[float, ...] = ()
    tool: str = ""
    notes: tuple[str, ...] = ()


def replicate(device: str, task: Task[BenchResult], done: TaskResult[BenchResult]) -> Replicate:
    """From a bench task's result. Raises :class:`DeviceError` for one that is not what was asked for."""
    result, asked = done.result, task.job.bench
    assert asked is not None
    if not asked.iterations <= len(result.samples_ms) <= asked.max_iterations:
        raise impossible(device, f"{len(result.samples_ms)} inferences, {asked.iterations} were asked for")
    _refuse_longer(device, task.timeout, result)
    return Replicate(
        samples_ms=result.samples_ms,
        import_ms=_milliseconds(result.seconds, "import"),
        load_ms=_milliseconds(result.seconds, "load"),
        first_ms=result.first_ms,
        threads=result.threads,
        peak_memory=peak_memory(result.memory),
        model_memory=model_memory(result.memory),
        memory=result.memory,
        contention=result.contention,
        warmup=result.warmup,
        versions=done.versions,
        steady=result.steady,
        affinity=result.affinity,
        gpu_ms=result.gpu_ms,
    )


def _refuse_longer(device: str, timeout: float, result: BenchResult) -> None:
    """Raise for times that the process, or what they are said to be parts of, had not."""
    # Its own clocks: two that differ by parts in a million.
    whole, steady = sum(result.samples_ms) / 1e3, result.steady[1] - result.steady[0]
    if whole > 1.01 * timeout:
        raise impossible(device, f"inferences of {whole:.0f} s together")
    others = (result.first_ms / 1e3, sum(result.warmup.windows_ms) / 1e3, steady, *result.seconds.values())
    if max(others) > 1.01 * timeout + 1:
        raise impossible(device, f"{max(others):.0f} s in a process that was given {timeout:.0f}")
    if steady < 0:
        raise impossible(device, "an end of the steady state before its begin")
    wall = result.contention.wall_s
    if wall is not None and whole > 1.01 * wall + 1e-3:
        raise impossible(device, f"inferences of {whole:.3f} s in {wall:.3f} s")


def _milliseconds(seconds: Mapping[str, float], phase: str) -> float | None:
    return seconds[phase] * 1e3 if phase in seconds else None


_NO_TIME_MS = 1e-6
"""A nanosecond: what clocks count in."""


def checked(device: str, one: Replicate) -> Replicate:
    """``one``, if its figures can be times and sizes. Raises :class:`DeviceError`."""
    times = (*one.samples_ms, one.import_ms, one.load_ms, one.first_ms, one.p90_ms, one.p99_ms)
    for value in (*times, one.peak_memory, one.model_memory):
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise impossible(device, f"{value} for a time or a size")
    if not one.samples_ms or statistics.median(one.samples_ms) < _NO_TIME_MS:
        raise impossible(device, "no inference that took any time")
    if one.p90_ms is not None and one.p99_ms is not None and one.p99_ms < one.p90_ms:
        raise impossible(device, f"a 99th percentile of {one.p99_ms:g} ms below the 90th, {one.p90_ms:g} ms")
    return one


def impossible(device: str, what: str) -> DeviceError:
    """The error for figures that cannot be."""
    return DeviceError(
        f"{device} reports {what}: that cannot be",
        hint="run it again; if it stays so, do not trust the device",
    )


def peak_memory(memory: Memory) -> int | None:
    """Highest VmHWM from load to the steady state, in bytes; ``None`` where the kernel does not tell."""
    later = (memory.phases[p].peak for p in ("load", "first", "steady") if p in memory.phases)
    return max((peak for peak in later if peak is not None), default=None)


def model_memory(memory: Memory) -> int | None:
    """What the model costs: the peak less what the same process held once the runtime was imported.

    ``None`` where the kernel cannot start a new peak for each phase.
    """
    peak, baseline = peak_memory(memory), memory.phases.get("import", wire.PhaseMemory()).rss
    if peak is None or baseline is None or not memory.resettable:
        return None
    return max(0, peak - baseline)


def judge(replicates: Sequence[Replicate], cv: float, health: Health) -> tuple[str, tuple[str, ...]]:
    """VALID, NOISY or INVALID, with reasons.

    INVALID: the process had less than half a CPU where it should have had one, the machine was stolen from
    for a tenth of the time, or no warm-up became stable. NOISY: a tenth of the CPU or 2 % stolen, other
    work waited for the CPU for a tenth of the time, half the warm-ups unstable, the processes' medians
    scatter by more than 10 %, or there were more threads than processors. ``health`` is what the device's
    state says.
    """
    invalid: list[str] = list(health.invalid)
    noisy: list[str] = list(health.noisy)
    share = median_of([_contention(r).cpu_per_wall for r in replicates if r.threads == 1])
    if share is not None and share < 0.9:
        (invalid if share < 0.5 else noisy).append(f"the process had {share:.0%} of a CPU")
    threads, places = replicates[0].threads, len(replicates[0].affinity)
    if places and threads > places:
        noisy.append(f"{threads} threads shared {places} processor{'s' if places > 1 else ''}")
    steal = statistics.median([_contention(r).steal or 0.0 for r in replicates])
    if steal > 0.02:
        (invalid if steal > 0.1 else noisy).append(f"the hypervisor took {steal:.0%} of the time")
    pressure = statistics.median([_contention(r).pressure or 0.0 for r in replicates])
    if pressure > 0.1:
        noisy.append(f"work waited for a CPU for {pressure:.0%} of the time (PSI)")
    unstable = sum(r.warmup is not None and not r.warmup.stable for r in replicates)
    if 2 * unstable > len(replicates):
        (invalid if unstable == len(replicates) else noisy).append(
            f"the warm-up of {unstable} of {len(replicates)} processes did not become stable"
        )
    if cv > 0.1:
        noisy.append(f"the processes' medians scatter by {cv:.0%}")
    verdict = "INVALID" if invalid else "NOISY" if noisy else "VALID"
    return verdict, tuple(invalid + noisy)


def _contention(one: Replicate) -> Contention:
    return one.contention or Contention()


def median_of(values: Sequence[float | None]) -> float | None:
    """The median of what there is."""
    present = [value for value in values if value is not None]
    return statistics.median(present) if present else None
