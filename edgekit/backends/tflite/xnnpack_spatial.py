"""Spatial operators that XNNPACK lacks, out of slices and concatenations: exact, only copies."""

from __future__ import annotations

from collections.abc import Sequence

from ai_edge_litert import schema_py_generated as schema

from edgekit.backends.tflite.builder import Builder
from edgekit.backends.tflite.ir import FLOAT32, INT8, Op, Tensor

CONCAT_LIMIT = 5
_FACTOR_LIMIT = 4
_MARGIN_LIMIT = 4


def mirror_pad(g: Builder, op: Op) -> list[Tensor] | None:
    """Margins of a few rows: a SLICE each, in reverse, on both sides."""
    x, margins = op.inputs[0], op.inputs[1]
    if x is None or margins is None or margins.data is None or x.dtype not in (FLOAT32, INT8):
        return None
    if margins.data.max(initial=0) > _MARGIN_LIMIT:
        return None
    skip = (
        1 if op.options.mode == schema.MirrorPadMode.REFLECT else 0
    )  # whether the outermost row stays single
    for axis, (before, after) in enumerate(margins.data.tolist()):
        size = x.shape[axis]
        first = [g.part(x, axis, range(i + skip, i + skip + 1)) for i in reversed(range(before))]
        last = [g.part(x, axis, range(size - 1 - skip - i, size - skip - i)) for i in range(after)]
        x = concatenated(g, [*first, x, *last], axis)
    return [x]


def resize_nearest(g: Builder, op: Op) -> list[Tensor] | None:
    """Whole factors: every row, then every pixel, beside its own copies."""
    x, out = op.inputs[0], op.outputs[0]
    if x is None or x.dtype not in (FLOAT32, INT8) or op.options.alignCorners:
        return None
    n, height, width, channels = x.shape
    factors = [b // a for a, b in zip((height, width), out.shape[1:3], strict=True)]
    if (height * factors[0], width * factors[1]) != out.shape[1:3] or max(factors) > _FACTOR_LIMIT:
        return None
    rows = g.reshape(x, (n * height, 1, width, channels))
    rows = concatenated(g, [rows] * factors[0], 1)
    pixels = g.reshape(rows, (n * height * factors[0], width, 1, channels))
    pixels = concatenated(g, [pixels] * factors[1], 2)
    return [g.reshape(pixels, out.shape)]


def concatenated(g: Builder, parts: Sequence[Tensor], axis: int) -> Tensor:
    """A tree of concatenations of what XNNPACK takes at once, from the left."""
    parts = list(parts)
    while len(parts) > 1:
        groups = range(0, len(parts), CONCAT_LIMIT)
        parts = [g.concat(parts[i : i + CONCAT_LIMIT], axis) for i in groups]
    return parts[0]
