"""From tallies to a verdict: which layers are off beyond what their arithmetic explains, and where it starts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from edgekit.artifact.energy import decibels
from edgekit.artifact.explorer.overlay import OFF_DB
from edgekit.artifact.slices import SliceTally
from edgekit.diff.align import Anchor, Pass
from edgekit.diff.measure import Stage, Tally
from edgekit.diff.onnx_form import OnnxForm

if TYPE_CHECKING:
    from edgekit.types import Array

EXCESS_DB = OFF_DB
DEQUANTIZED = "_DequantizeLinear"
"""How the quantizer names a tensor behind Q/DQ."""

KEPT = 0.75
"""What the worst slice of the outputs has to keep of its variance; the limit of ``slices`` for INT8 rows."""
_HARMLESS_DB = 15.0
"""A layer that makes less than a thirtieth of the outputs' error is not where it goes wrong."""

_INJECTED = 16


@dataclass(frozen=True, kw_only=True)
class LayerDiff:
    """One layer of a stage. Figures are in dB.

    ``local_db``: its signal to noise when it reads the earlier form's tensors; ``accumulated_db``: when it
    reads its own; ``excess_db``: its error power over what rounding explains; ``alone_db``: the outputs'
    signal to noise if this layer alone were off (for the first suspects). ``cause`` is ``"weights"`` (the
    layer's arithmetic), ``"clipping"``, ``"rounding"`` (its output's integers) or ``"scale"`` (they are too coarse for
    a channel of it), or empty where they are one.
    ``explained``: the share of variance that the worst slice of the outputs would keep with this layer alone off, the
    measure of the ``slices`` gate; only where the outputs lost one.
    """

    order: int
    module: str
    node: str
    op: str
    tensor: str
    local_db: float
    accumulated_db: float
    excess_db: float
    cause: str = ""
    wrong: bool = False
    alone_db: float | None = None
    explained: float | None = None

    @property
    def loses(self) -> bool:
        """Whether this layer alone costs the outputs a channel or column."""
        return self.explained is not None and self.explained < KEPT

    @property
    def place(self) -> str:
        """The module path, else the node."""
        return self.module or self.node or self.tensor


@dataclass(frozen=True, kw_only=True)
class StageDiff:
    """Two consecutive forms. ``layers`` are the most suspicious first; ``output_db`` compares their outputs
    with each other, ``source_db`` the later one's with those of the first form of the walk."""

    before: str
    after: str
    output_db: float
    source_db: float
    layers: tuple[LayerDiff, ...]

    @property
    def wrong(self) -> tuple[LayerDiff, ...]:
        """The layers that are off, the worst first."""
        return tuple(layer for layer in self.layers if layer.wrong)


def summarize(stage: Stage, samples: Iterable[Mapping[str, Array]], source: list[list[Array]]) -> StageDiff:
    """Group the tensors of one layer and weigh what the suspects do to the outputs.

    ``source`` holds the outputs of the walk's first form, one row an input.
    """
    rows = _grouped(stage)
    output = distance(stage.outputs_a, stage.outputs_b)
    loud = [row for row in rows if row.layer.excess_db >= EXCESS_DB][:_INJECTED]
    lossy = _lossy(stage, rows) if _explained(stage.outputs_a, stage.outputs_b) < KEPT else []
    suspects = list({id(row): row for row in (*loud, *lossy)}.values())
    alone = _alone(stage, suspects, list(samples), explain=bool(lossy))
    layers = [_judged(row.layer, alone.get(row.anchor.b.tensor), output) for row in rows]
    return StageDiff(
        before=stage.a.title,
        after=stage.b.title,
        output_db=output,
        source_db=distance(source, stage.outputs_b),
        layers=tuple(sorted(layers, key=lambda layer: (not layer.loses, not layer.wrong))),
    )


def _lossy(stage: Stage, rows: Sequence[_Row]) -> list[_Row]:
    """The layers that by themselves lose a slice of their own output, the worst first."""
    kept = {
        anchor.b.tensor: tally.explained for anchor, tally in zip(stage.anchors, stage.tallies, strict=True)
    }
    lost = [row for row in rows if kept[row.anchor.b.tensor] < KEPT]
    return sorted(lost, key=lambda row: kept[row.anchor.b.tensor])[:_INJECTED]


def _explained(one: list[list[Array]], two: list[list[Array]]) -> float:
    """Of the outputs' worst slice, the share of variance that is kept; outputs matched by position."""
    tallies: dict[int, SliceTally] = {}
    for ours, theirs in zip(one, two, strict=True):
        for index, (x, y) in enumerate(zip(ours, theirs, strict=False)):
            if x.size == y.size and x.dtype.kind == "f":
                tally = tallies.setdefault(index, SliceTally())
                tally.add(x.astype(np.float64), y.reshape(x.shape).astype(np.float64))
    return min((w.explained for t in tallies.values() if (w := t.worst()) is not None), default=1.0)


@dataclass(frozen=True, kw_only=True)
class _Row:
    layer: LayerDiff
    anchor: Anchor


def _grouped(stage: Stage) -> list[_Row]:
    """One row a layer: its worst tensor; the most suspicious first, ties in order of execution."""
    worst: dict[tuple[str, str], _Row] = {}
    for order, (anchor, tally) in enumerate(zip(stage.anchors, stage.tallies, strict=True)):
        row = _Row(layer=_described(anchor, tally, order), anchor=anchor)
        key = (row.layer.module, row.layer.node)
        if key not in worst or row.layer.excess_db > worst[key].layer.excess_db:
            worst[key] = row
    return sorted(worst.values(), key=lambda r: (-round(r.layer.excess_db, 1), r.layer.order))


def _described(anchor: Anchor, tally: Tally, order: int) -> LayerDiff:
    a, b = anchor.a, anchor.b
    # Behind Q/DQ a tensor's rounding is a layer of its own; elsewhere it is part of the operator's figure.
    apart = b.tensor.endswith(DEQUANTIZED) or b.op in ("QuantizeLinear", "DequantizeLinear", "QUANTIZE")
    return LayerDiff(
        order=order,
        module=b.owner_module or a.owner_module or b.module or a.module,
        node=b.owner or b.node or b.tensor,
        op=b.op,
        tensor=a.tensor,
        local_db=tally.local_db,
        accumulated_db=tally.accumulated_db,
        excess_db=tally.excess_db,
        cause=_cause(tally, b.bits > 0 and not apart, apart),
    )


def _cause(tally: Tally, mixed: bool, apart: bool) -> str:
    """What makes the error, as far as it can be told apart."""
    if not apart:
        return "" if mixed else "weights"
    return "clipping" if tally.clipped > 0.5 * tally.local else "rounding"


def _judged(layer: LayerDiff, alone: _Alone | None, output: float) -> LayerDiff:
    if alone is None:
        return replace(layer, wrong=layer.excess_db >= EXCESS_DB)
    harmless = alone.db > min(output + _HARMLESS_DB, 190.0)
    judged = replace(layer, alone_db=alone.db, explained=alone.explained)
    wrong = judged.loses or (layer.excess_db >= EXCESS_DB and not harmless)
    return replace(
        judged, wrong=wrong, cause="scale" if judged.loses and layer.cause == "rounding" else layer.cause
    )


@dataclass(frozen=True, kw_only=True)
class _Alone:
    """The outputs with one layer off: signal to noise, and what their worst slice keeps."""

    db: float
    explained: float | None


def _alone(
    stage: Stage, suspects: Sequence[_Row], samples: Sequence[Mapping[str, Array]], *, explain: bool
) -> dict[str, _Alone]:
    """For each suspect the outputs of the earlier form with this one tensor as the later form makes it."""
    a, b = stage.a, stage.b
    if not isinstance(a, OnnxForm) or not suspects:
        return {}
    anchors = {x.b.tensor: x for x in stage.anchors}
    local: dict[str, list[Array]] = {suspect.anchor.b.tensor: [] for suspect in suspects}
    for inputs in samples:
        run = Pass.of(a, b, inputs)
        own = b.forced(inputs, run.injected(anchors))
        for name, values in local.items():
            values.append(anchors[name].view.back(own[name], run.a[anchors[name].a.tensor].shape))
    figures = {}
    for name, values in local.items():  # samples inside: a form keeps the program of one set of tensors
        tensor = anchors[name].a.tensor
        changed = []
        for inputs, value in zip(samples, values, strict=True):
            results = a.forced(inputs, {tensor: value}) | {tensor: value}
            changed.append([results[output] for output in a.outputs])
        figures[name] = _Alone(
            db=distance(stage.outputs_a, changed),
            explained=_explained(stage.outputs_a, changed) if explain else None,
        )
    return figures


def distance(one: Sequence[Sequence[Array]], two: Sequence[Sequence[Array]]) -> float:
    """Signal to noise of outputs, matched by position, in dB."""
    signal = noise = 0.0
    for ours, theirs in zip(one, two, strict=True):
        for x, y in zip(ours, theirs, strict=False):
            if x.size == y.size:  # another shape of the same values: runtimes drop axes of size 1
                s, n = _energies(x, y.reshape(x.shape))
                signal, noise = signal + s, noise + n
    return decibels(signal, noise)


def _energies(true: Array, other: Array) -> tuple[float, float]:
    t, o = true.astype(np.float64), other.astype(np.float64)
    good = np.isfinite(t)
    t = np.where(good, t, 0.0)
    gap = np.where(good & np.isfinite(o), o - t, t)
    return float((t**2).sum()), float(np.where(good, gap**2, 0.0).sum())
