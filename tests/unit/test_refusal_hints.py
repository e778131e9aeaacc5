"""The targets that a refusal offers are those that can hold."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from edgekit.artifact.manifest import Status
from edgekit.core import targets
from edgekit.pipeline.refusal import refusal
from edgekit.types import Gate, Verdict


def failed(target: str, *nodes: tuple[str, int, int]) -> object:
    """An artifact that lost too much, whose graph has ``nodes``: operator, MACs, weights."""
    rows = [{"op": op, "macs": macs, "weights": count, "quantized": True} for op, macs, count in nodes]
    gates = (
        Gate(name="snr", verdict=Verdict.FAIL, limit=12.0, value=3.0, message="3 dB"),
        Gate(name="placement", verdict=Verdict.PASS, limit=0.8, value=1.0, message=""),
    )
    manifest = SimpleNamespace(
        status=Status.FAILED,
        gates=gates,
        placement=None,
        target=targets.find(target),
        details={"quantization": {"nodes": rows}},
    )
    return SimpleNamespace(manifest=manifest, target=target, directory="out")


@pytest.mark.parametrize(
    ("nodes", "offered"),
    [
        ([("Conv", 1000, 10), ("Gemm", 10, 10)], False),
        ([("Gemm", 1000, 10), ("Relu", 0, 0)], True),
        ([("MatMul", 850, 10), ("MatMul", 150, 0)], True),
        ([("MatMul", 700, 10), ("MatMul", 300, 0)], False),  # of two activations: float there
    ],
)
def test_dynamic_ranges_are_offered_for_products(nodes, offered):
    hint = refusal(failed("ort-int8", *nodes), allow_not_run=False).hint
    assert "ort-int8-weights" in hint
    assert ("ort-int8-dynamic" in hint) is offered


def test_dynamic_ranges_of_tflite_take_convolutions():
    assert "tflite-int8-dynamic" in refusal(failed("tflite-int8", ("Conv", 9, 9)), allow_not_run=False).hint
