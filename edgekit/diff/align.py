"""Which tensor of one form is which of the other's.

By name where names lead back; by value where they do not, upstream of the first difference. A pair that
does not agree is doubted before a layer is blamed for it: perhaps the name moved to another tensor (a
folded batch norm's), perhaps the tensor has no counterpart (the inside of a fusion).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgekit.diff.forms import INPUT, MODULE, Form, Layer
from edgekit.diff.views import Rescaled, View, alike, likeliest, views

if TYPE_CHECKING:
    from edgekit.types import Array

_DOUBTFUL_DB = 10.0
_SAME_DB, _SAME_FLOAT_DB = 25.0, 50.0
"""What a tensor's counterpart agrees to: with integers about, and in floats, where a product without its small
bias is nearly as near."""


@dataclass(frozen=True, kw_only=True)
class Anchor:
    """A tensor that both forms have."""

    a: Layer
    b: Layer
    view: View


@dataclass(frozen=True, kw_only=True)
class Pass:
    """Both forms' tensors for one input."""

    inputs: Mapping[str, Array]
    a: Mapping[str, Array]
    b: Mapping[str, Array]

    @classmethod
    def of(cls, a: Form, b: Form, inputs: Mapping[str, Array]) -> Pass:
        """Run both forms."""
        return cls(inputs=inputs, a=a.free(inputs), b=b.free(inputs))

    def injected(self, anchors: Mapping[str, Anchor]) -> dict[str, Array]:
        """What ``b``'s layers read instead of their own tensors: ``a``'s values in ``b``'s layout."""
        return {name: self.expected(anchor, self.b[name].shape) for name, anchor in anchors.items()}

    def expected(self, anchor: Anchor, shape: tuple[int, ...]) -> Array:
        """``a``'s values of one tensor as ``b``'s, of ``shape``."""
        return anchor.view.forward(self.a[anchor.a.tensor], shape)


def align(a: Form, b: Form, inputs: Mapping[str, Array]) -> tuple[Anchor, ...]:
    """The tensors that ``a`` and ``b`` share, in ``b``'s order of execution."""
    run = Pass.of(a, b, inputs)
    pairs = _by_name(a, b) | _by_position(a, b)
    anchors = {
        layer.tensor: anchor
        for layer in b.layers
        if layer.op != INPUT
        and layer.tensor in pairs
        and (anchor := _anchor(pairs[layer.tensor], layer, run)) is not None
    }
    anchors |= _by_value(a, b, run, anchors)
    anchors = _without_doubtful(a, b, run, anchors)
    return tuple(anchors[layer.tensor] for layer in b.layers if layer.tensor in anchors)


def _by_name(a: Form, b: Form) -> dict[str, Layer]:
    exact = {layer.tensor: layer for layer in a.layers}
    stored = {name: layer for layer in a.layers if layer.bits for name in layer.names}
    names_of_b = {name for layer in b.layers for name in layer.names}
    pairs: dict[str, Layer] = {}
    for layer in b.layers:
        for name in layer.names:
            match = (stored.get(name) if layer.bits else None) or exact.get(name)
            if match is not None:
                pairs[layer.tensor] = _behind_clip(match, exact, names_of_b) if layer.bits else match
                break
    # A module's output is the last tensor that is made in it: modules have no names for tensors.
    last = {layer.module: layer for layer in b.layers if not layer.bits}
    for layer in a.layers:
        if layer.op == MODULE and layer.module in last:
            pairs.setdefault(last[layer.module].tensor, layer)
    return pairs


def _behind_clip(match: Layer, exact: Mapping[str, Layer], names_of_b: set[str]) -> Layer:
    """Integers that end where a Relu does stand for the Relu's output."""
    while (behind := exact.get(match.activated)) and match.activated not in names_of_b and not match.bits:
        match = behind
    return match


def _by_position(a: Form, b: Form) -> dict[str, Layer]:
    exact = {layer.tensor: layer for layer in a.layers}
    pairs = zip(a.outputs, b.outputs, strict=False)
    return {theirs: exact[ours] for ours, theirs in pairs if ours in exact}


def _anchor(match: Layer, layer: Layer, run: Pass) -> Anchor | None:
    value, other = run.a.get(match.tensor), run.b.get(layer.tensor)
    if value is None or other is None or not other.size or other.dtype.kind != "f":
        return None
    ways = views(value.shape, other.shape)
    return (
        Anchor(a=match, b=layer, view=_noted(match, layer, likeliest(ways, value, other))) if ways else None
    )


def _noted(match: Layer, layer: Layer, view: View) -> View:
    """The view through the factors that the later form states and the earlier one does not."""
    if layer.factors is None or match.factors is not None or view.perm is not None:
        return view
    return Rescaled(axis=layer.factors.axis, factors=layer.factors.values)


def _by_value(a: Form, b: Form, run: Pass, named: Mapping[str, Anchor]) -> dict[str, Anchor]:
    """Layers that no name leads to, as far as both forms still agree."""
    used = {anchor.a.tensor for anchor in named.values()}
    candidates = [layer for layer in a.layers if layer.tensor not in used and layer.tensor in run.a]
    unnamed = [x for x in b.layers if x.op != INPUT and x.tensor not in named and x.tensor in run.b]
    least = _least(a, b)
    nearest = {x.tensor: _nearest(candidates, x, run.b[x.tensor], least, run) for x in unnamed}
    return {tensor: anchor for tensor, anchor in nearest.items() if anchor is not None}


def _least(a: Form, b: Form) -> float:
    """Agreement in dB from which values speak for themselves."""
    return _SAME_DB if any(layer.bits for form in (a, b) for layer in form.layers) else _SAME_FLOAT_DB


def _nearest(candidates: list[Layer], layer: Layer, value: Array, least: float, run: Pass) -> Anchor | None:
    """The tensor that ``value`` agrees with best, by ``least`` dB or more; constants agree with anything, and have
    none."""
    power = float(np.square(value, dtype=np.float64).sum())
    if value.dtype.kind != "f" or not np.isfinite(power) or value.size < 2 or np.ptp(value) == 0:
        return None
    best, score = None, least
    for candidate in candidates:
        other = run.a[candidate.tensor]
        if other.size != value.size or other.dtype.kind != "f":
            continue
        theirs = float(np.square(other, dtype=np.float64).sum())
        # Of the layouts of a tensor none changes its energy: what differs by more than noise needs no trying.
        if not np.isfinite(theirs) or abs(theirs - power) > 0.2 * power:
            continue
        for way in views(other.shape, value.shape):
            figure = alike(way.forward(other, value.shape), value)
            if figure > score:
                best, score = Anchor(a=candidate, b=layer, view=way), figure
    return best


def _without_doubtful(a: Form, b: Form, run: Pass, anchors: dict[str, Anchor]) -> dict[str, Anchor]:
    """Correct or drop pairs that disagree for another reason than a wrong layer."""
    own = b.forced(run.inputs, run.injected(anchors))
    candidates = [layer for layer in a.layers if layer.tensor in run.a]
    for name, figure in _figures(anchors, run, own).items():
        if figure >= _DOUBTFUL_DB:
            continue
        better = _nearest(candidates, anchors[name].b, own[name], _least(a, b), run)
        if better is not None and better.a.tensor != anchors[name].a.tensor:
            anchors = {**anchors, name: better}
        elif name not in b.outputs:
            without = {n: anchor for n, anchor in anchors.items() if n != name}
            anchors = without if _explains(anchors, without, run, b) else anchors
    return anchors


def _explains(anchors: Mapping[str, Anchor], without: Mapping[str, Anchor], run: Pass, b: Form) -> bool:
    """Whether everything behind agrees once a tensor is left alone: then it never was a counterpart."""
    before = _figures(without, run, b.forced(run.inputs, run.injected(anchors)))
    after = _figures(without, run, b.forced(run.inputs, run.injected(without)))
    touched = [n for n in without if before[n] != after[n]]
    return bool(touched) and all(after[n] > max(_SAME_DB, before[n] - 3.0) for n in touched)


def _figures(anchors: Mapping[str, Anchor], run: Pass, own: Mapping[str, Array]) -> dict[str, float]:
    """Local signal to noise by tensor, in dB."""
    return {name: alike(run.expected(anchor, own[name].shape), own[name]) for name, anchor in anchors.items()}
