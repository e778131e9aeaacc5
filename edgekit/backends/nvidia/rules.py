"""What TensorRT computes on integers, and on float8."""

from __future__ import annotations

from edgekit.quantize.rules import CARRIERS, SAME_SCALE, OpRule, Rules

_TENSORRT = Rules(
    name="tensorrt",
    requantize_same_scale=False,
    ops={
        **dict.fromkeys(("Conv", "ConvTranspose"), OpRule(force=True, constant=True)),
        "Gemm": OpRule(force=True, propagates=False, constant=True),
        "MatMul": OpRule(force=True, propagates=False),
        "Add": OpRule(fuses_sum=True),
        **dict.fromkeys(("AveragePool", "GlobalAveragePool"), OpRule()),
        **dict.fromkeys(
            (*(m for m in CARRIERS if m not in ("Gather", "Pad", "Expand", "Tile")), "Concat"), SAME_SCALE
        ),
    },
)

_FLOAT8 = Rules(
    name="tensorrt-float8",
    requantize_same_scale=False,
    ops={
        "Conv": OpRule(force=True, propagates=False, constant=True),
        "Gemm": OpRule(force=True, propagates=False, constant=True),
        "MatMul": OpRule(force=True, propagates=False),
    },
)

RULES = {rules.name: rules for rules in (_TENSORRT, _FLOAT8)}
