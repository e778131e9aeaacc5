"""Folding the preprocessing contract into the graph: the same numbers from raw pixels."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import onnx
from onnx import TensorProto, helper, numpy_helper

from edgekit.errors import ConfigError
from edgekit.graph import io
from edgekit.graph.passes.fold_preprocessing import fold_preprocessing
from edgekit.preprocess.contract import Preprocessing
from edgekit.types import OnnxModel, TensorSpec, sha256_file

SHAPES = {"NCHW": (1, 3, 6, 5), "NHWC": (1, 6, 5, 3)}


def model(path: Path, layout: str, batch: int | str = 1, dtype: int = TensorProto.FLOAT) -> OnnxModel:
    """``y = 2 x + w`` with a different ``w`` for every element, and ``x`` read twice."""
    shape = SHAPES[layout]
    w = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    nodes = [
        helper.make_node("Add", ["image", "w"], ["a"]),
        helper.make_node("Add", ["a", "image"], ["y"]),
    ]
    declared = [batch, *shape[1:]]
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", dtype, declared)],
        [helper.make_tensor_value_info("y", dtype, declared)],
        [numpy_helper.from_array(w.astype(helper.tensor_dtype_to_np_dtype(dtype)), "w")],
    )
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    spec = TensorSpec(name="image", dtype="float32", shape=(batch, *shape[1:]))
    return OnnxModel(path=path, sha256=sha256_file(path), opset=18, inputs=(spec,), outputs=(spec,))


def run(path: Path, fed: np.ndarray) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"image": fed})[0]


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("color", ["rgb", "bgr"])
@pytest.mark.parametrize("batch", [1, "batch"])
def test_pixels_give_what_the_fed_tensor_gave(
    tmp_path: Path, layout: str, color: str, batch: int | str
) -> None:
    contract = Preprocessing(
        resize=(6, 5), color=color, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), layout=layout
    )
    before = model(tmp_path / "before.onnx", layout, batch)
    after, left = fold_preprocessing(before, contract, tmp_path / "after.onnx")
    image = np.random.default_rng(0).integers(0, 256, (20, 13, 3), dtype=np.uint8)
    want = run(before.path, contract.apply(image))
    got = run(after.path, left.apply(image))
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=2e-6)
    assert after.inputs[0].shape == (batch, 6, 5, 3)
    assert left.is_folded
    onnx.checker.check_model(onnx.load(after.path), full_check=True)
    np.testing.assert_array_equal(contract.unapply(contract.apply(image)), left.apply(image))


def test_a_contract_that_changes_nothing_adds_nothing(tmp_path: Path) -> None:
    contract = Preprocessing(resize=(6, 5), scale=1.0, layout="NHWC")
    after, left = fold_preprocessing(model(tmp_path / "b.onnx", "NHWC"), contract, tmp_path / "a.onnx")
    assert io.load(after.path).graph.num_nodes() == 2
    assert left.input == "image"


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_colour_becomes_grey_in_the_graph_to_the_bit(tmp_path: Path, layout: str, dtype: str) -> None:
    shape = (1, 1, 16, 16) if layout == "NCHW" else (1, 16, 16, 1)
    node = helper.make_node("Identity", ["image"], ["y"])
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in ("image", "y")]
    made = helper.make_graph([node], "g", values[:1], values[1:])
    path = tmp_path / "b.onnx"
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    # Powers of two, so that scaling is exact and every bit of the luma shows.
    exact = {"scale": 1 / 256, "mean": (0.25,), "std": (0.5,)}
    contract = Preprocessing(crop=(16, 16), color="gray", layout=layout, **exact)
    after, left = fold_preprocessing(io.describe(path), contract, tmp_path / "a.onnx", dtype=dtype)
    assert (left.color, left.dtype, after.inputs[0].shape) == ("rgb", dtype, (1, 16, 16, 3))
    for seed in range(20):
        image = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        got = run(after.path, left.apply(image))
        np.testing.assert_array_equal(got, contract.apply(image))
        np.testing.assert_array_equal(contract.feed(image[None]), contract.apply(image))
        np.testing.assert_array_equal(contract.feed(image[None].astype("f4")), contract.apply(image))


def test_a_grey_contract_needs_one_channel(tmp_path: Path) -> None:
    contract = Preprocessing(resize=(6, 5), color="gray", scale=1 / 16)
    with pytest.raises(ConfigError, match=r"\[1, 1, 6, 5\]"):
        fold_preprocessing(model(tmp_path / "b.onnx", "NCHW"), contract, tmp_path / "a.onnx")


def test_other_inputs_are_refused(tmp_path: Path) -> None:
    contract = Preprocessing(resize=(6, 5), input="mask")
    with pytest.raises(ConfigError, match="no float32 input"):
        fold_preprocessing(model(tmp_path / "b.onnx", "NCHW"), contract, tmp_path / "a.onnx")
    whole = model(tmp_path / "i.onnx", "NCHW", dtype=TensorProto.INT32)
    with pytest.raises(ConfigError, match="no float32 input"):
        fold_preprocessing(whole, Preprocessing(resize=(6, 5)), tmp_path / "a.onnx")
