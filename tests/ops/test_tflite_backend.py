"""The backend: ONNX file → artifact, and what its placement says."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

pytest.importorskip("ai_edge_litert")

from test_tflite_quantized import Quantized, weights
from tflite_support import graph, single

from edgekit.backends import tflite
from edgekit.core import targets
from edgekit.errors import ConfigError, UnsupportedError
from edgekit.graph import io
from edgekit.types import OnnxModel, sha256_file

ROOT = Path(__file__).resolve().parents[2]


def saved(model: onnx.ModelProto, folder: Path, **how: object) -> OnnxModel:
    path = folder / "model.onnx"
    onnx.save(model, path, **how)
    return OnnxModel(path=path, sha256=sha256_file(path), opset=21, inputs=(), outputs=())


def runner():
    spec = importlib.util.spec_from_file_location("runner", ROOT / "targets/tflite/runner.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def quantized_model() -> onnx.ModelProto:
    q = Quantized()
    x, w = q.activation("x", 0.03, 5), q.weight("w", weights(8, 4, 3, 3))
    b = q.bias("b", weights(8), 0.03, "w")
    h = q.activation(q.op("Conv", [x, w, b], "c"), 0.02, -2)
    y = q.activation(q.op("Mul", [h, q.op("Erf", [h], "e")], "y0"), 0.02)
    return graph(q.nodes, {"x": (1, 4, 6, 6)}, [y], q.constants)


@pytest.mark.parametrize("external", [False, True])
def test_lower_and_placement(tmp_path, external):
    target = targets.find("tflite-int8")
    how = {"save_as_external_data": True, "location": "w.bin", "size_threshold": 0} if external else {}
    model = saved(quantized_model(), tmp_path, **how)
    out = tmp_path / "out"
    out.mkdir()
    made = tflite.lower(model, target, {"metadata.edgekit.manifest": "d1g35t"}, out)
    assert made.files == ("model.tflite",)
    assert [p.name for p in out.iterdir()] == ["model.tflite"]
    assert b"d1g35t" in (out / "model.tflite").read_bytes()
    assert json.loads(json.dumps(dict(made.details)))["left_in_float"][0]["op"] == "Erf"
    session = runner().load(str(out / "model.tflite"), {"threads": 1})
    placement = tflite.placement(model, target, made, session.placement())
    assert placement.share == 1.0
    assert placement.partitions == 1
    assert {f.op for f in placement.fallbacks} >= {"Erf"}


def test_builtin_kernels_are_told(tmp_path):
    target = targets.find("tflite-int8")
    model = saved(quantized_model(), tmp_path)
    made = tflite.lower(model, target, {}, tmp_path)
    session = runner().load(str(tmp_path / "model.tflite"), {"threads": 1, "xnnpack": False})
    placement = tflite.placement(model, target, made, session.placement())
    assert placement.share == 0.0
    assert placement.partitions == 0


def placed(model: onnx.ModelProto, name: str, folder: Path):
    """Lower for a target, load, and read the placement."""
    target = targets.find(name)
    made = tflite.lower(saved(model, folder), target, {}, folder)
    session = runner().load(str(folder / "model.tflite"), {"threads": 1})
    return tflite.placement(None, target, made, session.placement())


def test_float16_is_a_storage_format(tmp_path):
    placement = placed(single("Conv", [(1, 3, 8, 8)], [weights(8, 3, 3, 3)]), "tflite-fp16", tmp_path)
    assert placement.share == 0.0
    assert placement.partitions == 1
    (fallback,) = placement.fallbacks
    assert (fallback.op, fallback.count, fallback.share) == ("CONV_2D", 1, 1.0)
    assert "computed in float32" in fallback.reason


def weights_only() -> onnx.ModelProto:
    """A convolution, a depthwise one, a product with constant and one with computed operands."""
    q = Quantized()
    q.op("Conv", ["x", q.weight("w", weights(8, 4, 3, 3))], "a")
    q.op("Conv", ["a", q.weight("d", weights(8, 1, 3, 3))], "b", group=8)
    q.constants["shape"] = np.array([8, 16])
    q.op("Reshape", ["b", "shape"], "c")
    q.op("MatMul", ["c", q.weight("m", weights(16, 8), 1)], "e")
    y = q.op("MatMul", ["e", "e"], "y")
    return graph(q.nodes, {"x": (1, 4, 8, 8)}, [y], q.constants)


@pytest.mark.parametrize(
    ("name", "share"), [("tflite-int8-dynamic", 11392 / 13056), ("tflite-int8-weights", 0.0)]
)
def test_who_reads_integer_weights(tmp_path, name, share):
    placement = placed(weights_only(), name, tmp_path)
    assert placement.partitions == 1
    assert placement.share == pytest.approx(share)
    reasons = {f.op: f.reason for f in placement.fallbacks}
    assert reasons["BATCH_MATMUL"].startswith("no constant weights")
    assert reasons["DEPTHWISE_CONV_2D"].startswith("int8 weights are expanded")
    assert ("CONV_2D" in reasons) == (share == 0.0)


def test_int16_runs_in_builtin_kernels_and_says_so(tmp_path):
    q = Quantized(np.int16)
    x, w = q.activation("x", 3 / 32767), q.weight("w", weights(8, 4, 3, 3))
    y = q.activation(q.op("Conv", [x, w], "c"), 9 / 32767)
    placement = placed(graph(q.nodes, {"x": (1, 4, 7, 8)}, [y], q.constants), "tflite-int16x8", tmp_path)
    assert placement.share == 1.0
    assert "XNNPACK has no kernels for int16" in placement.notes[0]


def test_same_file_same_bytes(tmp_path):
    target = targets.find("tflite-fp32")
    model = saved(single("Conv", [(1, 3, 8, 8)], [weights(4, 3, 3, 3)]), tmp_path)
    first = tflite.lower(model, target, {}, tmp_path)
    before = (tmp_path / first.files[0]).read_bytes()
    tflite.lower(model, target, {}, tmp_path)
    assert (tmp_path / first.files[0]).read_bytes() == before


def test_impossible_option(tmp_path):
    model = saved(single("Relu", [(1, 3)]), tmp_path)
    with pytest.raises(ConfigError, match="io_layout"):
        tflite.lower(model, targets.find("tflite-fp32"), {"io_layout": "chwn"}, tmp_path)
    assert not (tmp_path / "model.tflite").exists()


def test_dynamic_axes_are_refused(tmp_path):
    made = single("Relu", [(1, 3)])
    made.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    with pytest.raises(UnsupportedError, match="batch") as caught:
        tflite.lower(saved(made, tmp_path), targets.find("tflite-fp32"), {}, tmp_path)
    assert caught.value.exit_code == 4


def test_origins_lead_back_to_modules(tmp_path):
    made = single("Relu", [(1, 3)])
    entry = made.graph.node[0].metadata_props.add()
    entry.key, entry.value = "pkg.torch.onnx.name_scopes", "['', 'features', 'features.0', 'relu']"
    made = tflite.lower(saved(made, tmp_path), targets.find("tflite-fp32"), {}, tmp_path)
    assert made.details["origins"]["y"] == {"node": "node", "op": "Relu", "module": "features.0"}


def test_a_size_beyond_32_bits_is_refused_by_name(tmp_path):
    """The file has no room for it: it must neither wrap around nor end as a defect."""
    nodes = [
        helper.make_node("Expand", ["x", "sizes"], ["e"], name="expand"),
        helper.make_node("ReduceSum", ["e", "axis"], ["y"], name="sum", keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [8])],
        [
            numpy_helper.from_array(np.asarray([3_000_000_000, 8]), "sizes"),
            numpy_helper.from_array(np.asarray([0]), "axis"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.save(onnx.shape_inference.infer_shapes(model), tmp_path / "m.onnx")
    (tmp_path / "out").mkdir()
    with pytest.raises(UnsupportedError, match="3,000,000,000") as caught:
        tflite.lower(io.describe(tmp_path / "m.onnx"), targets.find("tflite-fp32"), {}, tmp_path / "out")
    assert caught.value.exit_code == 4
