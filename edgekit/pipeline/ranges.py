"""What real data say of ranges before any artifact is made.

The largest activations against float16's range, and what evaluation samples hold that calibration never saw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgekit.errors import DataError, SourceError
from edgekit.load.data import EXAMPLE, RANDOM, SampleSet, own_example
from edgekit.pipeline import stages
from edgekit.pipeline.stages import BuildContext, Calibrated, Exported
from edgekit.quantize.calibrate.doctor import is_picture, is_placeholder
from edgekit.quantize.calibrate.profile import profile
from edgekit.types import Coverage, Finding, HalfRange, OnnxModel, Severity

MOST = 64
"""Samples that are looked at, spread over all."""


LEFT = 0.25
"""What one picture may lose of an activation's variance: networks with real weights, calibrated on 8 other pictures,
lose 0.09 at most, on 32 0.009; calibrated on values four times too small 0.6 to 1."""

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


@dataclass(frozen=True, kw_only=True)
class OwnExample:
    """The activations on the source's example inputs that leave the calibrated ranges, the worst first.

    ``picture``: the inputs are real beyond doubt.
    """

    covered: tuple[Coverage, ...]
    picture: bool


def beside_example(
    context: BuildContext, model: OnnxModel, calibrated: Calibrated, exported: Exported
) -> OwnExample | None:
    """The source's example inputs against the calibrated ranges.

    ``None`` where random inputs were calibrated, the example was made up to give a shape (one constant, or a picture of
    noise), or the model cannot run.
    """
    if calibrated.samples.origin == RANDOM:
        return None
    example = exported.example_inputs()
    profiles = [profile(name, [array]) for name, array in example.items()]
    floats = [p for p in profiles if p.real]
    if not floats or any(is_placeholder(p) for p in floats):
        return None
    try:
        found = stages.coverage(context, model, calibrated, own_example(example))
    except (SourceError, DataError):
        return None
    return OwnExample(covered=found, picture=all(is_picture(p) for p in floats))


def refuse_example(context: BuildContext, own: OwnExample | None) -> tuple[Finding, ...]:
    """Pictures that leave the calibrated ranges are what the calibration samples are not: :class:`DataError`, unless
    accepted; it is then for the manifest."""
    first = next(iter(own.covered), None) if own is not None and own.picture else None
    if first is None or first.uncovered <= LEFT:
        return ()
    message = f"the source's example inputs leave the calibrated ranges: {_lost(first)}"
    finding = Finding(
        code=EXAMPLE,
        severity=Severity.ERROR,
        tensor=first.tensor,
        message=message,
        hint="give calibration the preprocessing that the example inputs have, or the source an example that is right",
        evidence={"outside": first.outside, "uncovered": first.uncovered},
    )
    if EXAMPLE not in context.options.accept_data:
        raise DataError(
            message, hint=f"{finding.hint}; --accept-data {EXAMPLE} builds with them all the same"
        )
    context.progress.note(f"calibration {finding.severity} ({finding.code}): {finding.message}")
    return (finding,)


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
        message=f"evaluation leaves the calibrated ranges: {_lost(first)}",
        hint="give calibration samples of every kind that the model will meet, rare classes too",
        evidence={"outside": first.outside, "uncovered": first.uncovered},
    )
    context.progress.note(f"calibration {finding.severity}: {finding.message}")
    return (finding,)


def _lost(first: Coverage) -> str:
    return (
        f"{first.outside:.2%} of {first.tensor!r} lies outside {first.low:.3g} to {first.high:.3g} and reaches "
        f"{first.seen_low:.3g} and {first.seen_high:.3g}; {first.uncovered:.0%} of its variance is lost to that"
    )


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
