"""Element types that LiteRT stores but does not compute with.

Float16, bfloat16 and float64 values are held in float32 from the graph's inputs to its outputs: LiteRT's CPU
kernels take no other float. Narrow and unsigned integers are widened for one operator and narrowed again, so that
they wrap around as ONNX says; operators that only move elements keep the types that their kernels take. Quantized
tensors are none of this module's business.
"""

from __future__ import annotations

from collections.abc import Sequence

import ml_dtypes
import numpy as np
import onnx_ir as ir

from edgekit.backends.tflite.builder import Builder
from edgekit.backends.tflite.ir import FLOAT32, INT8, INT16, INT32, INT64, UINT8, DType
from edgekit.backends.tflite.registry import Refusal, Row, Rule
from edgekit.backends.tflite.view import View

HELD: dict[DType, DType] = {
    np.dtype(np.float16): FLOAT32,
    np.dtype(ml_dtypes.bfloat16): FLOAT32,
    np.dtype(np.float64): FLOAT32,
}
"""Float types and the one that they are held in."""

_COMPUTED: dict[DType, DType] = {
    INT8: INT32,
    UINT8: INT32,
    INT16: INT32,
    np.dtype(np.uint16): INT32,
    np.dtype(np.uint32): INT64,
}
_UINT64 = np.dtype(np.uint64)
_MOVED = frozenset([INT8, UINT8, INT16])
_AS_THEY_ARE = frozenset(
    [
        *("Cast", "CastLike", "BitCast", "Identity", "BitShift", "BitwiseXor"),
        *("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"),
        *("ConvInteger", "QLinearConv", "QLinearMatMul"),
    ]
)
_MOVERS = frozenset(["Concat", "GatherND", "ScatterND", "ScatterElements", "Scatter", "If", "Loop", "Scan"])


def widened(
    g: Builder, node: ir.Node, row: Row, views: Sequence[View | None]
) -> tuple[list[View | None], DType | None]:
    """The inputs in types that the kernels compute with, and the type to narrow results to, if any."""
    if node.op_type in _AS_THEY_ARE and node.domain == "":
        return list(views), None
    moves = row.rule is Rule.SAME or node.op_type in _MOVERS
    out: list[View | None] = []
    narrow: DType | None = None
    for view in views:
        wide = None if view is None or view.quant is not None else _wide(view.dtype, moves)
        if view is None or wide is None:
            out.append(view)
            continue
        # Floats stay held in float32 from input to output; only integers must wrap around like their type.
        if wide != FLOAT32 and narrow is None:
            narrow = view.dtype
        out.append(g.as_type_once(view, wide))
    return out, narrow


def narrowed(
    g: Builder, node: ir.Node, produced: Sequence[View | None], narrow: DType | None
) -> Sequence[View | None]:
    """The handler's results; those that ONNX declares to be of the narrow type are cast back to it."""
    if narrow is None:
        return produced
    out: list[View | None] = []
    for value, view in zip(node.outputs, produced, strict=False):
        declared = value.dtype is None or np.dtype(value.dtype.numpy()) == narrow
        if view is not None and view.quant is None and view.dtype == _COMPUTED[narrow] and declared:
            out.append(g.as_type(view, narrow))
        else:
            out.append(view)
    return out


def _wide(dtype: DType, moves: bool) -> DType | None:
    if dtype in HELD:
        return HELD[dtype]
    if moves and dtype in _MOVED:
        return None
    if dtype == _UINT64 and not moves:
        raise Refusal("LiteRT's kernels do not compute with uint64")
    return _COMPUTED.get(dtype)
