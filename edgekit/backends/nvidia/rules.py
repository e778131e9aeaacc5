"""What TensorRT computes on integers."""

from __future__ import annotations

from edgekit.quantize.rules import MOVE, MOVES, OpRule, Rules

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
            (*(m for m in MOVES if m not in ("Gather", "Pad", "Expand", "Tile")), "Concat"), MOVE
        ),
    },
)

RULES = {_TENSORRT.name: _TENSORRT}
