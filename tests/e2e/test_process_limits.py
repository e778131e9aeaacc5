"""Time and memory: what takes too much of either is ended, with all that it started, and nothing is left of it."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import onnx
import pytest
from cli_process import edgekit
from onnx import TensorProto, helper, numpy_helper

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("limits")]


def files(folder):
    return [p for p in folder.rglob("*") if p.is_file()]


def tensor(name, shape, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def save(path, nodes, constants, output=(1, 3)):
    weights = [numpy_helper.from_array(np.array(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", [tensor("x", [1, 3])], [tensor("y", output)], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


@pytest.fixture
def endless(tmp_path):
    """A loop of 2^62 rounds."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Relu", ["a"], ["b"])],
        "body",
        [tensor("i", [], TensorProto.INT64), tensor("go", [], TensorProto.BOOL), tensor("a", [1, 3])],
        [tensor("on", [], TensorProto.BOOL), tensor("b", [1, 3])],
    )
    loop = helper.make_node("Loop", ["rounds", "true", "x"], ["y"], body=body)
    return save(tmp_path / "endless.onnx", [loop], {"rounds": np.int64(1 << 62), "true": True})


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("built")
    model = save(folder / "fine.onnx", [helper.make_node("Relu", ["x"], ["y"])], {})
    done = edgekit("build", model, "-t", "ort-fp32", "-o", folder)
    assert done.code == 0, done.err
    return folder / "ort-fp32"


@pytest.fixture
def artifact(built, tmp_path):
    return shutil.copytree(built, tmp_path / "artifact")


def test_a_model_that_never_answers_is_ended_with_the_time(endless, tmp_path):
    out, cache, temporary = (tmp_path / name for name in ("out", "cache", "tmp"))
    temporary.mkdir()
    result = edgekit(
        "build", endless, "-t", "ort-fp32", "-o", out, "--timeout", 15, "--json",
        env={"EDGEKIT_CACHE": str(cache), "TMPDIR": str(temporary)},
    )  # fmt: skip
    assert result.code == 8, result.err
    assert result.json["error"]["type"] == "TimeLimitError"
    assert "endless.onnx" in result.json["error"]["message"]
    assert files(temporary) == []
    assert not out.exists() or files(out) == []
    assert list(cache.rglob(".part-*")) == []


def test_the_users_own_code_is_ended_as_well(root, tmp_path):
    sources = f"{root}/tests/e2e/sources.py"
    result = edgekit(
        "build", f"{sources}:tiny", "-t", "ort-int8", "--calib", f"{sources}:slow", "-o", tmp_path / "out",
        env={"EDGEKIT_TIMEOUT": "12", "EDGEKIT_TEST_SLOW": "300", "EDGEKIT_CACHE": str(tmp_path / "cache")},
    )  # fmt: skip
    assert result.code == 8, result.err
    assert "Traceback" not in result.err
    assert list((tmp_path / "cache").rglob(".part-*")) == []


@pytest.mark.parametrize("size", [1 << 31, 1 << 45])
def test_a_bomb_is_refused(size, tmp_path):
    nodes = [
        helper.make_node("ConstantOfShape", ["size"], ["zeros"]),
        helper.make_node("ReduceSum", ["zeros"], ["sum"], keepdims=0),
        helper.make_node("Add", ["x", "sum"], ["y"]),
    ]
    bomb = save(tmp_path / "bomb.onnx", nodes, {"size": np.array([size])})
    result = edgekit("build", bomb, "-t", "ort-fp32", "-o", tmp_path / "out")
    assert result.code == 3, result.err
    assert "bomb.onnx" in result.err
    assert "Traceback" not in result.err


def test_verify_and_diff_have_a_time_limit(artifact, tmp_path):
    for command in (("verify", artifact), ("diff", artifact)):
        result = edgekit(*command, "--timeout", 1, env={"EDGEKIT_CACHE": str(tmp_path / "cache")})
        assert result.code in (0, 8), result.err  # a fast machine may be done in one second
        assert "Traceback" not in result.err
    assert edgekit("verify", artifact, "--timeout", 0).code == 2
    assert edgekit("verify", artifact, env={"EDGEKIT_MEMORY": "much"}).code == 2


@pytest.mark.parametrize("threads", [100_000, -1, "all", 2.5, True])
def test_a_received_artifact_cannot_ask_for_any_number_of_threads(artifact, threads):
    manifest = json.loads((artifact / "manifest.json").read_text())
    manifest["runtime"]["threads"] = threads
    (artifact / "manifest.json").write_text(json.dumps(manifest))
    result = edgekit("verify", artifact)
    assert result.code == 3, result.err
    assert f"threads={threads!r}" in result.err


def test_a_process_that_a_program_leaves_behind_does_not_hold_its_caller(tmp_path):
    from edgekit.devices.transports.process import Patience, stream

    said = []
    # The sleeper has a session of its own, and both pipes.
    done = stream(
        ["sh", "-c", "setsid sleep 300 & echo $! ready; exit 3"],
        stdin=b"", on_data=said.append, patience=Patience(whole=60),
    )  # fmt: skip
    os.kill(int(b"".join(said).split()[0]), 9)
    assert (done.returncode, done.timed_out) == (3, False)
    assert b"ready" in b"".join(said)
