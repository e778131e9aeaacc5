"""What LiteRT computes on integers."""

from __future__ import annotations

from dataclasses import replace

from edgekit.quantize.rules import CARRIERS, INTEGER, SAME_SCALE, UNIT, OpRule, Recurrent, Rules

_TFLITE = Rules(
    name="tflite",
    full_integer=True,
    embedding="rows",
    recurrent=Recurrent.MULTIPLIED,
    hybrid=True,
    islands=True,
    int16=True,
    ops={
        **dict.fromkeys(("Conv", "ConvTranspose", "Gemm"), OpRule(force=True, produces_integer=True, constant=True)),
        "MatMul": OpRule(force=True, produces_integer=True, symmetric_second=True),
        **dict.fromkeys(
            (
                "Add", "Sub", "Mul", "AveragePool", "GlobalAveragePool", "ReduceMean", "ReduceSum", "LeakyRelu",
                "PRelu", "Relu", "Clip",
            ),
            INTEGER,
        ),
        "Softmax": OpRule(produces_integer=True, fixed=UNIT),
        "Sigmoid": OpRule(produces_integer=True, fixed=UNIT),
        "Tanh": OpRule(produces_integer=True, fixed=(-1.0, 1.0)),
        **dict.fromkeys((*CARRIERS, "Concat", "Resize", "Min", "Max", "ReduceMax", "ReduceMin"), SAME_SCALE),
    },
)  # fmt: skip

_INT16 = replace(_TFLITE, name="tflite-int16", hybrid=False, islands=False, recurrent=Recurrent.FLOAT)

RULES = {rules.name: rules for rules in (_TFLITE, _INT16)}
