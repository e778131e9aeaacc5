"""Where two models begin to differ: layer by layer, from the source to what the runtime executes.

In come the names of two models and samples; :func:`walk` compares the consecutive forms of a model between them. Every
layer of the later form computes on the earlier form's tensors, so that an error shows in the layer that makes it and in
no other; the free-running error is reported as well. Out go figures by layer, the layer where it starts, and what to
build differently. See docs/diff.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from edgekit.diff.align import align
from edgekit.diff.forms import Form, Layer
from edgekit.diff.measure import measure
from edgekit.diff.report import LayerDiff, StageDiff, summarize
from edgekit.errors import DataError, UsageError

if TYPE_CHECKING:
    from edgekit.types import Array

_ABOUT_DB = 3.0

__all__ = ["Form", "Layer", "LayerDiff", "StageDiff", "Walk", "walk"]


@dataclass(frozen=True, kw_only=True)
class Walk:
    """What came of comparing a chain of forms on ``samples`` inputs. ``notes`` say what could not be compared."""

    stages: tuple[StageDiff, ...]
    samples: int
    notes: tuple[str, ...] = ()

    @property
    def broken(self) -> StageDiff | None:
        """The first stage in which a layer is wrong."""
        return next((stage for stage in self.stages if stage.wrong), None)

    @property
    def starts_at(self) -> LayerDiff | None:
        """The layer to look at first: the worst of the first stage that has a wrong one; of several that are
        about as bad, the first to run. One that costs the outputs a channel goes before those that are only loud."""
        if self.broken is None:
            return None
        if losing := [layer for layer in self.broken.wrong if layer.loses]:
            return min(losing, key=lambda layer: layer.order)
        worst = self.broken.wrong[0].excess_db
        near = [layer for layer in self.broken.wrong if layer.excess_db > worst - _ABOUT_DB]
        return min(near, key=lambda layer: layer.order)

    @property
    def output_db(self) -> float:
        """Signal to noise of the last form's outputs against the first one's."""
        return self.stages[-1].source_db


def walk(forms: Sequence[Form], samples: Iterable[Mapping[str, Array]], notes: Sequence[str] = ()) -> Walk:
    """Compare each form with the one before it.

    ``samples`` are inputs by name, batch axis included. Raises :class:`~edgekit.errors.UsageError` for fewer
    than two forms, :class:`~edgekit.errors.DataError` where no output of the first is finite, and what the forms'
    runtimes raise.
    """
    rows = list(samples)
    if len(forms) < 2 or not rows:
        raise UsageError(
            "there is nothing to compare", hint="name two models, and data with at least one sample"
        )
    stages: list[StageDiff] = []
    source: list[list[Array]] = []
    for before, after in pairwise(forms):
        stage = measure(before, after, align(before, after, rows[0]), rows)
        if not stages:
            source, notes = stage.outputs_a, (*notes, *_not_finite(before, stage.outputs_a))
        stages.append(summarize(stage, rows, source))
    return Walk(stages=tuple(stages), samples=len(rows), notes=tuple(notes))


def _not_finite(form: Form, outputs: Sequence[Sequence[Array]]) -> tuple[str, ...]:
    """What is left out of every figure, as there is nothing to hold it against."""
    floats = [a for row in outputs for a in row if a.dtype.kind == "f"]
    whole, good = sum(a.size for a in floats), sum(int(np.isfinite(a).sum()) for a in floats)
    if whole and not good:
        raise DataError(
            f"no output of {form.title} is finite on these inputs: there is nothing to compare with",
            hint="give inputs that the model is made for (--data), or look at the model itself",
        )
    return (
        (f"{whole - good} of {whole} outputs of {form.title} are not finite: left out",)
        if good < whole
        else ()
    )
