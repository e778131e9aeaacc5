"""INT4 weights from the command line: with calibration data they are rounded with regard to their inputs."""

from __future__ import annotations

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
    manifest = build(root, tmp_path, "--set", "block_size=64").json["targets"][0]["manifest"]
    notes = manifest["details"]["quantization"]["notes"]
    assert any("do not divide into blocks of 64" in n for n in notes)
    refused = build(root, tmp_path, "--set", "block_size=48")
    assert refused.code == 2
