"""The digits example end to end: real handwriting, every runtime that can run here, the promises of the README."""

from __future__ import annotations

import hashlib
import json
import shutil

import pytest
from cli_process import edgekit

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("digits")]

RUNNABLE = (
    "ort-fp32",
    "ort-fp16",
    "ort-int8",
    "openvino-fp32",
    "openvino-int8",
    "tflite-fp32",
    "tflite-fp16",
    "tflite-int8",
    "tflite-int8-dynamic",
    "tflite-int8-weights",
    "tflite-int16x8",
)


def source(root):
    return root / "examples/digits/model.py:digits"


def data(root, name):
    return f"{root}/examples/digits/data.py:{name}"


@pytest.fixture(scope="session")
def built(root, tmp_path_factory):
    out = tmp_path_factory.mktemp("digits")
    result = build(root, out)
    return out, result


def build(root, out, *more):
    return edgekit(
        "build", source(root), "--target", ",".join(RUNNABLE), "--calib", data(root, "calibration"),
        "--eval", data(root, "evaluation"), "--out", out, "--json", *more,
    )  # fmt: skip


def test_every_target_passes_its_gates(built):
    _, result = built
    assert result.code == 0, result.err
    status = {e["manifest"]["target"]["name"]: e["status"] for e in result.json["targets"]}
    assert list(status) == list(RUNNABLE)
    assert set(status.values()) <= {"passed", "unproven"}
    # 450 rows without a change prove that less than one in a hundred is lost, not one in a thousand.
    assert {status[t] for t in RUNNABLE if t.endswith("fp32")} == {"unproven"}
    assert "rows, about" in result.err


@pytest.mark.parametrize("target", RUNNABLE)
def test_accuracy_is_kept(built, target):
    out, _ = built
    parity = json.loads((out / target / "manifest.json").read_text())["parity"]
    assert parity["rows"] == 450
    assert parity["reference_metric"] >= 0.97
    assert parity["metric"] >= parity["reference_metric"] - 0.005


@pytest.mark.parametrize(
    "target", ["ort-int8", "openvino-int8", "tflite-int8", "tflite-int8-dynamic", "tflite-int16x8"]
)
def test_int8_is_int8(built, target):
    out, _ = built
    placement = json.loads((out / target / "manifest.json").read_text())["placement"]
    assert placement["share"] >= 0.95


def test_the_second_build_takes_no_stage_again(built, root):
    out, first = built
    again = build(root, out)
    assert again.code == 0, again.err
    then, now = ([e["manifest"] for e in r.json["targets"]] for r in (first, again))
    assert [m["steps"] for m in then] == [m["steps"] for m in now]  # seconds too: no step ran


def test_another_cache_gives_the_same_bytes(built, root, tmp_path):
    out, _ = built
    again = edgekit(
        "build", source(root), "--target", "ort-int8,openvino-int8,tflite-int8", "--calib", data(root, "calibration"),
        "--eval", data(root, "evaluation"), "--out", tmp_path / "out",
        env={"EDGEKIT_CACHE": str(tmp_path / "cache")},
    )  # fmt: skip
    assert again.code == 0, again.err
    for target in ("ort-int8", "openvino-int8", "tflite-int8"):
        files = sorted(p.name for p in (out / target).iterdir() if p.name != "manifest.json")
        for name in files:
            assert (out / target / name).read_bytes() == (tmp_path / "out" / target / name).read_bytes(), name


def test_verify_runs_the_golden_vectors_again(built):
    out, _ = built
    result = edgekit("verify", out / "ort-int8", out / "tflite-int8", "--json")
    assert result.code == 0, result.err
    for entry in result.json["artifacts"]:
        assert entry["status"] == "passed"
        assert entry["replay"]["parity"]["snr_db"] == pytest.approx(entry["replay"]["recorded"]["snr_db"])


def test_verify_refuses_a_changed_file(built, tmp_path):
    out, _ = built
    shutil.copytree(out / "ort-fp32", tmp_path / "copy")
    model = tmp_path / "copy/model.onnx"
    model.write_bytes(model.read_bytes()[:-1] + b"x")
    result = edgekit("verify", tmp_path / "copy")
    assert result.code == 3
    assert "model.onnx missing or changed" in result.err


def test_verify_fails_when_the_model_computes_something_else(built, tmp_path):
    out, _ = built
    shutil.copytree(out / "ort-fp32", tmp_path / "copy")
    manifest = tmp_path / "copy/manifest.json"
    document = json.loads(manifest.read_text())
    golden = tmp_path / "copy/golden.npz"
    _negate_outputs(golden)
    document["golden"]["sha256"] = hashlib.sha256(golden.read_bytes()).hexdigest()
    manifest.write_text(json.dumps(document))
    result = edgekit("verify", tmp_path / "copy")
    assert result.code == 5
    assert "snr" in result.err


def _negate_outputs(path):
    import numpy as np

    with np.load(path) as stored:
        arrays = {k: -stored[k] if k.startswith("output/") else stored[k] for k in stored.files}
    with path.open("wb") as file:
        np.savez(file, **arrays)


@pytest.mark.parametrize(
    ("setting", "dtype", "shape"),
    [("io_layout=nhwc", "float32", [1, 8, 8, 1]), ("io_dtype=int8", "int8", [1, 1, 8, 8])],
)
def test_the_app_can_choose_layout_and_type(built, root, tmp_path, setting, dtype, shape):
    result = edgekit(
        "build", source(root), "-t", "tflite-int8", "--calib", data(root, "calibration"),
        "--eval", data(root, "evaluation"), "--set", setting, "-o", tmp_path, "--json",
    )  # fmt: skip
    assert result.code == 0, result.err
    (taken,) = result.json["targets"][0]["manifest"]["inputs"]
    assert (taken["dtype"], taken["shape"]) == (dtype, shape)
    assert edgekit("verify", tmp_path / "tflite-int8").code == 0


def test_bench_measures_and_keeps_raw_samples(built, tmp_path):
    out, _ = built
    for target in ("ort-fp32", "ort-int8"):
        shutil.copytree(out / target, tmp_path / target)
    result = edgekit(
        "bench",
        tmp_path / "ort-int8",
        "--vs",
        tmp_path / "ort-fp32",
        "--processes",
        2,
        "--seconds",
        0.05,
        "--json",
    )
    assert result.code == 0, result.err
    (entry,) = result.json["measurements"]
    assert entry["measurement"]["p50_ms"] > 0
    assert entry["measurement"]["peak_memory"] > 1 << 20
    assert entry["difference"]["verdict"]
    raw = json.loads((tmp_path / "ort-int8/measurements.json").read_text())
    assert [len(p) > 0 for p in raw["local"]] == [True, True]
    (kept,) = json.loads((tmp_path / "ort-int8/manifest.json").read_text())["measurements"]
    assert kept["p50_ms"] == entry["measurement"]["p50_ms"]


def test_inspect_shows_the_artifact(built):
    out, _ = built
    result = edgekit("inspect", out / "tflite-int8")
    assert result.code == 0, result.err
    for word in ("gates", "metric-drop", "placement", "model.tflite", "passed"):
        assert word in result.out
    assert "CONV_2D" in edgekit("inspect", out / "tflite-int8/model.tflite").out


def test_a_gate_that_fails_is_exit_5_and_leaves_no_artifact(built, root, tmp_path):
    result = edgekit(
        "build", root / "tests/e2e/sources.py:collapsing", "--target", "ort-int8",
        "--calib", root / "tests/e2e/sources.py:narrow", "--eval", root / "tests/e2e/sources.py:wide",
        "--accept-data", "scale", "--out", tmp_path,
    )  # fmt: skip
    assert result.code == 5, result.err
    assert "snr" in result.err
    assert [p.name for p in tmp_path.iterdir()] == ["ort-int8.failed"]
