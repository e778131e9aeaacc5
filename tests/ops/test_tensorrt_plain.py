"""Operators written for TensorRT's parser in others: ONNX Runtime says the same of both, and the parser takes them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.backends.nvidia import plain, tensorrt_rtx
from edgekit.core import targets
from edgekit.graph import io

needs_rtx = pytest.mark.skipif(
    not tensorrt_rtx.available().installed, reason="the extra tensorrt-rtx is not installed"
)
RANDOM = np.random.default_rng(0)


def made(
    path: Path,
    node: onnx.NodeProto,
    given: dict[str, list[Any]],
    constants: dict[str, Any],
    shape: list[int] | None = None,
) -> Path:
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in given.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()],
    )
    imports = [helper.make_opsetid("", 20), helper.make_opsetid(plain.MICROSOFT, 1)]
    onnx.save(
        onnx.shape_inference.infer_shapes(helper.make_model(graph, opset_imports=imports, ir_version=9)), path
    )
    return path


def answers(path: Path, fed: dict[str, Any]) -> Any:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, fed)[0]


def pool(
    path: Path, op: str = "MaxPool", *, open_: int = 0, **attributes: Any
) -> tuple[Path, dict[str, Any]]:
    """``open_``: how many of its axes have no size."""
    rank = len(attributes["kernel_shape"])
    shape = [2, 3, 11, 9, 8][: 2 + rank]
    node = helper.make_node(op, ["x"], ["y"], name="pool", **attributes)
    named = [f"axis{i}" if i in (0, 2, 3)[:open_] else size for i, size in enumerate(shape)]
    return made(path, node, {"x": named}, {}), {"x": RANDOM.normal(size=shape).astype(np.float32) - 5}


def patches(path: Path, image: list[int], block: list[int], **attributes: Any) -> tuple[Path, dict[str, Any]]:
    strides, dilations = (attributes.get(name, [1, 1]) for name in ("strides", "dilations"))
    pads = attributes.get("pads", [0] * 4)
    counts = [
        (image[i] + pads[i] + pads[2 + i] - dilations[i] * (block[i] - 1) - 1) // strides[i] + 1
        for i in range(2)
    ]
    shape = [2, 3 * math.prod(block), math.prod(counts)]
    node = helper.make_node("Col2Im", ["x", "image", "block"], ["y"], name="patches", **attributes)
    constants = {"image": image, "block": block}
    return made(path, node, {"x": shape}, constants), {"x": RANDOM.normal(size=shape).astype(np.float32)}


def spectrum(
    path: Path, shape: list[int], axis: int = -2, *, named: bool = False, **attributes: Any
) -> tuple[Path, dict[str, Any]]:
    """``named``: the batch has no size."""
    node = helper.make_node("DFT", ["x", "", "axis"], ["y"], name="dft", **attributes)
    given = {"x": ["batch" if named and not i else n for i, n in enumerate(shape)]}
    return made(path, node, given, {"axis": np.int64(axis)}), {
        "x": RANDOM.normal(size=shape).astype(np.float32)
    }


def smaller(
    path: Path, sizes: list[int], *, scales: list[float] | None = None, **attributes: Any
) -> tuple[Path, dict[str, Any]]:
    shape = [2, 3, 16, 15]
    how = ["x", "", "", "how"] if scales is None else ["x", "", "how"]
    node = helper.make_node("Resize", how, ["y"], name="resize", antialias=1, **attributes)
    known = np.array([2, 3, *sizes]) if scales is None else np.array([1, 1, *scales], np.float32)
    given = {"x": shape if scales is None else ["batch", *shape[1:]]}
    return made(path, node, given, {"how": known}), {"x": RANDOM.normal(size=shape).astype(np.float32)}


def transposed(path: Path, **attributes: Any) -> tuple[Path, dict[str, Any]]:
    shape = [2, 4, 5, 6]
    weights = RANDOM.normal(size=(4, 3, 3, 2)).astype(np.float32)
    bias = np.ones(3 * attributes.get("group", 1), np.float32)
    node = helper.make_node("ConvTranspose", ["x", "w", "b"], ["y"], name="deconvolution", **attributes)
    given = {"x": ["batch", *shape[1:]]}
    return made(path, node, given, {"w": weights, "b": bias}), {
        "x": RANDOM.normal(size=shape).astype(np.float32)
    }


def attention(path: Path, **attributes: Any) -> tuple[Path, dict[str, Any]]:
    constants = {"w": RANDOM.normal(size=(16, 48)).astype(np.float32), "b": np.ones(48, np.float32) * 0.1}
    node = helper.make_node(
        "Attention", ["x", "w", "b"], ["y"], name="a", domain=plain.MICROSOFT, num_heads=4, **attributes
    )
    model = made(path, node, {"x": [2, 5, 16]}, constants, [2, 5, 16])
    return model, {"x": RANDOM.normal(size=(2, 5, 16)).astype(np.float32)}


CASES = {
    "pool": lambda p: pool(p, kernel_shape=[3, 2], dilations=[2, 3]),
    "pool with strides and pads": lambda p: pool(
        p, kernel_shape=[3, 3], dilations=[2, 1], strides=[2, 3], pads=[2, 1, 1, 0]
    ),
    "pool of one axis": lambda p: pool(p, kernel_shape=[4], dilations=[2], pads=[3, 0]),
    "pool of an open batch": lambda p: pool(
        p, kernel_shape=[3, 2], dilations=[2, 3], pads=[1, 1, 1, 1], strides=[2, 1], open_=1
    ),
    "pool of an open image": lambda p: pool(
        p, kernel_shape=[3, 2], dilations=[2, 3], strides=[2, 1], open_=3
    ),
    "mean of an open image": lambda p: pool(p, "AveragePool", kernel_shape=[3, 2], dilations=[2, 3], open_=3),
    "pool of three axes": lambda p: pool(p, kernel_shape=[2, 2, 2], dilations=[3, 2, 1]),
    "pool rounded up": lambda p: pool(
        p, kernel_shape=[3, 3], dilations=[2, 2], strides=[2, 3], pads=[1, 0, 2, 1], ceil_mode=1
    ),
    "mean": lambda p: pool(p, "AveragePool", kernel_shape=[3, 2], dilations=[2, 3], strides=[2, 1]),
    "mean without its padding": lambda p: pool(
        p, "AveragePool", kernel_shape=[3, 3], dilations=[2, 1], strides=[2, 3], pads=[2, 1, 1, 0]
    ),
    "mean with its padding": lambda p: pool(
        p, "AveragePool", kernel_shape=[2, 3], dilations=[2, 2], pads=[1, 1, 1, 1], count_include_pad=1
    ),
    "patches": lambda p: patches(p, [5, 6], [2, 3]),
    "patches with gaps and borders": lambda p: patches(p, [8, 9], [2, 2], strides=[3, 3]),
    "patches that overlap": lambda p: patches(p, [7, 8], [3, 3], pads=[1, 1, 1, 1], strides=[2, 2]),
    "patches with dilations": lambda p: patches(p, [7, 8], [3, 2], pads=[1, 0, 0, 1], dilations=[2, 3]),
    "patches with strides and dilations": lambda p: patches(
        p, [9, 9], [2, 3], dilations=[2, 1], strides=[2, 2]
    ),
    "spectrum": lambda p: spectrum(p, [2, 9, 1], named=True),
    "half a spectrum": lambda p: spectrum(p, [2, 8, 1], onesided=1),
    "spectrum of complex numbers": lambda p: spectrum(p, [2, 3, 8, 2], 1),
    "spectrum back": lambda p: spectrum(p, [2, 7, 5, 2], 2, inverse=1),
    "smaller": lambda p: smaller(p, [7, 5], mode="linear"),
    "smaller, with cubes": lambda p: smaller(p, [8, 20], mode="cubic", cubic_coeff_a=-0.5),
    "half as high": lambda p: smaller(p, [], scales=[0.5, 1.0], mode="linear"),
    "transposed convolution": lambda p: transposed(
        p, strides=[2, 2], dilations=[2, 3], pads=[1, 0, 1, 2], output_padding=[1, 1]
    ),
    "transposed convolution of groups": lambda p: transposed(p, strides=[2, 1], dilations=[1, 2], group=2),
    "attention": attention,
    # ONNX Runtime 1.31 crashes on one without a bias.
    "attention with a scale": lambda p: attention(p, scale=0.3),
}


@pytest.mark.parametrize("case", CASES)
def test_it_says_the_same(case: str, tmp_path: Path) -> None:
    path, fed = CASES[case](tmp_path / "m.onnx")
    model = io.load(path)
    assert len(plain.write_plainly(model)) == 1
    rewritten = {("", op) for op in ("MaxPool", "AveragePool", "Col2Im", "DFT", "Resize")}
    rewritten.add((plain.MICROSOFT, "Attention"))
    assert not rewritten & {(n.domain, n.op_type) for n in model.graph}
    assert not {"image", "block"} & set(model.graph.initializers)
    ir.save(model, tmp_path / "plain.onnx")
    onnx.checker.check_model(str(tmp_path / "plain.onnx"))
    assert np.allclose(answers(tmp_path / "plain.onnx", fed), answers(path, fed), rtol=1e-5, atol=1e-5)


@needs_rtx
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_engine_is_built_of_it(case: str, precision: str, tmp_path: Path) -> None:
    path, _ = CASES[case](tmp_path / "m.onnx")
    target = targets.find(f"tensorrt-rtx-{precision}")
    (tmp_path / "out").mkdir()
    lowered = tensorrt_rtx.lower(io.describe(path), target, {}, tmp_path / "out")
    assert any("written in operators that TensorRT has" in note for note in lowered.notes)


@pytest.mark.parametrize(
    "model",
    [
        lambda p: pool(p, kernel_shape=[3, 3]),
        lambda p: pool(p, kernel_shape=[2, 2], dilations=[2, 2], ceil_mode=1, strides=[2, 2], open_=3),
        lambda p: smaller(p, [], scales=[0.4, 0.4], mode="linear"),
        lambda p: transposed(p, strides=[2, 2]),
        lambda p: transposed(p, dilations=[2, 2]),
        lambda p: attention(p, unidirectional=1),
    ],
    ids=["no dilation", "rounded up", "odd scales", "strides alone", "dilations alone", "causal"],
)
def test_what_has_another_form_stays(model: Any, tmp_path: Path) -> None:
    path, _ = model(tmp_path / "m.onnx")
    assert plain.write_plainly(io.load(path)) == ()


def written(path: Path, out: Path) -> Path:
    model = io.load(path)
    assert plain.write_plainly(model)
    ir.save(model, out)
    return out


def test_the_largest_of_nothing_but_infinities_is_one(tmp_path: Path) -> None:
    """A window in the corner sees -inf and padding, and padding is no number."""
    path, _ = pool(tmp_path / "m.onnx", kernel_shape=[2, 2], dilations=[2, 2], pads=[1, 1, 1, 1])
    x = np.full((2, 3, 11, 9), -np.inf, np.float32)
    x[:, :, 5, 5] = -7
    found = answers(written(path, tmp_path / "plain.onnx"), {"x": x})
    assert sorted(set(found.ravel().tolist())) == [-np.inf, -7]
    assert (found == -7).sum() == 2 * 3 * 4


def test_an_infinity_in_a_patch_stays_in_its_place(tmp_path: Path) -> None:
    path, fed = patches(tmp_path / "m.onnx", [4, 4], [2, 2], strides=[1, 1])
    fed["x"][0, 1, 4] = -np.inf  # the second place of the fifth block: row 1, column 2 of the first channel
    found = answers(written(path, tmp_path / "plain.onnx"), fed)
    assert np.argwhere(~np.isfinite(found)).tolist() == [[0, 0, 1, 2]]
    assert np.allclose(found, answers(path, fed), atol=1e-5)
