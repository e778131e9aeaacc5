"""What real data say of ranges before any artifact is made: the largest activations against float16's range."""

from __future__ import annotations

from edgekit.errors import DataError, SourceError
from edgekit.load.data import SampleSet
from edgekit.pipeline import stages
from edgekit.pipeline.stages import BuildContext
from edgekit.types import HalfRange, OnnxModel

MOST = 64
"""Samples that are looked at, spread over all."""


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
