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


def align(a: Form, b: Form, inputs: Mapping[str, Array]) -> tuple[Anchor, ...]:
    """The tensors that ``a`` and ``b`` share, in ``b``'s order of execution."""
    seen = Pass(inputs=inputs, a=a.free(inputs), b=b.free(inputs))
    pairs = _by_name(a, b) | _by_position(a, b)
    anchors = {
        layer.tensor: anchor
        for layer in b.layers
        if layer.op != INPUT
        and layer.tensor in pairs
        and (anchor := _anchor(pairs[layer.tensor], layer, seen)) is not None
    }
    anchors |= _by_value(a, b, seen, anchors)
    anchors = _doubted(a, b, seen, anchors)
    return tuple(anchors[layer.tensor] for layer in b.layers if layer.tensor in anchors)


def given(anchors: Mapping[str, Anchor], seen: Pass) -> dict[str, Array]:
    """What ``b``'s layers are fed with: ``a``'s values in ``b``'s layout."""
    return {
        name: anchor.view.forward(seen.a[anchor.a.tensor], seen.b[name].shape)
        for name, anchor in anchors.items()
    }


def _by_name(a: Form, b: Form) -> dict[str, Layer]:
    exact = {layer.tensor: layer for layer in a.layers}
    stored = {name: layer for layer in a.layers if layer.bits for name in layer.names}
    taken = {name for layer in b.layers for name in layer.names}
    found: dict[str, Layer] = {}
    for layer in b.layers:
        for name in layer.names:
            match = (stored.get(name) if layer.bits else None) or exact.get(name)
            if match is not None:
                found[layer.tensor] = _behind_clip(match, exact, taken) if layer.bits else match
                break
    last = {layer.module: layer for layer in b.layers if not layer.bits}
    for layer in a.layers:
        if layer.op == MODULE and layer.module in last:
            found.setdefault(last[layer.module].tensor, layer)
    return found


def _behind_clip(match: Layer, exact: Mapping[str, Layer], taken: set[str]) -> Layer:
    """Integers that end where a Relu does stand for the Relu's output."""
    while match.activated and match.activated not in taken and match.activated in exact and not match.bits:
        match = exact[match.activated]
    return match


def _by_position(a: Form, b: Form) -> dict[str, Layer]:
    exact = {layer.tensor: layer for layer in a.layers}
    pairs = zip(a.outputs, b.outputs, strict=False)
    return {theirs: exact[ours] for ours, theirs in pairs if ours in exact}


def _anchor(match: Layer, layer: Layer, seen: Pass) -> Anchor | None:
    if match.tensor not in seen.a or layer.tensor not in seen.b:
        return None
    value, other = seen.a[match.tensor], seen.b[layer.tensor]
    if not other.size or other.dtype.kind != "f":
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


def _by_value(a: Form, b: Form, seen: Pass, known: Mapping[str, Anchor]) -> dict[str, Anchor]:
    """Layers that no name leads to, as far as both forms still agree."""
    used = {anchor.a.tensor for anchor in known.values()}
    least = _least(a, b)
    candidates = [layer for layer in a.layers if layer.tensor not in used and layer.tensor in seen.a]
    found = {}
    for layer in b.layers:
        if layer.op != INPUT and layer.tensor not in known and layer.tensor in seen.b:
            best = _nearest(candidates, layer, (seen.b[layer.tensor], least), seen)
            if best is not None:
                found[layer.tensor] = best
    return found


def _least(a: Form, b: Form) -> float:
    """Agreement in dB from which values speak for themselves."""
    return _SAME_DB if any(layer.bits for form in (a, b) for layer in form.layers) else _SAME_FLOAT_DB


def _nearest(candidates: list[Layer], layer: Layer, wanted: tuple[Array, float], seen: Pass) -> Anchor | None:
    """The tensor that the wanted value agrees with to so many dB; constants agree with anything, and have none."""
    value, least = wanted
    power = float(np.square(value, dtype=np.float64).sum())
    if value.dtype.kind != "f" or not np.isfinite(power) or value.size < 2 or np.ptp(value) == 0:
        return None
    best, score = None, least
    for candidate in candidates:
        other = seen.a[candidate.tensor]
        if other.size != value.size or other.dtype.kind != "f":
            continue
        theirs = float(np.square(other, dtype=np.float64).sum())
        if not np.isfinite(theirs) or abs(theirs - power) > 0.2 * power:
            continue
        for way in views(other.shape, value.shape):
            figure = alike(way.forward(other, value.shape), value)
            if figure > score:
                best, score = Anchor(a=candidate, b=layer, view=way), figure
    return best


def _doubted(a: Form, b: Form, seen: Pass, anchors: dict[str, Anchor]) -> dict[str, Anchor]:
    """Correct or drop pairs that disagree for another reason than a wrong layer."""
    kept = dict(anchors)
    own = b.forced(seen.inputs, given(kept, seen))
    doubtful = [name for name, figure in _figures(kept, seen, own).items() if figure < _DOUBTFUL_DB]
    for name in doubtful:
        known = [layer for layer in a.layers if layer.tensor in seen.a]
        better = _nearest(known, kept[name].b, (own[name], _least(a, b)), seen)
        if better is not None and better.a.tensor != kept[name].a.tensor:
            kept[name] = better
            continue
        if name in b.outputs:
            continue
        without = {n: anchor for n, anchor in kept.items() if n != name}
        if _explains(kept, without, seen, b):
            kept = without
    return kept


def _explains(kept: Mapping[str, Anchor], without: Mapping[str, Anchor], seen: Pass, b: Form) -> bool:
    """Whether everything behind agrees once a tensor is left alone: then it never was a counterpart."""
    before = _figures(without, seen, b.forced(seen.inputs, given(kept, seen)))
    after = _figures(without, seen, b.forced(seen.inputs, given(without, seen)))
    touched = [n for n in without if before[n] != after[n]]
    return bool(touched) and all(after[n] > max(_SAME_DB, before[n] - 3.0) for n in touched)


def _figures(anchors: Mapping[str, Anchor], seen: Pass, own: Mapping[str, Array]) -> dict[str, float]:
    """Local signal to noise by tensor, in dB."""
    return {
        name: alike(anchor.view.forward(seen.a[anchor.a.tensor], own[name].shape), own[name])
        for name, anchor in anchors.items()
    }
