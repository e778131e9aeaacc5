"""A small quantized graph with its recipe, as a ``tensorrt-*`` artifact has them; no torch."""

from __future__ import annotations

import json

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def artifact(folder, *, precision="int8", seed=0, batch=1, **recipe):
    """``model.onnx`` and ``recipe.json`` in ``folder``; returns the former's path."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    weights = rng.integers(-127, 127, (4, 3, 3, 3)).astype("int8")
    constants = {
        "w": weights,
        "w_scale": np.full(4, 0.01, "f"),
        "w_zero": np.zeros(4, "int8"),
        "x_scale": np.asarray(0.02, "f"),
        "x_zero": np.asarray(0, "int8"),
        "axes": np.asarray([2, 3], "int64"),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "x_scale", "x_zero"], ["xq"], name="quantize_x"),
        helper.make_node("DequantizeLinear", ["xq", "x_scale", "x_zero"], ["xd"], name="dequantize_x"),
        helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["wd"], name="dequantize_w", axis=0),
        helper.make_node("Conv", ["xd", "wd"], ["c"], name="conv"),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("ReduceMean", ["r", "axes"], ["y"], name="mean", keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 4])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    model.ir_version = 10
    onnx.save(model, folder / "model.onnx")
    (folder / "recipe.json").write_text(json.dumps({"precision": precision, **recipe}))
    return folder / "model.onnx"
