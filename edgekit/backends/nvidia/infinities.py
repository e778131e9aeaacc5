"""Where infinities may be: 0 · inf is NaN, so a product with zeros is no sum of what its ones choose.

Products that stand for something else (see :mod:`edgekit.backends.nvidia.plain`) are written as they are where what
they read is finite, and with its infinities counted apart where that is not known.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum

import numpy as np
import onnx_ir as ir

from edgekit.backends.nvidia import padding
from edgekit.graph.edit import constant
from edgekit.graph.make import Maker

_FINITE = frozenset(
    {
        *("Softmax", "Sigmoid", "HardSigmoid", "Tanh", "Sin", "Cos", "Erf", "Softsign", "Hardmax"),
        *("LayerNormalization", "BatchNormalization", "InstanceNormalization", "GroupNormalization"),
        *("MatMul", "Gemm", "Conv", "ConvTranspose", "DequantizeLinear", "RandomNormal", "RandomUniform"),
        *("LpNormalization", "RMSNormalization", "LSTM", "GRU", "RNN", "Attention"),
    }
)
"""What is bounded, and what makes NaN of an infinity that it reads anyway: no model that works feeds it one."""

_KEEPS = frozenset(
    {
        *(
            "Add",
            "Sub",
            "Mul",
            "Sum",
            "Mean",
            "Max",
            "Min",
            "Neg",
            "Abs",
            "Where",
            "Concat",
            "Clip",
            "Identity",
        ),
        *(
            "Relu",
            "LeakyRelu",
            "PRelu",
            "Elu",
            "Selu",
            "Gelu",
            "Mish",
            "HardSwish",
            "Swish",
            "Softplus",
            "Celu",
        ),
        *(
            "Reshape",
            "Transpose",
            "Squeeze",
            "Unsqueeze",
            "Flatten",
            "Expand",
            "Tile",
            "Slice",
            "Split",
            "Pad",
        ),
        *("Gather", "GatherElements", "GatherND", "ScatterElements", "ScatterND", "Cast", "Trilu", "Resize"),
        *("DepthToSpace", "SpaceToDepth", "ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "MaxPool"),
        *("AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Floor", "Ceil", "Round", "Sign", "Dropout"),
    }
)
"""What gives an infinity only of one that it reads."""

_MOST = 4096
"""Values that are looked at before one."""


class Known(IntEnum):
    """What is known of a tensor's values: an infinite constant reaches ``INFINITE``."""

    FINITE = 0
    UNKNOWN = 1
    INFINITE = 2


def known_of(value: ir.Value | None) -> Known:
    """Whether it may hold infinities, by what it is made of."""
    found, seen, left = Known.FINITE, set[ir.Value](), [value]
    while left and found < Known.INFINITE:
        one = left.pop()
        if one is None or one in seen or (one.dtype is not None and not one.dtype.is_floating_point()):
            continue
        seen.add(one)
        array = constant(one)
        if array is not None:
            found = max(found, Known.FINITE if _all_finite(array) else Known.INFINITE)
            continue
        node = one.producer()
        if node is not None and node.op_type == "ConstantOfShape":
            filled = node.attributes.get("value")
            finite = filled is None or _all_finite(filled.as_tensor().numpy())
            found = max(found, Known.FINITE if finite else Known.INFINITE)
        elif node is None or len(seen) > _MOST or node.op_type not in _FINITE | _KEEPS or node.domain:
            found = max(found, Known.UNKNOWN)
        elif node.op_type == "MaxPool":
            left += padding.largest_of(node)
            if padding.sees_nothing(node):
                found = Known.INFINITE  # what no number is in is written as the largest of none: -inf
        elif node.op_type in _KEEPS:
            left += node.inputs
        # what divides, takes logarithms or powers may make one of finite numbers: not known
    return found


def _all_finite(array: np.ndarray) -> bool:
    return array.dtype.kind not in "fV" or bool(np.isfinite(array.astype(np.float32)).all())


def apart(new: Maker, x: ir.Value, chosen: Callable[[ir.Value], ir.Value]) -> ir.Value:
    """``chosen(x)``, a product of ``x`` with ones and zeros, in which 0 · inf is 0.

    What is finite is multiplied; whether an infinity or a NaN is among what is summed is counted in its own product.
    """
    if known_of(x) is Known.FINITE:
        return chosen(x)
    nothing = new.constant(np.asarray(0, np.float32))

    def among(where: ir.Value, what: float) -> ir.Value:
        count = chosen(new.add("Cast", [where], to=int(ir.DataType.FLOAT)))
        some = new.add("Greater", [count, new.constant(np.asarray(0.5, np.float32))])
        return new.add("Where", [some, new.constant(np.asarray(what, np.float32)), nothing])

    above = new.add("Equal", [x, new.constant(np.asarray(np.inf, np.float32))])
    below = new.add("Equal", [x, new.constant(np.asarray(-np.inf, np.float32))])
    odd = new.add("IsNaN", [x])
    outside = new.add("Or", [new.add("Or", [above, below]), odd])
    found = chosen(new.add("Where", [outside, nothing, x]))
    for where, what in ((above, np.inf), (below, -np.inf), (odd, np.nan)):
        found = new.add("Add", [found, among(where, what)])
    return found
