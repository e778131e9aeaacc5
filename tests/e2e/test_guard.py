"""--max-drop: the layers that break INT8 leave it, on the real runtime, and the manifest says which and why."""

from __future__ import annotations

import pytest
from cli_process import edgekit

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("guard")]


def build(root, out, *more, target="ort-int8", source="outlier"):
    sources = f"{root}/tests/e2e/sources.py"
    return edgekit(
        "build", f"{sources}:{source}", "-t", target, "--calib", f"{sources}:wide",
        "--eval", f"{sources}:{source}_labels", "--method", "minmax", "--correct", "bias", "-o", out, "--json", *more,
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


def test_in_litert_layers_get_int16_activations(root, tmp_path):
    pytest.importorskip("ai_edge_litert")
    # Not timed: LiteRT's CPU kernels for INT16 are slower than float ones, which the speed gate would act on.
    options = ("--max-drop", "1%", "--no-speed-gate")
    result = build(root, tmp_path, *options, target="tflite-int8", source="within_int16")
    assert result.code == 0, result.err
    manifest = result.json["targets"][0]["manifest"]
    assert manifest["parity"]["metric"] >= 0.99
    guard = manifest["details"]["guard"]
    assert (guard["met"], guard["precision"]) == (True, "int16")
    restored = {layer["node"] for layer in guard["restored"]}
    assert {layer["precision"] for layer in guard["restored"]} == {"int16"}
    activations = {n["node"]: n["activation"] for n in manifest["details"]["quantization"]["nodes"]}
    assert {n for n, kind in activations.items() if kind == "int16"} == restored
    assert "int8" in activations.values()
    verdicts = {g["name"]: g["verdict"] for g in manifest["gates"]}
    assert verdicts["placement"] == "pass"  # INT16 was asked for there


def test_in_litert_a_layer_stays_float_where_int16_is_too_coarse(root, tmp_path):
    """Beside a channel a thousand times the others INT16 rounds away 6 of the 256 answers."""
    pytest.importorskip("ai_edge_litert")
    result = build(root, tmp_path, "--max-drop", "2%", "--no-speed-gate", target="tflite-int8")
    assert result.code == 0, result.err
    guard = result.json["targets"][0]["manifest"]["details"]["guard"]
    assert (guard["met"], guard["precision"]) == (True, "float32")
    tried = [e for e in guard["evaluations"] if e["precision"] == "int16"]
    assert tried
    assert all(e["drop"] > 0.02 for e in tried)


def test_a_user_can_name_the_layers(root, tmp_path):
    result = build(root, tmp_path, "--exclude", "fragile", "--exclude", "last")
    assert result.code == 0, result.err
    assert result.json["targets"][0]["manifest"]["placement"]["share"] < 1
