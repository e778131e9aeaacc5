"""What LiteRT computes on integers."""

from __future__ import annotations

from dataclasses import replace

from edgekit.quantize.rules import FOLLOW, MOVE, MOVES, UNIT, OpRule, Rules

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
            FOLLOW,
        ),
        "Softmax": OpRule(writes=True, fixed=UNIT),
        "Sigmoid": OpRule(writes=True, fixed=UNIT),
        "Tanh": OpRule(writes=True, fixed=(-1.0, 1.0)),
        **dict.fromkeys((*MOVES, "Concat", "Resize", "Min", "Max", "ReduceMax", "ReduceMin"), MOVE),
    },
)  # fmt: skip

_INT16 = replace(_TFLITE, name="tflite-int16", hybrid=False)

RULES = {rules.name: rules for rules in (_TFLITE, _INT16)}
