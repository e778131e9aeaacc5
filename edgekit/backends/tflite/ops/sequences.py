"""Sequences of tensors. TFLite has none: the compiler keeps them as lists while it lowers, so they have to be gone
by the end, and their lengths known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgekit.backends.tflite.builder import Builder
from edgekit.backends.tflite.ir import INT64
from edgekit.backends.tflite.ops.control import stack
from edgekit.backends.tflite.ops.shape import concat
from edgekit.backends.tflite.registry import Refusal, Rule, op
from edgekit.backends.tflite.view import Items, View


@op("SequenceEmpty", since=11, rule=Rule.ANY)
def sequence_empty(g: Builder, *, dtype: int = 1) -> View:
    """A list without items."""
    del g, dtype
    return Items.of_views(())


@op("SequenceConstruct", since=11, rule=Rule.ANY)
def sequence_construct(g: Builder, *items: View) -> View:
    """A list."""
    del g
    return Items.of_views(items)


@op("SequenceInsert", since=11, rule=Rule.ANY)
def sequence_insert(g: Builder, sequence: View, item: View, position: View | None = None) -> View:
    """A list with one more item."""
    items = list(_items(sequence))
    at = len(items) if position is None else _position(g, position, len(items) + 1)
    return Items.of_views((*items[:at], item, *items[at:]))


@op("SequenceErase", since=11, rule=Rule.ANY)
def sequence_erase(g: Builder, sequence: View, position: View | None = None) -> View:
    """A list with one item less."""
    items = list(_items(sequence))
    items.pop(-1 if position is None else _position(g, position, len(items)))
    return Items.of_views(items)


@op("SequenceAt", since=11, rule=Rule.ANY)
def sequence_at(g: Builder, sequence: View, position: View) -> View:
    """One of the list's items."""
    items = _items(sequence)
    return items[_position(g, position, len(items))]


@op("SequenceLength", since=11, rule=Rule.ANY)
def sequence_length(g: Builder, sequence: View) -> View:
    """Known: a constant."""
    return View.of(g.constant(np.asarray(len(_items(sequence))), INT64))


@op("ConcatFromSequence", since=11, rule=Rule.ANY)
def concat_from_sequence(g: Builder, sequence: View, *, axis: int, new_axis: int = 0) -> View:
    """One CONCATENATION."""
    items = [g.dequantize(v) for v in _items(sequence)]
    if not items:
        raise Refusal("an empty sequence put together")
    return stack(g, items, axis) if new_axis else concat(g, *items, axis=axis)


def _items(view: View) -> Sequence[View]:
    if not isinstance(view, Items):
        raise Refusal("a sequence that is not made within the graph")
    return view.items


def _position(g: Builder, position: View, count: int) -> int:
    at = g.known_int(position, "a position that is computed at run time")
    if not -count <= at < count:
        raise Refusal(f"position {at} of a sequence of {count}")
    return at % count
