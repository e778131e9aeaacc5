"""What OpenVINO computes on integers on CPUs."""

from __future__ import annotations

from edgekit.quantize.rules import MOVE, MOVES, OpRule, Rules

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
        **dict.fromkeys((*MOVES, "Concat"), MOVE),
    },
)

RULES = {_OPENVINO.name: _OPENVINO}
