"""TensorRT and TensorRT-RTX without a GPU: engines built ahead of time, parser errors, the recipe."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
from backend_models import attention, conv_net, digests, quantized, reference, snr_db, unsupported
from onnx import helper, numpy_helper

from edgekit.backends.nvidia import (
    artifact,
    call,
    executed,
    profiles,
    refusals,
    request,
    tensorrt,
    tensorrt_rtx,
    worker,
)
from edgekit.backends.nvidia.engine import read_key, write_record
from edgekit.core import targets
from edgekit.errors import BackendError, ConfigError, RuntimeCrashError, UnsupportedOperatorsError
from edgekit.graph import io

RTX = tensorrt_rtx.available().installed
needs_rtx = pytest.mark.skipif(not RTX, reason="the extra tensorrt-rtx is not installed")
IMAGE = {"x": np.random.default_rng(1).standard_normal((1, 3, 16, 16), dtype=np.float32)}


def lowered(backend, model, target, out, **options):
    out.mkdir(exist_ok=True)
    return backend.lower(model, targets.find(target), options, out)


def model_for(target, tmp_path):
    model = conv_net(tmp_path / "m.onnx")
    if target.endswith("int8"):
        return quantized(model, tmp_path / "q.onnx", activation="int8", bias=False)
    return model


@needs_rtx
@pytest.mark.parametrize(
    "target", ["tensorrt-rtx-fp32", "tensorrt-rtx-fp16", "tensorrt-rtx-bf16", "tensorrt-rtx-int8"]
)
def test_an_engine_is_built_without_a_gpu_with_the_same_bytes(tmp_path, target):
    model = model_for(target, tmp_path)
    first = lowered(tensorrt_rtx, model, target, tmp_path / "a", compute_capabilities="SM86")
    assert first.files == ("model.engine", "engine.json", "model.onnx")
    key = read_key(tmp_path / "a" / "model.engine")
    assert (key.compute_capabilities, key.gpu) == (("8.6",), "")
    assert key.graph_sha256 == io.describe(tmp_path / "a" / "model.onnx").sha256
    second = lowered(tensorrt_rtx, model, target, tmp_path / "b", compute_capabilities="SM86")
    assert digests(first, tmp_path / "a") == digests(second, tmp_path / "b")
    assert (tmp_path / "a" / "model.engine").stat().st_size > 10_000
    assert request.contradictions(tmp_path / "a" / "model.engine", "tensorrt_rtx", first.details) == ()
    write_record(tmp_path / "a" / "model.engine", replace(key, version="1.6.0"))
    (found,) = request.contradictions(tmp_path / "a" / "model.engine", "tensorrt_rtx", first.details)
    assert f"the engine itself {key.version}" in found


@needs_rtx
def test_dynamic_axes_get_a_profile(tmp_path):
    result = lowered(
        tensorrt_rtx,
        attention(tmp_path / "m.onnx"),
        "tensorrt-rtx-fp16",
        tmp_path / "out",
        axes="sequence=1:16:32",
    )
    assert result.details["profiles"] == {"x": [[1, 1, 8], [1, 16, 8], [8, 32, 8]]}


@needs_rtx
def test_a_refused_build_says_why_and_leaves_no_engine(tmp_path):
    """TensorRT-RTX has no float32 products for Turing."""
    model = conv_net(tmp_path / "m.onnx")
    with pytest.raises(BackendError, match="SM75"):
        lowered(tensorrt_rtx, model, "tensorrt-rtx-fp32", tmp_path / "out", compute_capabilities="SM75")
    assert not list((tmp_path / "out").glob("*engine*"))


@needs_rtx
def test_every_refused_node_is_named_at_once(tmp_path):
    """The parser stops at the first INT32 bias and the first zero point; the rules name all."""
    model = quantized(conv_net(tmp_path / "m.onnx"), tmp_path / "q.onnx", activation="uint8")
    with pytest.raises(UnsupportedOperatorsError) as caught:
        lowered(tensorrt_rtx, model, "tensorrt-rtx-int8", tmp_path / "out")
    reasons = [n.reason for n in caught.value.nodes]
    assert sum("INT32" in r for r in reasons) == 4  # stem, depthwise, pointwise, head
    assert sum("symmetric" in r for r in reasons) > 1


@needs_rtx
def test_unknown_operators_are_named_by_the_parser(tmp_path):
    with pytest.raises(UnsupportedOperatorsError) as caught:
        lowered(tensorrt, unsupported(tmp_path / "m.onnx"), "tensorrt-fp32", tmp_path / "out")
    assert {(n.op, n.node) for n in caught.value.nodes} == {("Foo", "foo"), ("Bar", "bar")}


@pytest.mark.parametrize("target", ["tensorrt-fp32", "tensorrt-fp16", "tensorrt-int8"])
def test_tensorrt_gets_the_onnx_and_the_recipe(tmp_path, target):
    model = model_for(target, tmp_path)
    result = lowered(tensorrt, model, target, tmp_path / "out")
    assert result.files == ("model.onnx", "recipe.json", "README.md")
    recipe = json.loads((tmp_path / "out" / "recipe.json").read_text())
    assert recipe["build"][0] == "trtexec"
    assert " ".join(recipe["build"]) in (tmp_path / "out" / "README.md").read_text()
    shipped = io.describe(tmp_path / "out" / "model.onnx")
    assert snr_db(reference(model, IMAGE)["y"], reference(shipped, IMAGE)["y"]) > 50
    again = lowered(tensorrt, model, target, tmp_path / "again")
    assert digests(result, tmp_path / "out") == digests(again, tmp_path / "again")


def test_without_any_parser_the_rules_still_refuse(tmp_path, monkeypatch):
    monkeypatch.setattr(artifact.importlib.util, "find_spec", lambda name: None)
    model = quantized(conv_net(tmp_path / "m.onnx"), tmp_path / "q.onnx", activation="uint8")
    with pytest.raises(UnsupportedOperatorsError, match="INT32"):
        lowered(tensorrt, model, "tensorrt-int8", tmp_path / "out")
    good = lowered(tensorrt, conv_net(tmp_path / "m.onnx"), "tensorrt-fp32", tmp_path / "good")
    assert any("rules only" in note for note in good.notes)


def test_a_library_that_ends_its_process_is_a_typed_error(tmp_path, monkeypatch):
    crash = tmp_path / "crash.py"
    crash.write_text("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    monkeypatch.setattr(worker, "__file__", str(crash))
    job = call.Job(module="tensorrt_rtx", onnx=conv_net(tmp_path / "m.onnx").path, profiles={})
    with pytest.raises(RuntimeCrashError, match="-11"):
        refusals.run_worker(job, targets.find("tensorrt-rtx-fp32"), {})


def test_without_a_run_what_the_graph_asks_is_known(tmp_path):
    model = model_for("tensorrt-int8", tmp_path)
    judged = executed.requested(model, targets.find("tensorrt-int8"))
    assert (judged.share, judged.operators, judged.fallbacks) == (1.0, 4, ())


@pytest.mark.parametrize(("target", "own"), [("tensorrt-fp16", "fp16"), ("tensorrt-bf16", "bf16")])
def test_products_in_bodies_count_by_their_own_types(tmp_path, target, own):
    """What is in a branch stays in float32: it is not asked for in float16, whatever the target is called."""
    body = {
        name: helper.make_graph(
            [helper.make_node(op, ["h", "w"], [f"{name}_y"], name=f"{name}_{op}")],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}_y", 1, [4, 8])],
        )
        for name, op in (("then_branch", "MatMul"), ("else_branch", "MatMul"))
    }
    made = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["h"], name="first"),
            helper.make_node("If", ["c"], ["y"], name="if", **body),
        ],
        "g",
        [helper.make_tensor_value_info("x", 1, [4, 8]), helper.make_tensor_value_info("c", 9, [])],
        [helper.make_tensor_value_info("y", 1, [4, 8])],
        [numpy_helper.from_array(np.eye(8, dtype=np.float32), "w")],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.save(onnx.shape_inference.infer_shapes(model), tmp_path / "m.onnx")
    result = lowered(tensorrt, io.describe(tmp_path / "m.onnx"), target, tmp_path / "out")
    assert (
        f"the graph asks for {own} in 33.3% of the MACs" in result.notes
    )  # one product of three, of equal sizes
    shipped = executed.requested(io.describe(tmp_path / "out" / "model.onnx"), targets.find(target))
    (fallback,) = shipped.fallbacks
    assert (fallback.op, fallback.count) == ("MatMul", 2)
    assert fallback.reason == "fp32 in a body of If, Loop or Scan, which stays as it is"


def layer(name, kind, *, tensor, metadata=""):
    return {"Name": name, "LayerType": kind, "Inputs": [tensor], "Outputs": [], "Metadata": metadata}


def test_the_inspectors_layers_of_both_generations_are_read(tmp_path):
    """TensorRT 10 joins format and type; 11 splits them. The pointwise convolution fell back to float."""
    model = model_for("tensorrt-int8", tmp_path)
    raw = {
        "gpu": "NVIDIA Orin",
        "layers": [
            layer("stem + stem_relu", "CaskConvolution", tensor={"Format/Datatype": "Int8 NC/32HW32"}),
            layer(
                "d", "CaskConvolution", tensor={"Datatype": "INT8"}, metadata="[ONNX Layer: depthwise]\x1e"
            ),
            layer("pointwise", "CaskConvolution", tensor={"Format/Datatype": "Row major linear FP32"}),
            layer("head", "gemm", tensor={"Format/Datatype": "Int8"}),
            layer("reformat", "Reformat", tensor={"Format/Datatype": "Float"}),
        ],
    }
    judged = executed.executed(model, targets.find("tensorrt-int8"), raw)
    total = 13824 + 4608 + 4096 + 80
    assert judged.share == pytest.approx(1 - 4096 / total)
    assert [f.nodes for f in judged.fallbacks] == [("pointwise",)]
    assert judged.kernels == {"CaskConvolution": 3, "Reformat": 1, "gemm": 1}


def test_an_engine_that_tells_names_only_has_no_share(tmp_path):
    model = conv_net(tmp_path / "m.onnx")
    judged = executed.executed(model, targets.find("tensorrt-fp32"), {"layers": ["stem", "head"]})
    assert judged.share is None
    assert "profilingVerbosity" in judged.notes[0]


def test_compute_capabilities_as_people_write_them():
    assert profiles.compute_capabilities("SM86,8.9, sm86") == ("SM86", "SM89")
    for text in ("SM1", "sm_86", "8", "SM8600", "٨٦"):
        with pytest.raises(ConfigError, match="compute capability"):
            profiles.compute_capabilities(text)
