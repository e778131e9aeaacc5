"""Which of two models a comparison begins with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.artifact import manifest
from edgekit.core import targets
from edgekit.diff import order
from edgekit.types import Precision


def test_every_precision_has_its_place() -> None:
    assert set(order._BITS) == set(Precision)


class _Opened:
    def __init__(self, target: str) -> None:
        self.manifest = self
        self.target = targets.known()[target]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An artifact for each target that a test names, as far as this asks for it."""
    monkeypatch.setattr(manifest, "read", lambda path: _Opened(path.name))
    for name in targets.known():
        (tmp_path / name).mkdir()
        (tmp_path / name / manifest.FILE_NAME).write_text("{}")
    onnx.save(_model(np.float32), tmp_path / "float.onnx")
    onnx.save(_model(np.float16), tmp_path / "half.onnx")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _model(dtype: type) -> onnx.ModelProto:
    kind = TensorProto.FLOAT if dtype is np.float32 else TensorProto.FLOAT16
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    x, y = (helper.make_tensor_value_info(n, kind, [1, 4]) for n in "xy")
    weight = numpy_helper.from_array(np.eye(4, dtype=dtype), "w")
    return helper.make_model(helper.make_graph([node], "g", [x], [y], [weight]))


@pytest.mark.parametrize(
    ("finer", "coarser"),
    [
        ("net.py:factory", "ort-int8"),
        ("net.py:factory", "ort-fp32"),
        ("float.onnx", "tflite-int8"),
        ("net.py:factory", "half.onnx"),
        ("float.onnx", "half.onnx"),
        ("ort-fp32", "ort-int8"),
        ("ort-fp32", "openvino-fp16"),
        ("openvino-fp16", "openvino-bf16"),
        ("tflite-int16x8", "tflite-int8"),
        ("ort-int8-weights", "ort-int4-weights"),
        ("ort-fp32", "half.onnx"),
    ],
)
def test_the_finer_is_the_reference_whatever_the_order(finer: str, coarser: str, folder: Path) -> None:
    assert order.reference_first(finer, coarser) == (finer, coarser)
    assert order.reference_first(coarser, finer) == (finer, coarser)


@pytest.mark.parametrize(
    "pair",
    [
        ("ort-fp32", "tflite-fp32"),
        ("ort-int8", "openvino-int8"),
        ("ort-int4-weights", "ort-int8"),  # finer activations here, finer weights there
        ("a.py:factory", "b.py:factory"),
        ("float.onnx", "net.py:factory"),
    ],
)
def test_where_neither_is_finer_the_first_is_the_reference(pair: tuple[str, str], folder: Path) -> None:
    assert order.reference_first(*pair) == pair
    assert order.reference_first(*reversed(pair)) == tuple(reversed(pair))
