"""Is the quantized artifact at least as fast as its float sibling on the same runtime? Measured, interleaved."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.core.store import Key
from edgekit.core.structure import structure, to_builtins
from edgekit.devices.bench import BenchSettings, bench_artifact, compare_artifacts
from edgekit.devices.statistics import in_times
from edgekit.graph.records import read_json, write_json
from edgekit.pipeline.refusal import SPEED
from edgekit.pipeline.stages import BuildContext
from edgekit.pipeline.verify import Subject
from edgekit.types import Device, Fallback, Gate, Measurement, Placement, Precision, Target, Verdict

if TYPE_CHECKING:
    from edgekit.types import Array

_PROMISE_SPEED = (Precision.INT8, Precision.INT8_DYNAMIC, Precision.FP8)  # INT16X8 promises accuracy
NOTICEABLE_MS = 0.1
"""A difference below it is that of calling a kernel, not of what it computes: a first small network must not fail on
it."""
_SETTINGS = BenchSettings(processes=8, seconds=0.15, warmup_s=0.5, wait_s=120.0)


@dataclass(frozen=True, kw_only=True)
class Speed:
    """The quantized artifact against ``sibling``: ``ratio`` is its latency over the sibling's, with a 95 %
    interval; ``verdict`` as :class:`edgekit.devices.statistics.Difference` says it; times in milliseconds."""

    sibling: str
    ratio: float
    low: float
    high: float
    verdict: str
    detectable: float
    p50_ms: float
    sibling_p50_ms: float
    validity: str
    reasons: tuple[str, ...] = ()


def sibling(target: Target, rows: Mapping[str, Target]) -> Target | None:
    """The float row of the same backend, for a target whose point is speed."""
    if target.precision not in _PROMISE_SPEED:
        return None
    name = target.name.removesuffix(str(target.precision)) + "fp32"
    row = rows.get(name)
    return row if row is not None and row.backend == target.backend else None


def compare(context: BuildContext, subject: Subject, against: Subject, inputs: Mapping[str, Array]) -> Speed:
    """Time both in fresh processes, interleaved (ABBA), on one input. Cached like every other stage."""

    def produce(out: Path) -> None:
        with context.progress.task(f"time {subject.target.name} against {against.target.name}"):
            found = compare_artifacts(
                replace(against.runnable, inputs=inputs),
                replace(subject.runnable, inputs=inputs),
                device=context.device,
                settings=_SETTINGS,
            )
        runs, difference = (found.first, found.second), found.difference
        worst = max(runs, key=lambda m: ("VALID", "NOISY", "INVALID").index(m.validity))
        speed = Speed(
            sibling=against.target.name,
            ratio=difference.ratio,
            low=difference.interval.low,
            high=difference.interval.high,
            verdict=difference.verdict,
            detectable=difference.detectable,
            p50_ms=found.second.p50_ms,
            sibling_p50_ms=found.first.p50_ms,
            validity=worst.validity,
            reasons=worst.reasons,
        )
        write_json(speed, out / "speed.json")

    key = Key(
        name="speed",
        inputs=(subject.files.sha256, against.files.sha256),
        options={
            "runtime": dict(subject.files.lowered.runtime),
            "shapes": {name: list(array.shape) for name, array in inputs.items()},
            "settings": to_builtins(_SETTINGS),
        },
        versions=dict(subject.files.step.versions) | context.machine_versions(subject.target.backend),
    )
    directory = context.store.step(key, produce).directory
    return structure(Speed, read_json(directory / "speed.json"), where="speed.json")


def measure(
    context: BuildContext, subject: Subject, inputs: Mapping[str, Array], where: Device
) -> Measurement:
    """Latency and memory of the artifact, for limits of them. Cached like every other stage."""

    def produce(out: Path) -> None:
        with context.progress.task(f"time {subject.target.name} on {where.name}"):
            found = bench_artifact(
                replace(subject.runnable, inputs=inputs), device=where, settings=BenchSettings(wait_s=120.0)
            )
        write_json(found, out / "measurement.json")

    key = Key(
        name="measure",
        inputs=(subject.files.sha256,),
        options={
            "runtime": dict(subject.files.lowered.runtime),
            "shapes": {name: list(array.shape) for name, array in inputs.items()},
            "device": to_builtins(where),
        },
        versions=dict(subject.files.step.versions) | context.machine_versions(subject.target.backend),
    )
    directory = context.store.step(key, produce).directory
    return structure(Measurement, read_json(directory / "measurement.json"), where="measurement.json")


def slower(speed: Speed) -> bool:
    """Whether the artifact is slower than its sibling beyond doubt."""
    return speed.verdict == "slower" and speed.validity != "INVALID"


def gate(
    speed: Speed, placement: Placement | None, target: Target, *, device: str = "", arch: str = ""
) -> Gate:
    """Fails when the artifact is slower beyond doubt, and says why it may be and what is faster.

    It is unproven where that says little: timed on a processor of another kind (``arch``, by default this machine's)
    than the target ships to, or by less than :data:`NOTICEABLE_MS`. On a ``device`` that was asked for it counts. What
    a busy machine measured is unproven everywhere.
    """
    figures = f"{speed.p50_ms:.3g} ms against {speed.sibling_p50_ms:.3g} ms of {speed.sibling}"
    if not slower(speed):
        return _not_slower(speed, figures)
    message = (
        f"{figures}: {in_times(speed.ratio)} ({speed.low:.3g} to {speed.high:.3g}); "
        f"{_reason(placement)}; {speed.sibling} is the faster target here"
    )
    little = "" if device else _says_little(speed, target, arch or platform.machine())
    if not little:
        return Gate(name=SPEED, verdict=Verdict.FAIL, limit=1.0, value=speed.ratio, message=message)
    message += f"; unproven: {little}; --device NAME times it where it runs, --no-speed-gate leaves this out"
    return Gate(name=SPEED, verdict=Verdict.UNPROVEN, limit=1.0, value=speed.ratio, message=message)


def _not_slower(speed: Speed, figures: str) -> Gate:
    """A ratio above 1 passes where it lies within what the clock could tell: that is its limit then. Beyond that, and
    where the clock told nothing (``INVALID``), it is unproven."""
    doubt = f" ({'; '.join(speed.reasons)})" if speed.reasons else ""
    how = in_times(speed.ratio) if speed.verdict != "no detectable difference" else speed.verdict
    message = f"{figures}: {how}; {speed.detectable:.0%} would have been detected{doubt}"
    limit = 1.0 if speed.ratio <= 1.0 else 1.0 + speed.detectable
    if speed.ratio <= 1.0 or (speed.validity != "INVALID" and speed.ratio <= limit):
        return Gate(name=SPEED, verdict=Verdict.PASS, limit=limit, value=speed.ratio, message=message)
    message += (
        "; unproven: too much noise to tell; build again on an idle machine, --no-speed-gate leaves this out"
    )
    return Gate(name=SPEED, verdict=Verdict.UNPROVEN, limit=1.0, value=speed.ratio, message=message)


def _says_little(speed: Speed, target: Target, arch: str) -> str:
    """Why a slower artifact may be as fast as it should be elsewhere; empty where there is no reason."""
    kind = {"arm64": "aarch64", "amd64": "x86_64"}.get(arch.lower(), arch.lower())
    if target.ships_to and kind not in target.ships_to:
        return f"this is an {kind} processor, {target.name} ships to {', '.join(target.ships_to)}"
    difference = speed.p50_ms - speed.sibling_p50_ms
    if difference < NOTICEABLE_MS:
        return f"{difference:.2g} ms are less than what calling a model costs"
    return ""


def _reason(placement: Placement | None) -> str:
    if placement is None:
        return "the runtime does not tell why"
    causes = [_cause(f) for f in placement.fallbacks[:3]]
    if placement.partitions is not None and placement.partitions > 1:
        causes.append(f"the delegate is split into {placement.partitions} partitions")
    return (
        "; ".join(causes)
        or "everything runs as asked: this model is too small, or this CPU's integer kernels too slow"
    )


def _cause(fallback: Fallback) -> str:
    return f"{fallback.count} {fallback.op} do not run as asked ({fallback.reason})"
