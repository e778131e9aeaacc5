"""What the engine computes on integers: fully connected layers."""

from edgekit.quantize.rules import OpRule, Rules

RULES = {"acme": Rules(name="acme", ops={"Gemm": OpRule(force=True, propagates=False, constant=True)})}
