"""The cache as a user meets it, process by process: edited data, a kill, another program that looks at it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from cli_process import edgekit

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("cache")]


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper

    weight = np.random.default_rng(3).normal(size=(4, 3)).astype(np.float32)
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])]
    tensor = helper.make_tensor("w", TensorProto.FLOAT, [4, 3], weight.tobytes(), raw=True)
    body = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", inputs, outputs, [tensor])
    onnx.save(
        helper.make_model(body, opset_imports=[helper.make_opsetid("", 18)], ir_version=9),
        tmp_path / "graph.onnx",
    )
    return tmp_path / "graph.onnx"


DATA = """
import numpy as np
def rows():
    generator = np.random.default_rng(0)
    for _ in range(64):
        yield (generator.normal(size=(1, 4)) * {scale}).astype(np.float32)
"""


def test_an_edited_data_file_is_noticed(graph, tmp_path):
    env = {"EDGEKIT_CACHE": str(tmp_path / "cache")}
    said = []
    for scale in ("1.0", "100", "1.0"):
        (tmp_path / "data.py").write_text(DATA.format(scale=scale))
        arguments = (
            "-t",
            "ort-int8",
            "--calib",
            f"{tmp_path}/data.py:rows",
            "-o",
            tmp_path / "out",
            "--json",
        )
        result = edgekit("build", graph, *arguments, env=env)
        assert result.code == 0, result.err
        manifest = result.json["targets"][0]["manifest"]
        said.append(
            (manifest["calibration"]["fingerprint"], (tmp_path / "out/ort-int8/model.onnx").read_bytes())
        )
    assert said[0] == said[2]
    assert said[0][0] != said[1][0]
    assert said[0][1] != said[1][1]


def test_what_a_killed_build_leaves_is_swept_by_the_next(graph, tmp_path):
    (tmp_path / "slow.py").write_text(
        "import time\n"
        + DATA.format(scale="1.0").replace("        yield", "        time.sleep(0.5)\n        yield")
    )
    cache, temporary = tmp_path / "cache", tmp_path / "tmp"
    temporary.mkdir()
    env = os.environ | {"EDGEKIT_CACHE": str(cache), "TMPDIR": str(temporary)}
    arguments = [
        "build",
        str(graph),
        "-t",
        "ort-int8",
        "--calib",
        f"{tmp_path}/slow.py:rows",
        "-o",
        str(tmp_path / "out"),
    ]
    with subprocess.Popen(
        [sys.executable, "-m", "edgekit", *arguments], env=env, stderr=subprocess.PIPE
    ) as process:
        deadline = time.monotonic() + 120
        while not list(cache.glob("parts/.part-*")) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    left = [p.name for p in (*cache.glob("parts/.part-*"), *cache.glob("runs/.run-*"))]
    assert left
    (tmp_path / "slow.py").write_text(DATA.format(scale="1.0"))
    result = edgekit(*arguments, env={"EDGEKIT_CACHE": str(cache), "TMPDIR": str(temporary)})
    assert result.code == 0, result.err
    assert [*cache.glob("parts/*"), *cache.glob("runs/*")] == []
    assert list(temporary.iterdir()) == []
