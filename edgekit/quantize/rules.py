"""Placement tables: for each runtime, what it computes on integers and what it expects around an operator.

The tables are data. A scheme names one by ``Scheme.rules``. What is not in a table stays float.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from edgekit.errors import UnknownNameError


@dataclass(frozen=True, kw_only=True)
class OpRule:
    """How one operator is treated.

    ``force``: worth quantizing whatever comes before; otherwise it follows: it is quantized where all of
    its inputs come from integers. ``writes``: its kernel always stores integers, so its output gets Q/DQ
    even if only float operators read it. ``feeds``: operators behind it may follow. ``moves``: output
    and input share one scale. ``fixed``: the output's range, whatever was calibrated; its scale is
    ``(high - low) / 2**bits``, as TFLite's kernels insist. ``sum``: a
    residual addition that runtimes fuse into one of its convolutions, whose output stays unquantized.
    ``constant``: the operator is quantized only with constant weights in its second input. ``symmetric``:
    without constant weights, both inputs have to be INT8 with zero point 0. ``centred``: without constant
    weights the second input has to have zero point 0; what it shares a scale with then has it, too, so that
    nothing is rounded twice.
    """

    force: bool = False
    writes: bool = False
    feeds: bool = True
    moves: bool = False
    sum: bool = False
    constant: bool = False
    symmetric: bool = False
    centred: bool = False
    fixed: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Rules:
    """A runtime's table. ``requantize_moves``: operators that move values need Q/DQ behind them too.
    ``whole``: everything that can be is quantized, from the graph's inputs to its outputs; otherwise only
    what lies between the operators worth it.

    ``embedding`` says how large constant tables read by Gather are stored: ``rows`` (INT8 with a scale a
    row) or ``float``. ``hybrid``: a fully connected layer whose result only float operators read keeps integer
    weights alone; the runtime quantizes its input anew on every run, row by row, and gives floats. A static
    result would be rounded to a scale for the whole tensor only to be dequantized at once, which is where
    transformers lose most: the residual stream has a few channels that are far larger than the rest.
    ``int16``: single layers can have INT16 activations among INT8 ones.
    """

    name: str
    ops: Mapping[str, OpRule]
    requantize_moves: bool = True
    whole: bool = False
    embedding: str = "float"
    hybrid: bool = False
    int16: bool = False


_MOVES = (
    "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Split", "MaxPool", "Identity",
    "DepthToSpace", "SpaceToDepth", "Expand", "Tile", "Gather", "Pad",
)  # fmt: skip
_MOVE = OpRule(moves=True)
_FOLLOW = OpRule(writes=True)
_UNIT = (0.0, 1.0)

_ORT = Rules(
    name="onnxruntime-x86",
    embedding="rows",
    ops={
        "Conv": OpRule(force=True, writes=True, constant=True),
        # MatMulIntegerToFloat: the product of integers leaves as float, without a round trip.
        "Gemm": OpRule(force=True, feeds=False, constant=True),
        "MatMul": OpRule(force=True, feeds=False),
        **dict.fromkeys(("Add", "Mul", "AveragePool", "GlobalAveragePool", "Concat", "LeakyRelu"), _FOLLOW),
        "Sigmoid": OpRule(writes=True, fixed=_UNIT),
        "Relu": _FOLLOW,
        "Clip": _FOLLOW,
        **dict.fromkeys((*_MOVES, "Resize"), _MOVE),
    },
)

_OPENVINO = Rules(
    name="openvino",
    requantize_moves=False,
    embedding="rows",
    ops={
        **dict.fromkeys(("Conv", "ConvTranspose"), OpRule(force=True, constant=True)),
        "Gemm": OpRule(force=True, feeds=False, constant=True),
        "MatMul": OpRule(force=True, feeds=False, symmetric=True),
        "Add": OpRule(sum=True),
        "Mul": OpRule(),
        **dict.fromkeys(("AveragePool", "GlobalAveragePool", "ReduceMean"), OpRule()),
        **dict.fromkeys((*_MOVES, "Concat"), _MOVE),
    },
)

_TENSORRT = Rules(
    name="tensorrt",
    requantize_moves=False,
    ops={
        **dict.fromkeys(("Conv", "ConvTranspose"), OpRule(force=True, constant=True)),
        "Gemm": OpRule(force=True, feeds=False, constant=True),
        "MatMul": OpRule(force=True, feeds=False),
        "Add": OpRule(sum=True),
        **dict.fromkeys(("AveragePool", "GlobalAveragePool"), OpRule()),
        **dict.fromkeys(
            (*(m for m in _MOVES if m not in ("Gather", "Pad", "Expand", "Tile")), "Concat"), _MOVE
        ),
    },
)

_TFLITE = Rules(
    name="tflite",
    whole=True,
    embedding="rows",
    hybrid=True,
    int16=True,
    ops={
        **dict.fromkeys(("Conv", "ConvTranspose", "Gemm"), OpRule(force=True, writes=True, constant=True)),
        "MatMul": OpRule(force=True, writes=True, centred=True),
        **dict.fromkeys(
            (
                "Add", "Sub", "Mul", "AveragePool", "GlobalAveragePool", "ReduceMean", "ReduceSum", "LeakyRelu",
                "PRelu", "Relu", "Clip",
            ),
            _FOLLOW,
        ),
        "Softmax": OpRule(writes=True, fixed=_UNIT),
        "Sigmoid": OpRule(writes=True, fixed=_UNIT),
        "Tanh": OpRule(writes=True, fixed=(-1.0, 1.0)),
        **dict.fromkeys((*_MOVES, "Concat", "Resize", "Min", "Max", "ReduceMax", "ReduceMin"), _MOVE),
    },
)  # fmt: skip

TABLES: Mapping[str, Rules] = {
    r.name: r
    for r in (
        _ORT,
        _OPENVINO,
        _TENSORRT,
        _TFLITE,
        dataclasses.replace(_TFLITE, name="tflite-int16", hybrid=False),
    )
}
"""Every table by the name that schemes use."""


def table(name: str) -> Rules:
    """The table of a scheme. Raises :class:`UnknownNameError`."""
    if name not in TABLES:
        raise UnknownNameError("placement rules", name, TABLES)
    return TABLES[name]
