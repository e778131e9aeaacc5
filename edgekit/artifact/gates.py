"""Which limits an artifact must keep, and whether it does: pass, fail, unproven, not run, or shown only.

docs/gates.md has the policy. What is statistical (agreement, the task's metric) passes where a loss of twice its limit
would have been seen with 95 % on these rows. It fails where it is measured beyond its limit, and is unproven between.
Of example and random inputs nothing statistical is claimed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from edgekit.artifact import proof
from edgekit.artifact.limits import Limits
from edgekit.artifact.masks import LIKELY, LIKELY_OVERLAP
from edgekit.artifact.parity import UNSEEN
from edgekit.artifact.proof import apart
from edgekit.artifact.rollout import Rollout, rollout_gates
from edgekit.artifact.rounding import beside_rounding
from edgekit.artifact.summary import size
from edgekit.types import (
    HALF_LARGEST,
    Coverage,
    Gate,
    HalfRange,
    Measurement,
    Parity,
    Placement,
    Tolerance,
    Verdict,
)

GRAPH = "graph"
"""The gate that stands in for a run: what ran needs it no more."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What was found out about one artifact. ``not_run`` says why it could not be run, if so; ``graph`` is then the
    ONNX graph that its engine is made of, in ONNX Runtime, or ``graph_wrong`` says what no numbers can, or
    ``graph_not_run`` why it did not run. ``asked``: the share of the MACs that its files ask for in the target's
    precision, more than which nothing that runs them does. ``resting``: inputs that may be states which nobody named,
    with the outputs that could be the next ones."""

    parity: Parity | None = None
    placement: Placement | None = None
    integer_weights: float | None = None
    half: HalfRange | None = None
    coverage: Coverage | None = None
    example: Coverage | None = None
    rollout: Rollout | None = None
    resting: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    size_bytes: int | None = None
    measurement: Measurement | None = None
    not_run: str = ""
    graph: Parity | None = None
    graph_not_run: str = ""
    graph_wrong: str = ""
    asked: float | None = None


def gates(evidence: Evidence, tolerance: Tolerance, limits: Limits | None = None) -> tuple[Gate, ...]:
    """Every gate that applies, in a fixed order. A gate whose value is missing is ``not-run``.

    ``limits`` are the user's: they are in place of ``tolerance``'s.
    """
    limits = limits or Limits()
    tolerance = limits.applied(tolerance)
    given = "metric_drop" in limits.tolerance
    found = [*_parity_gates(evidence, tolerance, given=given), _placement_gate(evidence, tolerance)]
    found += [_weights_gate(evidence, tolerance), _range_gate(evidence), _coverage_gate(evidence, tolerance)]
    found += [_example_gate(evidence, tolerance)]
    found += rollout_gates(evidence.rollout, tolerance, evidence.resting)
    measured, why = evidence.measurement, evidence.not_run
    latency, memory = (measured.p50_ms, measured.peak_memory) if measured else (None, None)
    found += [
        _fits("size", limits.size_bytes, evidence.size_bytes, why),
        _at_most("latency", limits.latency_ms, latency, "ms p50", why),
        _fits("memory", limits.memory_bytes, memory, why),
        _graph_gate(evidence, tolerance),
    ]
    return tuple(gate for gate in found if gate is not None)


def failed(found: Sequence[Gate]) -> tuple[str, ...]:
    """The names of the gates that failed."""
    return tuple(g.name for g in found if g.verdict is Verdict.FAIL)


def _parity_gates(evidence: Evidence, tolerance: Tolerance, *, given: bool) -> list[Gate | None]:
    parity, why = evidence.parity, evidence.not_run
    tolerance = beside_rounding(tolerance, parity)
    return [
        _finite(parity, why),
        _at_least("snr", tolerance.snr_db, parity.snr_db if parity else None, "dB", why),
        _slices(parity, tolerance.slice_limit, why),
        _low_samples(parity, tolerance.sample_limit, why),
        _integers(parity, tolerance.integer_agreement),
        _at_most(
            "relative-error", tolerance.relative_error, parity.relative_error if parity else None, "", why
        ),
        _agreement(parity, tolerance.top1_agreement, why),
        _overlapping("boxes", parity, tolerance.box_limit),
        _overlapping("masks", parity, tolerance.mask_limit),
        _drop(parity, tolerance.metric_drop, why, given=given),
    ]


def _not_run(name: str, limit: float | None, why: str) -> Gate:
    return Gate(name=name, verdict=Verdict.NOT_RUN, limit=limit, message=why or "it was not measured")


def _at_least(name: str, limit: float | None, value: float | None, unit: str, why: str) -> Gate | None:
    if limit is None:
        return None
    if value is None:
        return _not_run(name, limit, why)
    good = value >= limit
    shown, wanted = apart(value, limit)
    message = f"{shown} {unit}".strip() + f", at least {wanted} wanted"
    verdict = Verdict.PASS if good else Verdict.FAIL
    return Gate(name=name, verdict=verdict, limit=limit, value=value, message=message)


def _at_most(name: str, limit: float | None, value: float | None, unit: str, why: str) -> Gate | None:
    if limit is None:
        return None
    if value is None:
        return _not_run(name, limit, why)
    good = value <= limit
    shown, wanted = apart(value, limit)
    message = f"{shown} {unit}".strip() + f", at most {wanted} wanted"
    verdict = Verdict.PASS if good else Verdict.FAIL
    return Gate(name=name, verdict=verdict, limit=limit, value=value, message=message)


def _fits(name: str, limit: int | None, value: int | None, why: str) -> Gate | None:
    """Bytes against the most that is wanted."""
    gate = _at_most(name, limit, value, "", why)
    if gate is None or limit is None or value is None:
        return gate
    wanted = f"{size(limit)} ({limit:,} bytes)" if size(limit) == size(value) else size(limit)
    return replace(gate, message=f"{size(value)} ({value:,} bytes), at most {wanted} wanted")


def _finite(parity: Parity | None, why: str) -> Gate:
    if parity is None:
        return _not_run("finite", 0, why)
    verdict = Verdict.FAIL if parity.nonfinite else Verdict.PASS
    message = f"{parity.nonfinite} values are NaN, or infinite on one side only" if parity.nonfinite else ""
    unseen = [name for name, figures in parity.per_output.items() if UNSEEN in figures]
    if verdict is Verdict.PASS and unseen:
        verdict = Verdict.UNPROVEN
        message = (
            f"{', '.join(unseen)} gave nothing but infinities: no value could be compared; other inputs tell"
        )
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


def _integers(parity: Parity | None, limit: float) -> Gate | None:
    """Class indices, token ids and flags have no noise: they are equal or they are wrong."""
    if parity is None or parity.integer_agreement is None:
        return None
    share = proof.Share(value=parity.integer_agreement, rows=parity.integer_rows, what="integers")
    if parity.data in proof.NOT_DATA:  # judged as parity is: as measured, for what was run
        return proof.exact("integers", share, limit, proof.inputs(parity))
    return proof.agreement("integers", share, limit)


def _agreement(parity: Parity | None, limit: float | None, why: str) -> Gate | None:
    """Rows whose highest score is the same."""
    name = "top1-agreement"
    if limit is None or (parity is not None and parity.top1_agreement is None):
        return None
    if parity is None or parity.top1_agreement is None:
        return _not_run(name, limit, why)
    share = proof.Share(value=parity.top1_agreement, rows=parity.agreement_rows or parity.rows, what="rows")
    if parity.data in proof.NOT_DATA:
        return proof.shown(name, share, limit, proof.inputs(parity), judged=parity.data == "golden")
    if (
        parity.noise and parity.data == "calibration"
    ):  # a network's scores of noise hardly differ from each other
        return proof.shown(name, share, limit, f"{proof.inputs(parity)} of noise", judged=False)
    return proof.agreement(name, share, limit)


def _overlapping(name: str, parity: Parity | None, limit: float) -> Gate | None:
    """A detector's boxes, or masks, of a picture as a whole."""
    if parity is None:
        return None
    value, rows = (parity.boxes, parity.box_rows) if name == "boxes" else (parity.masks, parity.mask_rows)
    if value is None:
        return _likely_masks(parity, limit) if name == "masks" else None
    share = proof.Share(value=value, rows=rows, what=name)
    if parity.data in proof.NOT_DATA:
        return proof.shown(name, share, limit, proof.inputs(parity), judged=parity.data == "golden")
    return proof.agreement(name, share, limit)


def _likely_masks(parity: Parity, limit: float) -> Gate | None:
    """Of maps that nobody calls masks and that are lost as such: they may be signals, so this is no failure."""
    found = {n: f[LIKELY] for n, f in parity.per_output.items() if f.get(LIKELY, 1.0) < LIKELY_OVERLAP}
    if not found or parity.data in proof.NOT_DATA:
        return None
    name = min(found, key=lambda n: found[n])
    message = (
        f"{name}: what is above 0 overlaps with the source's by {proof.percent(found[name])} "
        "(intersection over union); if these are logits of a mask, --task segmentation judges it"
    )
    return Gate(name="masks", verdict=Verdict.UNPROVEN, limit=limit, value=found[name], message=message)


def _drop(parity: Parity | None, limit: float | None, why: str, *, given: bool) -> Gate | None:
    """The loss of the task's metric."""
    name = "metric-drop"
    if limit is None or (parity is not None and parity.reference_metric is None):
        return None
    if parity is None:
        return _not_run(name, limit, why)
    return proof.drop(name, parity, limit, given=given)


def _placement_gate(evidence: Evidence, tolerance: Tolerance) -> Gate | None:
    name, limit, placement = "placement", tolerance.placement, evidence.placement
    if limit is None:
        return None
    if placement is None and evidence.not_run:
        return _too_little_asked(evidence, limit) or _not_run(name, limit, evidence.not_run)
    if placement is None or placement.share is None:
        return None  # the runtime does not tell what it executes: a note in the manifest says so
    gate = _something(_part(name, limit, placement.share, f"of the MACs in {placement.precision}"))
    if not placement.share and not any(
        f.share for f in placement.fallbacks
    ):  # what had products would be there
        message = (
            f"the model has no layer to compute in {placement.precision}: no convolution, no product of matrices, "
            "and what it has was left in float; build it in fp32"
        )
        return replace(gate, message=message)
    return gate


def _too_little_asked(evidence: Evidence, limit: float) -> Gate | None:
    """Of what could not be run: files that ask for too little run as too little everywhere."""
    if evidence.asked is None:
        return None
    gate = _something(_part("placement", limit, evidence.asked, "of the MACs is all that its graph asks for"))
    return gate if gate.verdict is Verdict.FAIL else None


def _graph_gate(evidence: Evidence, tolerance: Tolerance) -> Gate | None:
    """Of what could not be run: a graph that computes something else makes no engine that does not."""
    name, parity = GRAPH, evidence.graph
    if evidence.graph_wrong:
        message = f"the ONNX that ships, in ONNX Runtime: {evidence.graph_wrong}"
        return Gate(name=name, verdict=Verdict.FAIL, limit=tolerance.snr_db, message=message)
    if parity is None:
        why = f"ONNX Runtime did not run its graph, either: {evidence.graph_not_run}"
        return _not_run(name, tolerance.snr_db, why) if evidence.graph_not_run else None
    asked = beside_rounding(tolerance, parity)
    found = [
        _finite(parity, ""),
        _at_least("snr", asked.snr_db, parity.snr_db, "dB", ""),
        _slices(parity, asked.slice_limit, ""),
        _low_samples(parity, asked.sample_limit, ""),
        _at_most("relative-error", asked.relative_error, parity.relative_error, "", ""),
        _integers(parity, asked.integer_agreement),
        _agreement(parity, asked.top1_agreement, ""),
        _overlapping("boxes", parity, asked.box_limit),
        _overlapping("masks", parity, asked.mask_limit),
    ]
    wrong = [g for g in found if g is not None and g.verdict is Verdict.FAIL]
    said = "; ".join(f"{g.name}: {g.message}" for g in wrong) or f"{parity.snr_db:.1f} dB"
    return Gate(
        name=name,
        verdict=Verdict.FAIL if wrong else Verdict.PASS,
        limit=asked.snr_db,
        value=parity.snr_db,
        message=f"the ONNX that ships, in ONNX Runtime on {proof.inputs(parity)}: {said}",
    )


def _weights_gate(evidence: Evidence, tolerance: Tolerance) -> Gate | None:
    """What a weights-only target promises: a small file."""
    limit, share = tolerance.integer_weights, evidence.integer_weights
    if limit is None or share is None:
        return None
    return _something(_part("integer-weights", limit, share, "of the weights are integers"))


def _range_gate(evidence: Evidence) -> Gate | None:
    """Of a float16 target: nothing that is computed in float16 may leave its range, wherever the artifact runs."""
    if (half := evidence.half) is None:
        return None
    message = f"the largest activation in float16 is {half.left:,.0f} ({half.left_tensor}), on {half.samples} samples"
    if half.kept:
        message += f"; {half.tensor} reaches {half.largest:,.0f}: {len(half.kept)} nodes stay in float32"
    verdict = Verdict.PASS if half.left <= HALF_LARGEST else Verdict.FAIL
    return Gate(name="range", verdict=verdict, limit=HALF_LARGEST, value=half.left, message=message)


def _coverage_gate(evidence: Evidence, tolerance: Tolerance) -> Gate | None:
    """Whether calibration saw what evaluation holds: of each activation, the variance that its range leaves."""
    limit, worst = tolerance.coverage, evidence.coverage
    if limit is None or worst is None:
        return None
    value = 1.0 - worst.uncovered
    keeps, wanted = apart(value, limit, digits=3)
    message = (
        f"{worst.tensor}: {worst.outside:.2%} of its values on {worst.samples} evaluation samples lie outside the "
        f"calibrated {worst.low:.3g} to {worst.high:.3g} (up to {worst.seen_low:.3g} and {worst.seen_high:.3g}); that "
        f"range keeps {keeps} of its variance, at least {wanted} wanted"
    )
    verdict = Verdict.PASS if value >= limit else Verdict.FAIL
    return Gate(name="coverage", verdict=verdict, limit=limit, value=value, message=message)


def _example_gate(evidence: Evidence, tolerance: Tolerance) -> Gate | None:
    """Whether calibration saw what the source's example inputs hold, where there are no evaluation samples. Only what
    it did not see says something, and not which of the two is wrong."""
    limit, worst = tolerance.coverage, evidence.example
    if limit is None or worst is None or 1.0 - worst.uncovered >= limit:
        return None
    message = (
        f"{worst.tensor}: {worst.outside:.2%} of its values on the source's example inputs lie outside the calibrated "
        f"{worst.low:.3g} to {worst.high:.3g} (up to {worst.seen_low:.3g} and {worst.seen_high:.3g}); unproven: the "
        "calibration samples or the example inputs are not what the model will meet; --eval DATA tells"
    )
    return Gate(
        name="example", verdict=Verdict.UNPROVEN, limit=limit, value=1.0 - worst.uncovered, message=message
    )


def _part(name: str, limit: float, share: float, what: str) -> Gate:
    """A part of a whole against the least that is wanted."""
    verdict = Verdict.PASS if share >= limit else Verdict.FAIL
    message = f"{proof.percent(share, limit)} {what}, at least {proof.percent(limit, share)} wanted"
    return Gate(name=name, verdict=verdict, limit=limit, value=share, message=message)


def _something(gate: Gate) -> Gate:
    """Nothing at all is not what was asked for, however much was left out on purpose."""
    if gate.value:
        return gate
    message = f"{gate.message}; nothing at all is not what was asked for"
    return replace(gate, verdict=Verdict.FAIL, message=message)
