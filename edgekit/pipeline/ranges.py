"""What real data say of ranges before any artifact is made.

The largest activations against float16's range, and what evaluation samples hold that calibration never saw.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgekit.errors import DataError, SourceError
from edgekit.load.data import RANDOM, SampleSet
from edgekit.pipeline import stages
from edgekit.pipeline.stages import BuildContext, Calibrated
from edgekit.types import Coverage, Finding, HalfRange, OnnxModel, Severity

MOST = 64
"""Samples that are looked at, spread over all."""


TOLD = 0.02
"""What an activation may lose of its variance outside the calibrated range before it is told: networks with real
weights, calibrated on 16 samples and more, lose 0.012 at most, on 100 samples 0.0004."""


def covered_by(
    context: BuildContext, model: OnnxModel, calibrated: Calibrated, evaluation: SampleSet | None
) -> tuple[Coverage, ...] | None:
    """The activations on evaluation samples that leave the calibrated ranges, the worst first.

    ``None`` where there are no evaluation samples, where random inputs were calibrated, or where the model cannot run.
    """
    if evaluation is None or RANDOM in (evaluation.origin, calibrated.samples.origin):
        return None
    try:
        return stages.coverage(context, model, calibrated, evaluation.spread(MOST))
    except (SourceError, DataError) as error:
        context.progress.note(f"coverage of the calibrated ranges is not known: {error.message}")
        return None


def worst(covered: tuple[Coverage, ...] | None, names: Sequence[str]) -> Coverage | None:
    """The worst of the activations ``names`` that a target quantizes."""
    if covered is None:
        return None
    known = set(names)
    return next((c for c in covered if c.tensor in known), None)


def told(context: BuildContext, covered: tuple[Coverage, ...] | None) -> tuple[Finding, ...]:
    """The doctor's word on the worst activation, where it is worth one: shown, and for the manifest."""
    first = next(iter(covered or ()), None)
    if first is None or first.uncovered < TOLD:
        return ()
    finding = Finding(
        code="coverage",
        severity=Severity.WARNING,
        tensor=first.tensor,
        message=f"evaluation leaves the calibrated ranges: {first.outside:.2%} of {first.tensor!r} lies outside "
        f"{first.low:.3g} to {first.high:.3g} and reaches {first.seen_low:.3g} and {first.seen_high:.3g}; "
        f"{first.uncovered:.0%} of its variance is lost to that",
        hint="give calibration samples of every kind that the model will meet, rare classes too",
        evidence={"outside": first.outside, "uncovered": first.uncovered},
    )
    context.progress.note(f"calibration {finding.severity}: {finding.message}")
    return (finding,)


def half_range(context: BuildContext, model: OnnxModel, samples: SampleSet) -> HalfRange | None:
    """The largest activations on what artifacts are verified on; ``None`` for a graph that cannot be observed."""
    try:
        found = stages.half_range(context, model, stages.calibrate(context, model, samples.spread(MOST)))
    except (SourceError, DataError) as error:
        context.progress.note(f"float16: the range of the activations is not known: {error.message}")
        return None
    if found.kept:
        context.progress.note(
            f"float16: {found.tensor} reaches {found.largest:,.0f}, beyond half of 65,504: "
            f"{len(found.kept)} nodes stay in float32"
        )
    return found
