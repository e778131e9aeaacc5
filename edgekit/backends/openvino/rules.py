"""What OpenVINO computes on integers on CPUs."""

from __future__ import annotations

from edgekit.quantize.rules import CARRIERS, SAME_SCALE, OpRule, Recurrent, Rules

_OPENVINO = Rules(
    name="openvino",
    requantize_same_scale=False,
    embedding="rows",
    recurrent=Recurrent.WIDENED,
    ops={
        **dict.fromkeys(("Conv", "ConvTranspose"), OpRule(force=True, constant=True)),
        "Gemm": OpRule(force=True, propagates=False, constant=True),
        "MatMul": OpRule(force=True, propagates=False, symmetric_inputs=True),
        "Add": OpRule(fuses_sum=True),
        "Mul": OpRule(),
        **dict.fromkeys(("AveragePool", "GlobalAveragePool", "ReduceMean"), OpRule()),
        **dict.fromkeys((*CARRIERS, "Concat"), SAME_SCALE),
    },
)

RULES = {_OPENVINO.name: _OPENVINO}
