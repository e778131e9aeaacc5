"""Whether an artifact lasts: the gates of a long run, and where its figures are kept. docs/soak.md has the limits.

Memory fails where it grows beyond noise: the slope's whole interval is above zero, both halves of the run grow by
themselves, and what came together is more than a runtime's allocator takes in a step. Latency fails where it is surely
slower by more than a tenth at the end than at the begin. What could not be measured is ``not-run`` and says why.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import msgspec

from edgekit.artifact import history
from edgekit.artifact import manifest as manifests
from edgekit.artifact.manifest import Artifact, Status
from edgekit.artifact.measure import SOAK, refuse_unwritable, timeable
from edgekit.artifact.summary import size
from edgekit.core.structure import to_builtins
from edgekit.devices.execute import LOCAL
from edgekit.devices.runnable import Runnable
from edgekit.devices.soak import Clock, Soaked, SoakSettings
from edgekit.devices.soak import soak as run_soak
from edgekit.devices.trend import Trend
from edgekit.errors import EdgekitError, GateFailedError
from edgekit.types import Device, Gate, Json, Measurement, Verdict

GROWTH_BYTES = 1 << 20
GROWTH_SHARE = 0.01
"""What memory may grow over the judged part of a run, whatever the slope: 1 MiB and 1 % of what the process has."""
DRIFT = 0.10
"""What the median latency may drift by over the judged part of a run, as a share."""
FELL = 0.10
"""From which drop of the clock on it is said that it fell."""


@dataclass(frozen=True, kw_only=True)
class Soak:
    """What a long run of one artifact on one device showed, and the verdicts on it."""

    artifact: Artifact
    figures: Soaked
    gates: tuple[Gate, ...]

    @property
    def failed(self) -> tuple[str, ...]:
        """The names of the gates that failed."""
        return tuple(g.name for g in self.gates if g.verdict is Verdict.FAIL)

    @property
    def error(self) -> GateFailedError | None:
        """The error that these are, if any failed."""
        bad = [g for g in self.gates if g.verdict is Verdict.FAIL]
        if not bad:
            return None
        return GateFailedError(
            f"{self.artifact.target} on {self.figures.device} failed {len(bad)} of {len(self.gates)} gates of a long "
            "run: " + "; ".join(f"{g.name}: {g.message}" for g in bad),
            hint="docs/soak.md says what each gate sees; a longer run tells a slow leak from noise",
            gates=[g.name for g in bad],
        )


def soak(
    artifact: Artifact,
    *,
    devices: Sequence[Device] = (LOCAL,),
    settings: SoakSettings | None = None,
    trust: bool = False,
) -> tuple[list[Soak], list[EdgekitError]]:
    """Run it for so long on each device, side by side; judge, and keep the figures in the manifest and the history.

    A device that fails does so alone: its error is among the second result. A gate that fails is in the first.
    ``trust``: an engine is loaded whoever made it.
    """
    refuse_unwritable(artifact)
    runnable = timeable(artifact)
    runnable = replace(runnable, trusted=True) if trust else runnable
    found: list[Soak] = []
    errors: list[EdgekitError] = []
    for result in _side_by_side(runnable, devices, settings or SoakSettings()):
        if isinstance(result, EdgekitError):
            errors.append(result)
            continue
        verdicts = gates(result)
        artifact, measurement = _record(artifact, result, verdicts)
        done = Soak(artifact=artifact, figures=result, gates=verdicts)
        status = Status.FAILED if done.failed else Status.PASSED
        history.remember(
            history.Kind.SOAK, artifact, gates=verdicts, status=str(status), measurement=measurement
        )
        found.append(done)
    return found, errors


def _side_by_side(
    runnable: Runnable, devices: Sequence[Device], settings: SoakSettings
) -> list[Soaked | EdgekitError]:
    cancel = settings.cancel or threading.Event()
    shared = replace(settings, cancel=cancel)

    def one(device: Device) -> Soaked | EdgekitError:
        try:
            return run_soak(runnable, device, shared)
        except EdgekitError as error:
            return error

    with ThreadPoolExecutor(max_workers=max(1, len(devices))) as pool:
        futures = [pool.submit(one, device) for device in devices]
        try:
            return [future.result() for future in futures]
        finally:  # the pool waits for its threads: after Ctrl-C they must not go on
            cancel.set()


def gates(figures: Soaked) -> tuple[Gate, ...]:
    """One for each thing that a long run shows, in a fixed order."""
    return (
        _growth("memory-slope", figures.memory, "call", figures.missing.get("memory", "")),
        _drift(figures),
        _clock(figures.clock, slowed=figures.slowed, why=figures.missing.get("clock", "")),
        _growth("reload-slope", figures.reload, "reload", figures.missing.get("reload", "")),
    )


def _growth(name: str, found: Trend | None, unit: str, why: str) -> Gate:
    """Bytes a call, or a reload, against what would be noise over the run."""
    if found is None:
        return Gate(name=name, verdict=Verdict.NOT_RUN, message=f"not measured: {why}")
    limit = (GROWTH_BYTES + GROWTH_SHARE * found.middle) / max(found.span, 1.0)
    grows = found.low > 0 and found.lasting and found.slope > limit
    text = f"{_signed(found.slope)} a {unit} (95 %: {_signed(found.low)} to {_signed(found.high)})"
    if grows:
        text += f": memory grows and does not stop, {size(int(found.change))} over {found.span:,.0f} {unit}s"
    else:
        text += f"; {size(int(limit) + 1)} a {unit} would have been seen over {found.span:,.0f} {unit}s"
    verdict = Verdict.FAIL if grows else Verdict.PASS
    return Gate(name=name, verdict=verdict, limit=limit, value=found.slope, message=text)


def _signed(count: float) -> str:
    text = size(round(abs(count)))
    return f"-{text}" if round(count) < 0 else text


def _drift(figures: Soaked) -> Gate:
    found = figures.latency
    if found is None:
        why = figures.missing.get("latency", "")
        return Gate(
            name="latency-drift", verdict=Verdict.NOT_RUN, limit=DRIFT, message=f"not measured: {why}"
        )
    whole = found.span / found.middle
    value, low, high = found.change / found.middle, found.low * whole, found.high * whole
    text = (
        f"{value:+.1%} over {found.span:,.0f} s (95 %: {low:+.1%} to {high:+.1%}), at most {DRIFT:.0%} wanted"
    )
    verdict = Verdict.PASS
    if low > DRIFT:
        verdict = Verdict.UNPROVEN if figures.busy else Verdict.FAIL
        clock = figures.clock
        if figures.busy:
            text += f"; other work had the machine, so that it shows nothing: {figures.busy}"
        elif clock is not None and clock.fell > FELL:
            text += f"; the clock fell by {clock.fell:.0%} meanwhile"
    return Gate(name="latency-drift", verdict=verdict, limit=DRIFT, value=value, message=text)


def _clock(clock: Clock | None, *, slowed: bool, why: str) -> Gate:
    """Shown, not judged: what throttling costs is the latency's to tell."""
    said = "; the device says that it was slowed" if slowed else ""
    if clock is None:
        return Gate(name="clock", verdict=Verdict.NOT_RUN, message=f"not measured: {why}{said}")
    fell = f", {clock.fell:.0%} lower at the end than at the begin" if clock.fell > FELL else ", steady"
    text = f"{clock.median / 1e6:.2f} GHz ({clock.lowest / 1e6:.2f} to {clock.highest / 1e6:.2f}){fell}{said}"
    return Gate(name="clock", verdict=Verdict.SHOWN, value=clock.fell, message=text)


# --- where it is kept ---------------------------------------------------------------------------------------------


def _record(artifact: Artifact, figures: Soaked, found: Sequence[Gate]) -> tuple[Artifact, Measurement]:
    """Beside the measurement of the device where there is one: ten fresh processes tell a latency better than one long
    run does. Else as the measurement, which says that it is of one process."""
    facts: dict[str, Json] = {SOAK: summary(figures, found)}
    own = Measurement(
        device=figures.device,
        threads=figures.threads,
        samples=(tuple(w.p50_ms for w in figures.windows),),
        import_ms=_milliseconds(figures, "import"),
        load_ms=_milliseconds(figures, "load"),
        first_ms=figures.first_ms,
        p50_ms=figures.p50_ms,
        p90_ms=figures.p90_ms,
        p99_ms=figures.p99_ms,
        mad_ms=figures.mad_ms,
        validity="NOISY",
        reasons=("one process of a long run: edgekit bench measures fresh ones", *figures.reasons),
        facts={**facts, "versions": dict(figures.versions), "device": dict(figures.about)},
    )
    before = artifact.manifest.measurements
    kept = [replace(m, facts={**m.facts, **facts}) if m.device == figures.device else m for m in before]
    if all(m.device != figures.device for m in before):
        kept.append(replace(own, samples=()))
    manifest = replace(artifact.manifest, measurements=tuple(kept))
    manifests.write(manifest, artifact.directory)
    return replace(artifact, manifest=manifest), own


def _milliseconds(figures: Soaked, phase: str) -> float:
    return figures.seconds_of.get(phase, 0.0) * 1e3


def summary(figures: Soaked, found: Sequence[Gate]) -> dict[str, Json]:
    """The figures as JSON: what ``edgekit bench --soak --json`` prints and the manifest keeps."""
    document: dict[str, Json] = {
        "seconds": figures.seconds,
        "calls": figures.calls,
        "threads": figures.threads,
        "p50_ms": figures.p50_ms,
        "p90_ms": figures.p90_ms,
        "p99_ms": figures.p99_ms,
        "counted": figures.counted,
        "reasons": list(figures.reasons),
        "missing": dict(figures.missing),
        "gates": to_builtins(tuple(found)),
        "windows": [msgspec.to_builtins(w) for w in figures.windows],
        "reloads": [msgspec.to_builtins(r) for r in figures.reloads],
    }
    trends = {
        "memory": figures.memory,
        "latency": figures.latency,
        "clock": figures.clock,
        "reload": figures.reload,
    }
    return document | {n: None if t is None else dataclasses.asdict(t) for n, t in trends.items()}
