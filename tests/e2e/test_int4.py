"""INT4 weights from the command line: with calibration data they are rounded with regard to their inputs."""

from __future__ import annotations

import json

import pytest
from cli_process import edgekit

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("guard")]


def build(root, out, *more):
    source = f"{root}/tests/e2e/sources.py:product"
    return edgekit("build", source, "-t", "ort-int4-weights", "-o", out, "--json", *more)


def test_calibration_data_are_used_where_there_are_any(root, tmp_path):
    result = build(root, tmp_path, "--calib", f"{root}/tests/e2e/sources.py:wide")
    assert result.json["targets"], result.err
    manifest = result.json["targets"][0]["manifest"]
    assert manifest["details"]["quantization"]["corrections"] == ["gptq"]
    assert manifest["calibration"]["samples"] == 32
    assert any(
        "gptq rounded the weights of 1 products" in n for n in manifest["details"]["quantization"]["notes"]
    )
    for more in ((), ("--calib", "random")):
        plain = build(root, tmp_path / "plain", *more).json["targets"][0]["manifest"]
        assert plain["details"]["quantization"]["corrections"] == []


def test_the_block_size_is_an_option(root, tmp_path):
    manifest = build(root, tmp_path, "--set", "block_size=32").json["targets"][0]["manifest"]
    assert manifest["status"] == "passed"
    refused = build(root, tmp_path, "--set", "block_size=48")
    assert refused.code == 2


def test_a_file_without_four_bits_is_no_int4_artifact(root, tmp_path):
    """It would be the INT8 one under another name."""
    for target in ("ort", "openvino", "tflite"):
        refused = edgekit(
            *("build", f"{root}/tests/e2e/sources.py:product", "-t", f"{target}-int4-weights"),
            *("--set", "block_size=64", "-o", tmp_path, "--json"),
        )
        assert refused.code == 4, refused.err
        assert "none of the weights can be stored in four bits" in json.dumps(refused.json)
        assert not (tmp_path / f"{target}-int4-weights").exists()


def test_what_is_in_eight_bits_beside_them_is_said(tmp_path):
    (tmp_path / "net.py").write_text(
        "import torch\n"
        "def net():\n"
        "    torch.manual_seed(0)\n"
        "    layers = torch.nn.Conv2d(3, 64, 3), torch.nn.Flatten(), torch.nn.Linear(2304, 64)\n"
        "    return torch.nn.Sequential(*layers).eval(), (torch.randn(1, 3, 8, 8),)\n"
    )
    result = edgekit("build", "net.py:net", "-t", "ort-int4-weights", "-o", "out", "--json", cwd=tmp_path)
    manifest = result.json["targets"][0]["manifest"]
    assert any("of the integer weights have four bits, the others eight" in n for n in manifest["notes"])
