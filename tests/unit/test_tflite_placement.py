"""What LiteRT's builtin kernels compute in float32 is float32: slower, and said, but no other result."""

from __future__ import annotations

import pytest

from edgekit.backends.tflite.executed import read_placement
from edgekit.core import targets
from edgekit.types import Lowered

FULLY, CONV = "FULLY_CONNECTED", "CONV_2D"


def placed(target: str, code: str, activation: str, weight: str, *, delegated: bool):
    lowered = Lowered(
        files=("model.tflite",), inputs=(), outputs=(),
        details={"codes": [code], "macs": [100], "types": [activation], "weights": [weight]},
    )  # fmt: skip
    node = {"index": 0, "op": code, "delegate": 0 if delegated else None}
    return read_placement(targets.find(target), lowered, {"nodes": [node], "delegates": 1})


@pytest.mark.parametrize(
    ("target", "code", "activation", "weight", "share"),
    [
        ("tflite-fp32", FULLY, "float32", "", 1.0),
        ("tflite-fp32", CONV, "float32", "float32", 1.0),
        ("tflite-int8", FULLY, "int8", "", 1.0),
        ("tflite-int8", FULLY, "int8", "int8", 0.0),
        ("tflite-int8", FULLY, "float32", "", 0.0),
    ],
)
def test_outside_of_the_delegate(target, code, activation, weight, share):
    placement = placed(target, code, activation, weight, delegated=False)
    assert placement.share == share
    assert any("builtin" in n for n in placement.notes) == (share == 1.0 or not weight)


def test_inside_of_it_nothing_is_said():
    assert placed("tflite-fp32", FULLY, "float32", "float32", delegated=True).notes == ()
