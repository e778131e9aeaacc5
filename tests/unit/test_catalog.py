from __future__ import annotations

import subprocess
import sys

import pytest

from edgekit.core import targets
from edgekit.errors import ConfigError, PluginError, UnknownNameError, UsageError
from edgekit.types import Precision

ROW = """
backend = "onnxruntime"
runs_on = "cpu"
[[target]]
name = "{name}"
precision = "fp32"
file = "model.onnx"
"""


@pytest.fixture
def user(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    folder = tmp_path / "edgekit/targets"
    folder.mkdir(parents=True)
    return folder


def test_every_row_is_consistent():
    rows = targets.known()
    assert {"tflite-int8", "ort-int8", "openvino-int8", "tensorrt-int8", "tensorrt-rtx-fp16"} <= set(rows)
    for row in rows.values():
        assert row.why, row.name
        assert row.name.endswith(str(row.precision).removesuffix("-weights" if row.task else "")), row.name
        assert row.needs_calibration == row.precision.needs_calibration, row.name
        limit = row.tolerance.perplexity if row.task else row.tolerance.snr_db
        assert limit is not None, row.name


def test_a_users_row_joins_the_catalogue(user):
    (user / "mine.toml").write_text(ROW.format(name="ort-mine"))
    row = targets.find("ort-mine")
    assert row.precision is Precision.FP32
    assert row.owner == str(user / "mine.toml")


def test_a_users_row_cannot_replace_another(user):
    (user / "mine.toml").write_text(ROW.format(name="ort-fp32"))
    with pytest.raises(PluginError, match=r"defined twice.*edgekit.*mine\.toml"):
        targets.known()


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (('file = "model.onnx"', 'fille = "model.onnx"'), UnknownNameError, "fille"),
        (('precision = "fp32"', 'precision = "fp33"'), ConfigError, "fp33"),
        (('precision = "fp32"', 'precision = "int8"'), ConfigError, "no scheme"),
        (('backend = "onnxruntime"', 'backend = "onnxrt"'), UnknownNameError, "onnxrt"),
        (("[[target]]", "[[target]"), ConfigError, "mine.toml"),
    ],
)
def test_a_wrong_row_is_named(user, change, error, words):
    (user / "mine.toml").write_text(ROW.format(name="ort-mine").replace(*change))
    with pytest.raises(error, match=words):
        targets.known()


def test_select():
    assert [t.name for t in targets.select("ort-int8, ort-fp32,ort-int8")] == ["ort-int8", "ort-fp32"]
    assert [t.name for t in targets.select("all")] == [n for n, t in targets.known().items() if not t.task]
    with pytest.raises(UnknownNameError) as error:
        targets.select("ort-int9")
    assert "ort-int8" in error.value.nearest
    with pytest.raises(UsageError, match="no target"):
        targets.select("")


def test_listing_the_targets_imports_nothing_heavy():
    code = (
        "import sys; sys.argv = ['edgekit', 'targets']\n"
        "from edgekit.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'onnx', 'onnx_ir', 'numpy', 'onnxruntime', 'openvino', 'tensorrt_rtx', 'ai_edge_litert'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "[]"
    assert "tflite-int8" in done.stdout
