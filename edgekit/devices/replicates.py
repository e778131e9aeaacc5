"""What one fresh process measured, and what many of them together are worth."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgekit.devices.health import Health

if TYPE_CHECKING:
    from edgekit.devices.plan import TaskResult


@dataclass(frozen=True, kw_only=True)
class Replicate:
    """One fresh process's figures, as the agent sent them. ``steady``: when it was timed, in seconds since the
    epoch on the device's clock; ``affinity``: the processors that it might use."""

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
    affinity: tuple[int, ...] = ()


def replicate(done: TaskResult) -> Replicate:
    """From a bench task's ``result`` event."""
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
        affinity=tuple(result["affinity"]),
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
    work waited for the CPU for a tenth of the time, half the warm-ups unstable, the processes' medians
    scatter by more than 10 %, or there were more threads than processors. ``health`` is what the device's
    state says.
    """
    health = health or Health()
    invalid: list[str] = list(health.invalid)
    noisy: list[str] = list(health.noisy)
    shares = [s for s in (_figure(r, "cpu_per_wall") for r in replicates if r.threads == 1) if s is not None]
    if shares:
        share = statistics.median(shares)
        target = invalid if share < 0.5 else noisy if share < 0.9 else None
        if target is not None:
            target.append(f"the process had {share:.0%} of a CPU")
    threads, places = replicates[0].threads, len(replicates[0].affinity)
    if places and threads > places:
        noisy.append(f"{threads} threads shared {places} processor{'s' if places > 1 else ''}")
    steal = statistics.median([_figure(r, "steal") or 0.0 for r in replicates])
    if steal > 0.02:
        (invalid if steal > 0.1 else noisy).append(f"the hypervisor took {steal:.0%} of the time")
    pressure = statistics.median([_figure(r, "pressure") or 0.0 for r in replicates])
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


def _figure(one: Replicate, name: str) -> float | None:
    value = one.contention.get(name)
    return None if value is None else float(value)
