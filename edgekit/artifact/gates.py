"""Which limits an artifact must keep, and whether it does: pass, fail, inconclusive or not run.

A measured value within its limit passes; the message states the interval, so that nobody takes 50 samples
for proof. ``inconclusive`` means that the measured value is beyond the limit while its 90 % interval still
contains the limit: too few samples to call it a failure. It is never counted as a pass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from edgekit.artifact.rounding import beside_rounding
from edgekit.devices.statistics import share_below, wilson
from edgekit.types import Gate, Measurement, Parity, Placement, Tolerance, Verdict

_EQUAL = 1e-9
"""What two shares may differ by that are the same on paper: 0.91 - 0.90 is not 0.01 in binary."""
_MOST_TIMES = 30.0
"""Beyond 900 times the rows nobody is helped by a number."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits that the user set beside the target's tolerance. ``None``: no gate."""

    size_bytes: int | None = None
    latency_ms: float | None = None
    memory_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What was found out about one artifact. ``not_run`` says why it could not be run, if so."""

    parity: Parity | None = None
    placement: Placement | None = None
    integer_weights: float | None = None
    size_bytes: int | None = None
    measurement: Measurement | None = None
    not_run: str = ""


def gates(evidence: Evidence, tolerance: Tolerance, limits: Limits | None = None) -> tuple[Gate, ...]:
    """Every gate that applies, in a fixed order. A gate whose value is missing is ``not-run``."""
    limits = limits or Limits()
    found = [*_parity_gates(evidence, tolerance), _placement_gate(evidence, tolerance)]
    found.append(_weights_gate(evidence, tolerance))
    measured, why = evidence.measurement, evidence.not_run
    latency, memory = (measured.p50_ms, measured.peak_memory) if measured else (None, None)
    found += [
        _at_most("size", limits.size_bytes, evidence.size_bytes, "bytes", why),
        _at_most("latency", limits.latency_ms, latency, "ms p50", why),
        _at_most("memory", limits.memory_bytes, memory, "bytes", why),
    ]
    return tuple(gate for gate in found if gate is not None)


def failed(found: Sequence[Gate]) -> tuple[str, ...]:
    """The names of the gates that failed."""
    return tuple(g.name for g in found if g.verdict is Verdict.FAIL)


def _parity_gates(evidence: Evidence, tolerance: Tolerance) -> list[Gate | None]:
    parity, why = evidence.parity, evidence.not_run
    tolerance = beside_rounding(tolerance, parity)
    return [
        _finite(parity, why),
        _at_least("snr", tolerance.snr_db, parity.snr_db if parity else None, "dB", why),
        _slices(parity, tolerance.slice_limit, why),
        _low_samples(parity, tolerance.sample_limit, why),
        _integers(parity, tolerance.integer_agreement, why),
        _at_most(
            "relative-error", tolerance.relative_error, parity.relative_error if parity else None, "", why
        ),
        _agreement(parity, tolerance.top1_agreement, why),
        _drop(parity, tolerance.metric_drop, why),
    ]


def _not_run(name: str, limit: float | None, why: str) -> Gate:
    return Gate(name=name, verdict=Verdict.NOT_RUN, limit=limit, message=why or "it was not measured")


def _at_least(name: str, limit: float | None, value: float | None, unit: str, why: str) -> Gate | None:
    if limit is None:
        return None
    if value is None:
        return _not_run(name, limit, why)
    good = value >= limit
    message = f"{value:.4g} {unit}".strip() + f", at least {limit:.4g} wanted"
    verdict = Verdict.PASS if good else Verdict.FAIL
    return Gate(name=name, verdict=verdict, limit=limit, value=value, message=message)


def _at_most(name: str, limit: float | None, value: float | None, unit: str, why: str) -> Gate | None:
    if limit is None:
        return None
    if value is None:
        return _not_run(name, limit, why)
    good = value <= limit
    message = f"{value:.4g} {unit}".strip() + f", at most {limit:.4g} wanted"
    verdict = Verdict.PASS if good else Verdict.FAIL
    return Gate(name=name, verdict=verdict, limit=limit, value=value, message=message)


def _finite(parity: Parity | None, why: str) -> Gate:
    if parity is None:
        return _not_run("finite", 0, why)
    verdict = Verdict.FAIL if parity.nonfinite else Verdict.PASS
    message = f"{parity.nonfinite} values are NaN, or infinite on one side only" if parity.nonfinite else ""
    return Gate(name="finite", verdict=verdict, limit=0, value=float(parity.nonfinite), message=message)


def _slices(parity: Parity | None, limit: float | None, why: str) -> Gate | None:
    """The worst channel or column: how much of its variance the artifact still explains."""
    if parity is not None and parity.explained is None:
        return None
    gate = _at_least("slices", limit, parity.explained if parity else None, "of the variance explained", why)
    if gate is None or parity is None:
        return gate
    return replace(gate, message=f"{parity.explained_at}: {gate.message}")


def _low_samples(parity: Parity | None, limit: float | None, why: str) -> Gate | None:
    """Quiet samples count as much as loud ones: the SNR that all but one in twenty exceed."""
    if parity is not None and parity.sample_snr_db is None:
        return None
    return _at_least(
        "samples", limit, parity.sample_snr_db if parity else None, "dB in 95 % of the samples", why
    )


def _integers(parity: Parity | None, limit: float, why: str) -> Gate | None:
    """Class indices, token ids and flags have no noise: they are equal or they are wrong."""
    if parity is None or parity.integer_agreement is None:
        return None
    return _at_least("integers", limit, parity.integer_agreement, "of the integers agree", why)


def _agreement(parity: Parity | None, limit: float | None, why: str) -> Gate | None:
    """A share of rows: below the limit it fails only if the exact binomial test says so at 5 %."""
    name = "top1-agreement"
    if limit is None or (parity is not None and parity.top1_agreement is None):
        return None
    if parity is None or parity.top1_agreement is None:
        return _not_run(name, limit, why)
    value, rows = parity.top1_agreement, max(parity.rows, 1)
    message = f"{value:.4g} of {rows} rows agree, at least {limit:.4g} wanted"
    if value >= limit:
        return Gate(name=name, verdict=Verdict.PASS, limit=limit, value=value, message=message)
    agreeing = round(value * rows)
    verdict = Verdict.FAIL if share_below(agreeing, rows, limit) < 0.05 else Verdict.INCONCLUSIVE
    message += f"; the true share is {wilson(agreeing, rows)}"
    return Gate(name=name, verdict=verdict, limit=limit, value=value, message=message)


def _drop(parity: Parity | None, limit: float | None, why: str) -> Gate | None:
    """The measured loss against the limit; beyond it, the interval decides between failure and too few rows."""
    name = "metric-drop"
    if limit is None or (parity is not None and parity.metric_drop is None):
        return None
    if parity is None or parity.metric_drop is None:
        return _not_run(name, limit, why)
    value, interval = parity.metric_drop, parity.drop_interval
    recipe = "" if parity.recipe_metric is None else f"{parity.recipe_metric:.4g} by the recipe → "
    text = (
        f"{parity.metric_name} {parity.reference_metric:.4g} → {recipe}{parity.metric:.4g}, "
        f"at most {limit:.4g} lost wanted"
    )
    if interval is None:
        verdict = Verdict.PASS if value <= limit + _EQUAL else Verdict.FAIL
        text += "; no interval known"
        return Gate(name=name, verdict=verdict, limit=limit, value=value, message=text)
    low, high = interval
    verdict = (
        Verdict.PASS if value <= limit + _EQUAL else Verdict.FAIL if low > limit else Verdict.INCONCLUSIVE
    )
    text += f"; loss {low:.4g} to {high:.4g} ({parity.drop_method}, 90 %)"
    if verdict is Verdict.INCONCLUSIVE:
        text += f": {parity.rows} rows are too few to decide" + _enough(parity, limit)
    return Gate(name=name, verdict=verdict, limit=limit, value=value, message=text)


def _enough(parity: Parity, limit: float) -> str:
    """About how many rows would decide it, if they went on like these: the width falls with 1/√n."""
    assert parity.drop_interval is not None
    assert parity.metric_drop is not None
    low, high = parity.drop_interval
    margin = limit - parity.metric_drop
    width = high - parity.metric_drop if margin > 0 else parity.metric_drop - low
    if abs(margin) <= width / _MOST_TIMES or not parity.rows:
        return ""
    return f"; about {math.ceil(parity.rows * (width / margin) ** 2)} would do"


def _placement_gate(evidence: Evidence, tolerance: Tolerance) -> Gate | None:
    name, limit, placement = "placement", tolerance.placement, evidence.placement
    if limit is None:
        return None
    if placement is None and evidence.not_run:
        return _not_run(name, limit, evidence.not_run)
    if placement is None or placement.share is None:
        return None  # the runtime does not tell what it executes: a note in the manifest says so
    gate = _at_least(name, limit, placement.share, f"of the MACs in {placement.precision}", "")
    return _something(gate)


def _weights_gate(evidence: Evidence, tolerance: Tolerance) -> Gate | None:
    """What a weights-only target promises: a small file."""
    limit, share = tolerance.integer_weights, evidence.integer_weights
    if limit is None or share is None:
        return None
    return _something(_at_least("integer-weights", limit, share, "of the weights are integers", ""))


def _something(gate: Gate | None) -> Gate | None:
    """Nothing at all is not what was asked for, however much was left out on purpose."""
    if gate is None or gate.value:
        return gate
    return replace(gate, verdict=Verdict.FAIL)
