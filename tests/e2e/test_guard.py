"""--max-drop: the layers that break INT8 leave it, on the real runtime, and the manifest says which and why."""

from __future__ import annotations

import pytest
from cli_process import edgekit

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("guard")]


def build(root, out, *more):
    sources = f"{root}/tests/e2e/sources.py"
    return edgekit(
        "build", f"{sources}:outlier", "-t", "ort-int8", "--calib", f"{sources}:wide",
        "--eval", f"{sources}:outlier_labels", "--method", "minmax", "--correct", "bias", "-o", out, "--json", *more,
    )  # fmt: skip


def test_without_the_guard_int8_collapses(root, tmp_path):
    result = build(root, tmp_path)
    assert result.code == 5, result.err
    assert "metric-drop" in result.json["targets"][0]["error"]["message"]


def test_the_guard_takes_the_fragile_layers_out_of_int8(root, tmp_path):
    result = build(root, tmp_path, "--max-drop", "2%")
    assert result.code == 0, result.err
    manifest = result.json["targets"][0]["manifest"]
    assert manifest["parity"]["metric"] >= 0.98
    guard = manifest["details"]["guard"]
    assert guard["met"]
    assert guard["held_against"] == "drop of accuracy"
    restored = {layer["module_path"] for layer in guard["restored"]}
    assert restored <= {"fragile", "last"}
    assert all("dB" in layer["why"] for layer in guard["restored"])
    assert "evaluations" in result.err


def test_a_user_can_name_the_layers(root, tmp_path):
    result = build(root, tmp_path, "--exclude", "fragile", "--exclude", "last")
    assert result.code == 0, result.err
    assert result.json["targets"][0]["manifest"]["placement"]["share"] < 1
