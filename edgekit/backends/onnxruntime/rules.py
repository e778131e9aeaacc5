"""What ONNX Runtime computes on integers on x86."""

from __future__ import annotations

from edgekit.quantize.rules import CARRIERS, INTEGER, SAME_SCALE, UNIT, OpRule, Recurrent, Rules

_ORT = Rules(
    name="onnxruntime-x86",
    embedding="rows",
    recurrent=Recurrent.WIDENED,
    ops={
        "Conv": OpRule(force=True, produces_integer=True, constant=True),
        # MatMulIntegerToFloat: the product of integers leaves as float, without a round trip.
        "Gemm": OpRule(force=True, propagates=False, constant=True),
        "MatMul": OpRule(force=True, propagates=False),
        **dict.fromkeys(("Add", "Mul", "AveragePool", "GlobalAveragePool", "Concat", "LeakyRelu"), INTEGER),
        "Sigmoid": OpRule(produces_integer=True, fixed=UNIT),
        "Relu": INTEGER,
        "Clip": INTEGER,
        **dict.fromkeys((*CARRIERS, "Resize"), SAME_SCALE),
    },
)

RULES = {_ORT.name: _ORT}
