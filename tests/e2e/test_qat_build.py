"""A recipe with quantization-aware training, from the command line to artifacts that passed their gates."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_process import edgekit

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("digits")]

TARGETS = ("ort-int8", "openvino-int8", "tflite-int8", "ort-int4-weights")


@pytest.fixture(scope="module")
def built(root: Path, tmp_path_factory: pytest.TempPathFactory):
    out = tmp_path_factory.mktemp("qat")
    data = f"{root}/examples/digits/data.py"
    result = edgekit(
        "build", root / "examples/digits/model.py:digits", "--target", ",".join((*TARGETS, "tensorrt-int8")),
        "--recipe", "qat(weights=4;batch_norm=train;training.epochs=4)", "--task", "classification",
        "--train", f"{data}:calibration", "--calib", f"{data}:calibration", "--eval", f"{data}:evaluation",
        "--out", out, "--json",
    )  # fmt: skip
    return out, result


@pytest.mark.parametrize("target", TARGETS)
def test_four_bits_cost_nothing_here(built, target: str) -> None:
    out, result = built
    assert (out / target).is_dir(), result.err
    manifest = json.loads((out / target / "manifest.json").read_text())
    assert manifest["status"] == "passed"
    assert manifest["parity"]["metric"] >= 0.97
    assert manifest["parity"]["snr_db"] > 30  # against the trained module, which rounds as the artifact does
    assert any(step["name"] == "compress" for step in manifest["steps"])


def test_half_a_byte_a_weight(built) -> None:
    out, _ = built
    assert (out / "ort-int4-weights/model.onnx").stat().st_size < 0.6 * (
        out / "ort-int8/model.onnx"
    ).stat().st_size


def test_what_tensorrt_cannot_have_is_said(built) -> None:
    _, result = built
    assert result.code == 4
    assert "zero point" in result.err
    assert "symmetric=true" in result.err
