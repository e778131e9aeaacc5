"""The backend: ONNX file → artifact, and what its placement says."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import onnx
import pytest

pytest.importorskip("ai_edge_litert")

from test_tflite_quantized import Quantized, weights
from tflite_support import graph, single

from edgekit import catalog
from edgekit.backends import tflite
from edgekit.errors import ConfigError, UnsupportedError
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
    target = catalog.target("tflite-int8")
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
    target = catalog.target("tflite-int8")
    model = saved(quantized_model(), tmp_path)
    made = tflite.lower(model, target, {}, tmp_path)
    session = runner().load(str(tmp_path / "model.tflite"), {"threads": 1, "xnnpack": False})
    placement = tflite.placement(model, target, made, session.placement())
    assert placement.share == 0.0
    assert placement.partitions == 0


def test_same_file_same_bytes(tmp_path):
    target = catalog.target("tflite-fp32")
    model = saved(single("Conv", [(1, 3, 8, 8)], [weights(4, 3, 3, 3)]), tmp_path)
    first = tflite.lower(model, target, {}, tmp_path)
    before = (tmp_path / first.files[0]).read_bytes()
    tflite.lower(model, target, {}, tmp_path)
    assert (tmp_path / first.files[0]).read_bytes() == before


def test_impossible_option(tmp_path):
    model = saved(single("Relu", [(1, 3)]), tmp_path)
    with pytest.raises(ConfigError, match="io_layout"):
        tflite.lower(model, catalog.target("tflite-fp32"), {"io_layout": "chwn"}, tmp_path)
    assert not (tmp_path / "model.tflite").exists()


def test_dynamic_axes_are_refused(tmp_path):
    made = single("Relu", [(1, 3)])
    made.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    with pytest.raises(UnsupportedError, match="batch") as caught:
        tflite.lower(saved(made, tmp_path), catalog.target("tflite-fp32"), {}, tmp_path)
    assert caught.value.exit_code == 4


def test_origins_lead_back_to_modules(tmp_path):
    made = single("Relu", [(1, 3)])
    entry = made.graph.node[0].metadata_props.add()
    entry.key, entry.value = "pkg.torch.onnx.name_scopes", "['', 'features', 'features.0', 'relu']"
    made = tflite.lower(saved(made, tmp_path), catalog.target("tflite-fp32"), {}, tmp_path)
    assert made.details["origins"]["y"] == {"node": "node", "op": "Relu", "module": "features.0"}
