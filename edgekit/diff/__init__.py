"""Where two models begin to differ: layer by layer, from the source to what the runtime executes.

In come the names of two models and samples; :func:`walk` compares the consecutive forms of a model between them. Every
layer of the later form computes on the earlier form's tensors, so that an error shows in the layer that makes it and in
no other; the free-running error is reported as well. Out go figures by layer, the layer where it starts, and what to
build differently. See docs/diff.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from edgekit.diff.align import align
from edgekit.diff.forms import Form, Layer
from edgekit.diff.measure import measure
from edgekit.diff.report import LayerDiff, StageDiff, summarize
from edgekit.errors import UsageError

if TYPE_CHECKING:
    from edgekit.types import Array

_ABOUT_DB = 3.0

__all__ = ["Form", "Layer", "LayerDiff", "StageDiff", "Walk", "walk"]


@dataclass(frozen=True, kw_only=True)
class Walk:
    """What came of comparing a chain of forms on ``samples`` inputs. ``notes`` say what could not be compared;
    ``compared``: any output of the first is finite; ``reference`` has these outputs, one row an input."""

    stages: tuple[StageDiff, ...]
    samples: int
    notes: tuple[str, ...] = ()
    compared: bool = True
    reference: tuple[tuple[Array, ...], ...] = field(default=(), repr=False)

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
    than two forms, and what the forms' runtimes raise.
    """
    rows = list(samples)
    if len(forms) < 2 or not rows:
        raise UsageError(
            "there is nothing to compare", hint="name two models, and data with at least one sample"
        )
    stages: list[StageDiff] = []
    source: list[list[Array]] = []
    whole = good = 0
    for before, after in pairwise(forms):
        stage = measure(before, after, align(before, after, rows[0]), rows)
        if not stages:
            source = stage.outputs_a
            whole, good = _finite(source)
        stages.append(summarize(stage, rows, source))
    if good < whole:
        left = f"{whole - good} of {whole} outputs of {forms[0].title} are not finite: left out"
        notes = (*notes, left)
    return Walk(
        stages=tuple(stages),
        samples=len(rows),
        notes=tuple(notes),
        compared=good > 0 or not whole,
        reference=tuple(map(tuple, source)),
    )


def _finite(outputs: Sequence[Sequence[Array]]) -> tuple[int, int]:
    """How many floats there are, and how many can be held against anything."""
    floats = [a for row in outputs for a in row if a.dtype.kind == "f"]
    return sum(a.size for a in floats), sum(int(np.isfinite(a).sum()) for a in floats)
