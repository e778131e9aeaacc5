"""What ONNX Runtime computes on integers on x86."""

from __future__ import annotations

from edgekit.quantize.rules import FOLLOW, MOVE, MOVES, UNIT, OpRule, Rules

_ORT = Rules(
    name="onnxruntime-x86",
    embedding="rows",
    ops={
        "Conv": OpRule(force=True, writes=True, constant=True),
        # MatMulIntegerToFloat: the product of integers leaves as float, without a round trip.
        "Gemm": OpRule(force=True, feeds=False, constant=True),
        "MatMul": OpRule(force=True, feeds=False),
        **dict.fromkeys(("Add", "Mul", "AveragePool", "GlobalAveragePool", "Concat", "LeakyRelu"), FOLLOW),
        "Sigmoid": OpRule(writes=True, fixed=UNIT),
        "Relu": FOLLOW,
        "Clip": FOLLOW,
        **dict.fromkeys((*MOVES, "Resize"), MOVE),
    },
)

RULES = {_ORT.name: _ORT}
