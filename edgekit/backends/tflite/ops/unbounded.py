"""Operators whose result has a size that depends on the data.

The compiler writes files with fixed shapes: what an app allocates, and what the delegates need. LiteRT could
give some of these results a size at run time, but everything behind them would leave the delegate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgekit.backends.tflite.builder import Builder, Type
from edgekit.backends.tflite.registry import Refusal, Rule, op
from edgekit.backends.tflite.view import View


def _refuse(what: str) -> NoReturn:
    raise Refusal(
        f"{what}: the size of the result depends on the data, and files are compiled for fixed shapes"
    )


@op("NonZero", since=9)
def non_zero(g: Builder, x: View) -> View:
    """Refused."""
    del g, x
    _refuse("the indices of what is not zero")


@op("Unique", since=11)
def unique(g: Builder, x: View, *, axis: int | None = None, sorted: int = 1) -> View:
    """Refused."""
    del g, x, axis, sorted
    _refuse("the different values")


@op("NonMaxSuppression", since=10)
def non_max_suppression(g: Builder, *inputs: View, center_point_box: int = 0) -> View:
    """Refused: cut the graph before it and let the app select boxes."""
    del g, inputs, center_point_box
    _refuse("the boxes that are left")


@op("Compress", since=9, rule=Rule.SAME)
def compress(g: Builder, x: View, condition: View, *, axis: int | None = None) -> View:
    """GATHER where the condition is known."""
    if condition.const is None:
        _refuse("a selection computed at run time")
    index = np.flatnonzero(condition.const)
    if axis is None:
        x, axis = g.reshape_view(x, (x.size,)), 0
    place = x.position(axis)
    shape: Sequence[int] = [len(index) if i == place else n for i, n in enumerate(x.tensor.shape)]
    kind = Type(x.dtype, x.quant)
    options = schema.GatherOptionsT(axis=place)
    return x.with_tensor(g.emit("GATHER", [x.tensor, g.ints(index)], shape, kind, options))
