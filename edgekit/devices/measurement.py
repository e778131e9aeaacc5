"""From the replicates of a run to a measurement, or to a comparison of two."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from edgekit.devices import protocol
from edgekit.devices.health import Health, assess, energy
from edgekit.devices.replicates import Replicate, judge, median_of
from edgekit.devices.statistics import Difference, Summary, paired_difference, summarize
from edgekit.devices.wire import DeviceFacts, DeviceState
from edgekit.types import Json, Measurement


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A against B, interleaved on one device."""

    first: Measurement
    second: Measurement
    difference: Difference


@dataclass(frozen=True, kw_only=True)
class Run:
    """The replicates of each variant (by letter), and the device before and while they ran.

    ``hot`` says that it would not cool down before. ``attempts`` is more than one if the device throttled and the
    run was done again; ``resumes`` counts links that broke and were mended. ``cut``: why the run ended before its
    ``planned`` processes a variant were measured (empty: it did not).
    """

    device: str
    replicates: Mapping[str, Sequence[Replicate]]
    facts: DeviceFacts
    states: Sequence[DeviceState]
    planned: int
    hot: str = ""
    attempts: int = 1
    resumes: int = 0
    cut: str = ""

    @property
    def health(self) -> Health:
        """What the device's state says about the figures."""
        steady = [r.steady for rows in self.replicates.values() for r in rows if r.steady is not None]
        health = assess(self.facts, self.states, steady)
        return replace(health, noisy=(*health.noisy, self.hot)) if self.hot else health

    def outcome(self) -> Measurement | Comparison | None:
        """One variant measured, or two compared. Of a run cut short: what can be said of the last variant."""
        if "B" not in self.replicates:
            return self._measurement("A")
        a, b = self.replicates["A"], self.replicates["B"]
        pairs = min(len(a), len(b))
        if pairs < 2:
            return self._measurement("B") if b else None
        difference = paired_difference([r.samples_ms for r in a[:pairs]], [r.samples_ms for r in b[:pairs]])
        return Comparison(first=self._measurement("A"), second=self._measurement("B"), difference=difference)

    def _measurement(self, letter: str) -> Measurement:
        replicates = self.replicates[letter]
        summary = summarize([r.samples_ms for r in replicates])
        validity, reasons = judge(replicates, summary.cv, self.health)
        if self.cut:
            validity = "NOISY" if validity == "VALID" else validity
            reasons = (f"cut short after {len(replicates)} of {self.planned} processes: {self.cut}", *reasons)
        raw = all(r.is_raw for r in replicates)
        p90 = summary.p90 if raw else median_of([r.p90_ms for r in replicates])
        if p90 is None:
            reasons = (*reasons, "p90 is that of the processes' figures")
        return Measurement(
            device=self.device,
            threads=replicates[0].threads,
            samples=tuple(r.samples_ms for r in replicates),
            import_ms=median_of([r.import_ms for r in replicates]) or 0.0,
            load_ms=median_of([r.load_ms for r in replicates]) or 0.0,
            first_ms=median_of([r.first_ms for r in replicates]) or 0.0,
            p50_ms=summary.p50,
            p90_ms=summary.p90 if p90 is None else p90,
            p99_ms=summary.p99 if raw else median_of([r.p99_ms for r in replicates]),
            mad_ms=summary.mad,
            peak_memory=_whole(median_of([r.peak_memory for r in replicates])),
            model_memory=_whole(median_of([r.model_memory for r in replicates])),
            validity=validity,
            reasons=(*reasons, *dict.fromkeys(note for r in replicates for note in r.notes)),
            facts=self._facts(letter, summary),
        )

    def _facts(self, letter: str, summary: Summary) -> dict[str, Json]:
        replicates = self.replicates[letter]
        first, mean = replicates[0], statistics.fmean(t for r in replicates for t in r.samples_ms)
        facts: dict[str, Json] = {
            "device": protocol.builtins(self.facts),
            "states": [protocol.builtins(state) for state in self.states],
            "affinity": list(first.affinity),
            "resumes": self.resumes,
            "attempts": self.attempts,
            "energy": self._energy(replicates, mean),
            "versions": first.versions,
            "p50_interval_ms": [summary.interval.low, summary.interval.high],
            "p50_interval_method": summary.interval.method,
            "process_cv": summary.cv,
            "outliers": summary.outliers,
            "mean_ms": mean,
            "contention": [protocol.builtins(r.contention) for r in replicates if r.contention],
            "memory": [protocol.builtins(r.memory) for r in replicates if r.memory],
            "warmup": [protocol.builtins(r.warmup) for r in replicates if r.warmup],
        }
        if any(r.gpu_ms for r in replicates):
            facts["gpu_p50_ms"] = median_of([statistics.median(r.gpu_ms) for r in replicates if r.gpu_ms])
        if first.tool:
            facts["program"] = first.tool
        if self.cut:
            facts["partial"] = {"processes": len(replicates), "of": self.planned, "why": self.cut}
        return facts

    def _energy(self, replicates: Sequence[Replicate], mean_ms: float) -> dict[str, Json]:
        steady = [r.steady for r in replicates if r.steady is not None]
        rails = energy(self.states, steady, self.states[0])
        # mW times ms are µJ.
        return {
            rail: {**figures, "mj_per_inference": figures["mean_mw"] * mean_ms / 1e3}
            for rail, figures in rails.items()
        }


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)
