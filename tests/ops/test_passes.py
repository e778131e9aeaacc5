"""Each rewrite: what it makes of a graph, that the numbers stay, and where it must not fire."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

import onnx_ir as ir

from edgekit.errors import ConfigError, UnknownNameError
from edgekit.graph import io, passes
from edgekit.graph.passes.activations import RecognizeActivations
from edgekit.graph.passes.affine import FoldAffine
from edgekit.graph.passes.batch_norm import FoldBatchNorm
from edgekit.graph.passes.clean_up import CleanUp, DropUnread
from edgekit.graph.passes.constants import FoldConstants
from edgekit.graph.passes.einsum import LowerCaseEinsum, legalize
from edgekit.graph.passes.gemm import MatMulAddToGemm
from edgekit.graph.passes.layer_norm import RecognizeLayerNorm
from edgekit.graph.passes.reshapes import MergeReshapes
from edgekit.graph.passes.scales import FoldScale
from edgekit.graph.passes.softmax_guard import DropSoftmaxGuard
from edgekit.graph.passes.transposes import MergeTransposes
from edgekit.types import OnnxModel

RNG = np.random.default_rng(0)


def model(signature: str, body: str, opset: int = 20, **constants: np.ndarray) -> ir.Model:
    """A model from ONNX text; keyword arrays become initializers."""
    text = f'<ir_version: 10, opset_import: ["" : {opset}]>\nmain {signature} {{\n{body}\n}}'
    made = ir.from_onnx_text(text)
    for name, array in constants.items():
        array = np.asarray(array)
        value = ir.Value(name=name, const_value=ir.Tensor(array, name=name))
        value.shape, value.type = ir.Shape(array.shape), ir.TensorType(ir.DataType.from_numpy(array.dtype))
        made.graph.initializers[name] = value
        for node in made.graph:
            for i, used in enumerate(node.inputs):
                if used is not None and used.name == name:
                    node.replace_input_with(i, value)
        for old in [v for v in made.graph.inputs if v.name == name]:
            made.graph.inputs.remove(old)
    return passes._infer(made)


def ops(made: ir.Model) -> Counter[str]:
    return Counter(n.op_type for n in made.graph)


def outputs(made: ir.Model, path: Path, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return io.run(io.session(io.save(made, path).path), inputs)


def apply(rewrite: ir.passes.PassBase, made: ir.Model, tmp_path: Path, **inputs: np.ndarray) -> ir.Model:
    """Apply, and check that names and numbers stay."""
    before = outputs(made, tmp_path / "before.onnx", inputs)
    after_model = rewrite(made.clone()).model
    after = outputs(after_model, tmp_path / "after.onnx", inputs)
    assert list(before) == list(after)
    for name, array in before.items():
        np.testing.assert_allclose(after[name], array, rtol=2e-5, atol=1e-5)
    return after_model


def x(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def norm(channels: int) -> dict[str, np.ndarray]:
    return {"g": x(channels), "b": x(channels), "m": x(channels), "v": np.abs(x(channels)) + 0.1}


# --- batch norm ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [False, True])
def test_batch_norm_into_conv(tmp_path: Path, bias: bool) -> None:
    made = model(
        "(float[1,3,8,8] x) => (float[1,4,8,8] y)",
        f"c = Conv <pads = [1,1,1,1]> (x, w{', wb' if bias else ''})\ny = BatchNormalization (c, g, b, m, v)",
        w=x(4, 3, 3, 3),
        **({"wb": x(4)} if bias else {}),
        **norm(4),
    )
    assert ops(apply(FoldBatchNorm(), made, tmp_path, x=x(1, 3, 8, 8))) == {"Conv": 1}


@pytest.mark.parametrize("group", [1, 2])
def test_batch_norm_into_conv_transpose(tmp_path: Path, group: int) -> None:
    made = model(
        "(float[1,4,5,5] x) => (float[1,6,7,7] y)",
        f"c = ConvTranspose <group = {group}> (x, w)\ny = BatchNormalization (c, g, b, m, v)",
        w=x(4, 6 // group, 3, 3),
        **norm(6),
    )
    assert ops(apply(FoldBatchNorm(), made, tmp_path, x=x(1, 4, 5, 5))) == {"ConvTranspose": 1}


@pytest.mark.parametrize("transposed", [0, 1])
def test_batch_norm_into_gemm(tmp_path: Path, transposed: int) -> None:
    made = model(
        "(float[2,5] x) => (float[2,4] y)",
        f"c = Gemm <transB = {transposed}, alpha = 0.5, beta = 2.0> (x, w, wb)\ny = BatchNormalization (c, g, b, m, v)",
        w=x(4, 5) if transposed else x(5, 4),
        wb=x(4),
        **norm(4),
    )
    assert ops(apply(FoldBatchNorm(), made, tmp_path, x=x(2, 5))) == {"Gemm": 1}


def test_batch_norm_stays_where_the_conv_is_read_twice(tmp_path: Path) -> None:
    made = model(
        "(float[1,3,8,8] x) => (float[1,4,6,6] y)",
        "c = Conv (x, w)\nn = BatchNormalization (c, g, b, m, v)\ny = Add (n, c)",
        w=x(4, 3, 3, 3),
        **norm(4),
    )
    assert ops(apply(FoldBatchNorm(), made, tmp_path, x=x(1, 3, 8, 8)))["BatchNormalization"] == 1


def test_batch_norm_stays_where_the_conv_is_an_output(tmp_path: Path) -> None:
    made = model(
        "(float[1,3,8,8] x) => (float[1,4,6,6] c, float[1,4,6,6] y)",
        "c = Conv (x, w)\ny = BatchNormalization (c, g, b, m, v)",
        w=x(4, 3, 3, 3),
        **norm(4),
    )
    assert ops(apply(FoldBatchNorm(), made, tmp_path, x=x(1, 3, 8, 8)))["BatchNormalization"] == 1


def test_batch_norm_stays_where_the_weight_is_an_input(tmp_path: Path) -> None:
    made = model(
        "(float[1,3,8,8] x, float[4,3,3,3] w) => (float[1,4,6,6] y)",
        "c = Conv (x, w)\ny = BatchNormalization (c, g, b, m, v)",
        **norm(4),
    )
    assert "BatchNormalization" in ops(
        apply(FoldBatchNorm(), made, tmp_path, x=x(1, 3, 8, 8), w=x(4, 3, 3, 3))
    )


# --- scale and shift ----------------------------------------------------------------------------------


def test_scale_into_the_weights_of_attention(tmp_path: Path) -> None:
    made = model(
        "(float[6,8] x) => (float[2,6,6] y)",
        "a = MatMul (x, w)\nb = Add (a, c)\nd = Reshape (b, s)\ne = Transpose <perm = [1, 0, 2]> (d)\nq = Mul (e, f)\n"
        "g = Gemm (x, v, c2)\nh = Reshape (g, s)\ni = Div (h, f)\nk = Transpose <perm = [1, 2, 0]> (i)\n"
        "y = MatMul (q, k)",
        w=x(8, 8), c=x(8), v=x(8, 8), c2=x(8), s=np.array([6, 2, 4]), f=np.float32(0.42),
    )  # fmt: skip
    found = ops(apply(FoldScale(), made, tmp_path, x=x(6, 8)))
    assert found["Mul"] == found["Div"] == 0


@pytest.mark.parametrize(
    "body",
    [
        "a = MatMul (x, w)\nm = Mul (a, f)\ny = Add (m, a)",
        "a = Relu (x)\ny = Mul (a, f)",
        "a = MatMul (x, w)\ny = Div (f, a)",
        "a = MatMul (x, w)\nb = MatMul (x, w)\nm = Mul (a, f)\ny = Add (m, b)",
    ],
    ids=["read twice", "no weights", "a divisor", "shared weights"],
)  # fmt: skip
def test_a_scale_stays(tmp_path: Path, body: str) -> None:
    made = model("(float[4,4] x) => (float[4,4] y)", body, w=x(4, 4), f=np.float32(3))
    assert ops(apply(FoldScale(), made, tmp_path, x=x(4, 4))) == ops(made)


def test_affine_into_conv(tmp_path: Path) -> None:
    made = model(
        "(float[1,3,8,8] x) => (float[1,4,6,6] y)",
        "c = Conv (x, w)\nd = Mul (s, c)\ne = Sub (d, t)\nf = Div (e, q)\ny = Add (f, u)",
        w=x(4, 3, 3, 3),
        s=x(1, 4, 1, 1),
        t=x(4, 1, 1),
        q=np.float32(3),
        u=x(4, 1, 1),
    )
    assert ops(apply(FoldAffine(), made, tmp_path, x=x(1, 3, 8, 8))) == {"Conv": 1}


@pytest.mark.parametrize("body", ["d = Mul (c, s)", "d = Div (t, c)", "d = Sub (t, c)", "d = Add (c, c)"])
def test_affine_stays(tmp_path: Path, body: str) -> None:
    made = model(
        "(float[1,4,6,6] x) => (float[1,4,6,6] y)",
        f"c = Conv (x, w)\n{body}\ny = Relu (d)",
        w=x(4, 4, 1, 1),
        s=x(1, 4, 6, 6),
        t=x(4, 1, 1),
    )
    assert sum(ops(apply(FoldAffine(), made, tmp_path, x=x(1, 4, 6, 6))).values()) == 3


# --- clean-up -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        "a = Identity (x)",
        "a = Dropout (x)",
        "a = Cast <to = 1> (x)",
        "a = Transpose <perm = [0,1,2]> (x)",
        "a = Concat <axis = 0> (x)",
        "a = Sum (x)",
        "a = Reshape (x, shape)",
        "a = Expand (x, shape)",
        "a = Pad (x, pads)",
        "a = Slice (x, starts, ends)",
    ],
)
def test_no_ops_go(tmp_path: Path, body: str) -> None:
    made = model(
        "(float[2,3,4] x) => (float[2,3,4] y)",
        f"{body}\ny = Relu (a)",
        shape=np.array([2, 3, 4]),
        pads=np.zeros(6, np.int64),
        starts=np.array([0]),
        ends=np.array([2]),
    )
    assert ops(apply(CleanUp(), made, tmp_path, x=x(2, 3, 4))) == {"Relu": 1}


def test_what_only_a_node_that_is_gone_reads_is_not_stored(tmp_path: Path) -> None:
    made = model("(float[3] x) => (float[3] y)", "y = Mul (x, w)", w=np.ones(3, np.float32))
    stray = ir.Value(name="stray", const_value=ir.tensor(np.ones((64, 64), np.float32), name="stray"))
    made.graph.initializers["stray"] = stray
    gone = ir.Node("", "Neg", [stray])  # folding leaves such nodes behind, which read on
    assert stray.uses()
    DropUnread()(made)
    assert list(made.graph.initializers) == ["w"]
    assert gone.inputs == (stray,)


@pytest.mark.parametrize(
    "body",
    [
        "a = Cast <to = 10> (x)\nb = Cast <to = 1> (a)",
        "b = Transpose <perm = [0,2,1]> (x)",
        "b = Concat <axis = 2> (x, x)",
        "b = Reshape (x, other)",
        "b = Slice (x, starts, ends, axes, steps)",
    ],
)
def test_what_computes_something_stays(tmp_path: Path, body: str) -> None:
    made = model(
        "(float[2,3,3] x) => (float[a,b,c] y)",
        f"{body}\ny = Relu (b)",
        other=np.array([3, 2, 3]),
        starts=np.array([-1]),
        ends=np.array([-100]),
        axes=np.array([0]),
        steps=np.array([-1]),
    )
    before = sum(ops(made).values())
    assert sum(ops(apply(CleanUp(), made, tmp_path, x=x(2, 3, 3))).values()) == before


def test_outputs_keep_their_names(tmp_path: Path) -> None:
    made = model(
        "(float[2,3] x) => (float[2,3] y, float[2,3] z, float[2,3] copy, float[2,3] through)",
        "a = Relu (x)\ny = Identity (a)\nz = Identity (y)\ncopy = Dropout (z)\nthrough = Identity (x)",
    )
    after = apply(CleanUp(), made, tmp_path, x=x(2, 3))
    assert [o.name for o in after.graph.outputs] == ["y", "z", "copy", "through"]
    assert ops(after)["Relu"] == 1


# --- transposes, reshapes -----------------------------------------------------------------------------


def test_transposes_merge_and_cancel(tmp_path: Path) -> None:
    made = model(
        "(float[2,3,4] x) => (float[a,b,c] y, float[d,e,f] z)",
        "a = Transpose <perm = [1,2,0]> (x)\ny = Transpose <perm = [1,0,2]> (a)\n"
        "b = Transpose <perm = [1,2,0]> (x)\nc = Transpose <perm = [2,0,1]> (b)\nz = Relu (c)",
    )
    after = apply(ir.passes.Sequential(MergeTransposes(), CleanUp()), made, tmp_path, x=x(2, 3, 4))
    assert ops(after) == {"Transpose": 1, "Relu": 1}


def test_transpose_that_is_read_elsewhere_stays(tmp_path: Path) -> None:
    made = model(
        "(float[2,3] x) => (float[3,2] a, float[2,3] y)",
        "a = Transpose <perm = [1,0]> (x)\nb = Transpose <perm = [1,0]> (a)\ny = Relu (b)",
    )
    after = apply(ir.passes.Sequential(MergeTransposes(), CleanUp()), made, tmp_path, x=x(2, 3))
    assert ops(after) == {"Transpose": 1, "Relu": 1}


def test_views_merge(tmp_path: Path) -> None:
    made = model(
        "(float[2,3,4] x) => (float[a,b] y)",
        "a = Unsqueeze (x, axes)\nb = Reshape (a, s)\nc = Flatten (b)\nd = Reshape (c, t)\ny = Relu (d)",
        axes=np.array([0]),
        s=np.array([6, 4]),
        t=np.array([4, -1]),
    )
    assert ops(apply(MergeReshapes(), made, tmp_path, x=x(2, 3, 4))) == {"Reshape": 1, "Relu": 1}


def test_reshape_that_copies_a_dynamic_axis_stays(tmp_path: Path) -> None:
    made = model(
        "(float[n,3,4] x) => (float[a,b,c] y)",
        "a = Reshape (x, s)\nb = Reshape (a, t)\ny = Relu (b)",
        s=np.array([4, -1, 3]),
        t=np.array([0, 3, -1]),
    )
    assert ops(apply(MergeReshapes(), made, tmp_path, x=x(5, 3, 4)))["Reshape"] == 2


# --- gemm ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["(p, b)", "(b, p)"])
def test_matmul_add_becomes_gemm(tmp_path: Path, order: str) -> None:
    made = model("(float[n,5] x) => (float[n,4] y)", f"p = MatMul (x, w)\ny = Add {order}", w=x(5, 4), b=x(4))
    assert ops(apply(MatMulAddToGemm(), made, tmp_path, x=x(3, 5))) == {"Gemm": 1}


def test_matmul_on_three_axes_and_wide_bias_stay(tmp_path: Path) -> None:
    made = model(
        "(float[1,2,5] x) => (float[1,2,4] y)", "p = MatMul (x, w)\ny = Add (p, b)", w=x(5, 4), b=x(4)
    )
    assert ops(apply(MatMulAddToGemm(), made, tmp_path, x=x(1, 2, 5)))["MatMul"] == 1
    made = model(
        "(float[2,5] x) => (float[2,4] y)", "p = MatMul (x, w)\ny = Add (p, b)", w=x(5, 4), b=x(2, 4)
    )
    assert ops(apply(MatMulAddToGemm(), made, tmp_path, x=x(2, 5)))["MatMul"] == 1


# --- activations --------------------------------------------------------------------------------------

GELUS = {
    "divide": "a = Div (x, r2)\ne = Erf (a)\np = Add (e, one)\nq = Mul (x, p)\ny = Mul (q, half)",
    "multiply": "a = Mul (r1, x)\ne = Erf (a)\np = Add (one, e)\nh = Mul (half, x)\ny = Mul (p, h)",
    "halves": "a = Mul (x, r1)\ne = Erf (a)\np = Add (e, one)\nq = Mul (p, half)\ny = Mul (x, q)",
    "erfc": "n = Neg (x)\na = Mul (n, r1)\ne = Erf (a)\np = Sub (one, e)\nh = Mul (x, half)\ny = Mul (h, p)",
    "tanh": "c = Pow (x, three)\nd = Mul (c, k)\ne = Add (x, d)\nf = Mul (e, rpi)\ng = Tanh (f)\n"
    "p = Add (g, one)\nh = Mul (half, x)\ny = Mul (h, p)",
    "tanh, cube by products": "s = Mul (x, x)\nc = Mul (s, x)\nd = Mul (k, c)\ne = Add (d, x)\nf = Mul (rpi, e)\n"
    "g = Tanh (f)\np = Add (one, g)\nq = Mul (x, p)\ny = Mul (half, q)",
}
NUMBERS = {
    name: np.float32(v)
    for name, v in {
        "r2": 2**0.5,
        "r1": 0.5**0.5,
        "one": 1,
        "half": 0.5,
        "three": 3,
        "k": 0.044715,
        "rpi": (2 / np.pi) ** 0.5,
        "six": 6,
        "zero": 0,
        "sixth": 1 / 6,
    }.items()
}


def used(body: str) -> dict[str, np.ndarray]:
    words = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    return {k: v for k, v in NUMBERS.items() if k in words}


@pytest.mark.parametrize("name", list(GELUS))
def test_gelu(tmp_path: Path, name: str) -> None:
    made = model("(float[2,9] x) => (float[2,9] y)", GELUS[name], **used(GELUS[name]))
    after = apply(RecognizeActivations(), made, tmp_path, x=3 * x(2, 9))
    assert ops(after) == {"Gelu": 1}
    (node,) = after.graph
    assert node.attributes["approximate"].value == ("tanh" if "tanh" in name else "none")


@pytest.mark.parametrize(
    "body",
    [
        "a = HardSigmoid <alpha = 0.1666667, beta = 0.5> (x)\ny = Mul (x, a)",
        "a = Add (x, three)\nb = Clip (a, zero, six)\nc = Mul (x, b)\ny = Div (c, six)",
        "a = Add (x, three)\nb = Clip (a, zero, six)\nc = Mul (b, sixth)\ny = Mul (c, x)",
        "a = Add (three, x)\nr = Relu (a)\nb = Min (r, six)\nc = Div (b, six)\ny = Mul (x, c)",
    ],
)
def test_hard_swish(tmp_path: Path, body: str) -> None:
    made = model("(float[2,9] x) => (float[2,9] y)", body, **used(body))
    assert ops(apply(RecognizeActivations(), made, tmp_path, x=4 * x(2, 9))) == {"HardSwish": 1}


@pytest.mark.parametrize(
    "body",
    [
        "a = Sigmoid (x)\ny = Mul (x, a)",
        "a = Mul (x, half)\ne = Erf (a)\np = Add (e, one)\nq = Mul (x, p)\ny = Mul (q, half)",
        "a = HardSigmoid <alpha = 0.2, beta = 0.5> (x)\ny = Mul (x, a)",
        "a = Tanh (x)\ny = Mul (x, a)",
        "a = Clip (x, zero, six)\ny = Mul (a, x)",
    ],
)
def test_other_functions_stay(tmp_path: Path, body: str) -> None:
    made = model("(float[2,9] x) => (float[2,9] y)", body, **used(body))
    assert ops(apply(RecognizeActivations(), made, tmp_path, x=x(2, 9))) == ops(made)


def test_gelu_stays_in_older_operator_sets_and_where_its_inside_is_read(tmp_path: Path) -> None:
    old = model("(float[2,9] x) => (float[2,9] y)", GELUS["divide"], opset=17, **used(GELUS["divide"]))
    assert ops(apply(RecognizeActivations(), old, tmp_path, x=x(2, 9)))["Erf"] == 1
    read = model("(float[2,9] x) => (float[2,9] y, float[2,9] e)", GELUS["divide"], **used(GELUS["divide"]))
    assert ops(apply(RecognizeActivations(), read, tmp_path, x=x(2, 9)))["Erf"] == 1


# --- layer norm ---------------------------------------------------------------------------------------

LAYER_NORM = (
    "mu = ReduceMean (x, last)\nd = Sub (x, mu)\ns = Pow (d, two)\nv = ReduceMean (s, last)\n"
    "w = Add (v, eps)\nr = Sqrt (w)\nn = Div (d, r)\n"
)
CONSTANTS = {"last": np.array([-1]), "two": np.float32(2), "eps": np.float32(1e-5)}


def test_layer_norm(tmp_path: Path) -> None:
    body = LAYER_NORM + "g = Mul (n, gamma)\ny = Add (g, beta)"
    made = model("(float[n,3,8] x) => (float[n,3,8] y)", body, gamma=x(8), beta=x(8), **CONSTANTS)
    assert ops(apply(RecognizeLayerNorm(), made, tmp_path, x=x(2, 3, 8))) == {"LayerNormalization": 1}


def test_layer_norm_without_affine_and_with_products(tmp_path: Path) -> None:
    body = LAYER_NORM.replace("Pow (d, two)", "Mul (d, d)").replace(
        "n = Div (d, r)", "q = Reciprocal (r)\nn = Mul (q, d)"
    )
    made = model(
        "(float[2,3,8] x) => (float[2,3,8] y)",
        body + "y = Relu (n)",
        last=np.array([1, 2]),
        eps=np.float32(1e-3),
    )
    assert ops(apply(RecognizeLayerNorm(), made, tmp_path, x=x(2, 3, 8))) == {
        "LayerNormalization": 1,
        "Relu": 1,
    }


@pytest.mark.parametrize("axes", [[1], [0]])
def test_norm_over_other_axes_stays(tmp_path: Path, axes: list[int]) -> None:
    made = model(
        "(float[2,3,8] x) => (float[2,3,8] y)",
        LAYER_NORM + "y = Relu (n)",
        **(CONSTANTS | {"last": np.array(axes)}),
    )
    assert ops(apply(RecognizeLayerNorm(), made, tmp_path, x=x(2, 3, 8))) == ops(made)


def test_norm_with_another_mean_stays(tmp_path: Path) -> None:
    body = LAYER_NORM.replace("v = ReduceMean (s, last)", "v = ReduceMean (s, first)") + "y = Relu (n)"
    made = model("(float[2,3,8] x) => (float[2,3,8] y)", body, first=np.array([0]), **CONSTANTS)
    assert ops(apply(RecognizeLayerNorm(), made, tmp_path, x=x(2, 3, 8))) == ops(made)


# --- attention ----------------------------------------------------------------------------------------

GUARD = "p = Softmax (s)\nn = IsNaN (p)\ny = Where (n, zero, p)"
CAUSAL = np.where(np.tril(np.ones((4, 4))) > 0, 0, -np.inf).astype(np.float32)


@pytest.mark.parametrize("body", ["s = Mul (m, half)", "t = Mul (half, m)\ns = Add (t, causal)"])
def test_guard_of_an_unmasked_softmax_goes(tmp_path: Path, body: str) -> None:
    made = model(
        "(float[4,4] x) => (float[4,4] y)",
        f"m = MatMul (x, x)\n{body}\n{GUARD}",
        zero=np.float32(0),
        half=np.float32(0.5),
        causal=CAUSAL,
    )
    assert ops(apply(DropSoftmaxGuard(), made, tmp_path, x=x(4, 4)))["IsNaN"] == 0


@pytest.mark.parametrize("mask", [CAUSAL, np.full((4, 4), -np.inf, np.float32)])
def test_guard_stays_where_a_row_can_be_masked(tmp_path: Path, mask: np.ndarray) -> None:
    given = model(
        "(float[4,4] x, float[4,4] mask) => (float[4,4] y)",
        f"m = MatMul (x, x)\ns = Add (m, mask)\n{GUARD}",
        zero=np.float32(0),
    )
    assert ops(apply(DropSoftmaxGuard(), given, tmp_path, x=x(4, 4), mask=mask))["IsNaN"] == 1
    whole = model(
        "(float[4,4] x) => (float[4,4] y)",
        f"m = MatMul (x, x)\ns = Add (m, w)\n{GUARD}",
        zero=np.float32(0),
        w=np.full((4, 4), -np.inf, np.float32),
    )
    assert ops(apply(DropSoftmaxGuard(), whole, tmp_path, x=x(4, 4)))["IsNaN"] == 1


# --- einsum, constants --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("equation", "spelled"),
    [
        ("bhqd,bhkd->bhqk", "bhqd,bhkd->bhqk"),
        ("ABC,CD->ABD", "abc,cd->abd"),
        ("aB,Bc->ac", "ab,bc->ac"),
        ("aA,Ab->ab", "ac,cb->ab"),
        ("BA,AC", "ab,bc->ac"),
        ("... B, B -> ...", "...a,a->..."),
    ],
)
def test_einsum_spelling(equation: str, spelled: str) -> None:
    assert legalize(equation) == spelled


def test_einsum_of_too_many_letters_stays() -> None:
    import string

    equation = f"{string.ascii_lowercase}A->A"
    assert legalize(equation) == equation


def test_einsum_in_a_model(tmp_path: Path) -> None:
    made = model("(float[2,3] x) => (float[2,4] y)", 'y = Einsum <equation = "BA,AC->BC"> (x, w)', w=x(3, 4))
    after = apply(LowerCaseEinsum(), made, tmp_path, x=x(2, 3))
    assert next(iter(after.graph)).attributes["equation"].value == "ab,bc->ac"


def test_constants_fold_within_bounds(tmp_path: Path) -> None:
    made = model(
        "(float[2,3] x) => (float[2,3] y)",
        "a = Shape (x)\nb = Expand (one, a)\ny = Add (x, b)",
        one=np.float32(1),
    )
    assert ops(apply(FoldConstants(), made, tmp_path, x=x(2, 3)))["Shape"] == 0
    large = model(
        "(float[1] x) => (float[n] y)",
        "a = Expand (one, s)\ny = Add (x, a)",
        one=np.float32([1]),
        s=np.array([1 << 20]),
    )
    assert ops(apply(FoldConstants(), large, tmp_path, x=x(1)))["Expand"] == 1


# --- the whole ----------------------------------------------------------------------------------------


def saved(made: ir.Model, path: Path) -> OnnxModel:
    return io.save(made, path)


def block() -> ir.Model:
    return model(
        "(float[n,3,8,8] x) => (float[n,4,6,6] y, float[n,4,6,6] z)",
        "c = Conv (x, w)\nd = BatchNormalization (c, g, b, m, v)\ne = Identity (d)\ny = Relu (e)\nz = Identity (y)",
        w=x(4, 3, 3, 3),
        **norm(4),
    )


def test_optimize_keeps_names_paths_and_numbers(tmp_path: Path) -> None:
    made = block()
    for node in made.graph:
        node.metadata_props[io.SCOPES] = repr(["", "body", f"body.{node.op_type.lower()}", node.op_type])
    before = saved(made, tmp_path / "a.onnx")
    after, report = passes.optimize_with_report(before, tmp_path / "b.onnx")
    assert (after.inputs, after.outputs) == (before.inputs, before.outputs)
    assert report.error is not None
    assert report.error < 1e-5
    assert report.nodes_after < report.nodes_before
    paths = {n.op_type: io.module_path(n) for n in io.load(after.path).graph}
    assert paths["Relu"] == "body.relu"
    assert paths["Conv"]


def test_optimize_gives_the_same_bytes(tmp_path: Path) -> None:
    before = saved(block(), tmp_path / "a.onnx")
    hashes = {passes.optimize(before, tmp_path / f"{i}.onnx").sha256 for i in range(2)}
    assert len(hashes) == 1


def test_optimize_raises_old_operator_sets(tmp_path: Path) -> None:
    made = model("(float[2,9] x) => (float[2,9] y)", GELUS["divide"], opset=13, **used(GELUS["divide"]))
    after = passes.optimize(saved(made, tmp_path / "a.onnx"), tmp_path / "b.onnx")
    assert after.opset == passes.OPSET
    assert ops(io.load(after.path)) == {"Gelu": 1}


def test_a_wrong_rewrite_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(ir.passes.InPlacePass):
        def call(self, model: ir.Model) -> ir.passes.PassResult:
            for node in model.graph:
                if node.op_type == "Relu":
                    node.op_type = "Abs"
            return ir.passes.PassResult(model, modified=True)

    monkeypatch.setattr(passes, "PASSES", (Wrong(), *passes.PASSES))
    after, report = passes.optimize_with_report(saved(block(), tmp_path / "a.onnx"), tmp_path / "b.onnx")
    assert any("Wrong" in n for n in report.notes)
    assert ops(io.load(after.path))["Relu"] == 1
    assert "BatchNormalization" not in ops(io.load(after.path))


def test_a_failing_simplifier_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxsim

    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("no luck")

    monkeypatch.setattr(onnxsim, "simplify", fail)
    _, report = passes.optimize_with_report(saved(block(), tmp_path / "a.onnx"), tmp_path / "b.onnx")
    assert report.notes == ("onnxsim failed: no luck",)


# --- fixed shapes -------------------------------------------------------------------------------------


def test_fix_shapes(tmp_path: Path) -> None:
    made = model(
        "(float[n,t,8] x, float[n,t] k) => (float[n,t,8] y)",
        "s = Shape (x)\nh = Slice (s, zero, two)\nw = Concat <axis = 0> (h, one)\nr = Reshape (k, w)\ny = Mul (x, r)",
        zero=np.array([0]),
        two=np.array([2]),
        one=np.array([1]),
    )
    before = saved(made, tmp_path / "a.onnx")
    after = passes.fix_shapes(before, {"x": (2, 5, 8)}, tmp_path / "b.onnx")
    assert [i.shape for i in after.inputs] == [(2, 5, 8), (2, 5)]
    assert after.outputs[0].shape == (2, 5, 8)
    assert ops(io.load(after.path))["Shape"] == 0
    inputs = {"x": x(2, 5, 8), "k": x(2, 5)}
    np.testing.assert_array_equal(
        io.run(io.session(after.path), inputs)["y"], io.run(io.session(before.path), inputs)["y"]
    )


@pytest.mark.parametrize("shape", [(2, 5), (2, 5, 9), (2, 5, 8, 1)])
def test_fix_shapes_refuses_contradictions(tmp_path: Path, shape: tuple[int, ...]) -> None:
    made = model("(float[n,t,8] x) => (float[n,t,8] y)", "y = Relu (x)")
    before = saved(made, tmp_path / "a.onnx")
    with pytest.raises(ConfigError, match="cannot have the shape"):
        passes.fix_shapes(before, {"x": shape}, tmp_path / "b.onnx")
    assert not (tmp_path / "b.onnx").exists()


def test_fix_shapes_refuses_two_sizes_for_one_axis_and_unknown_inputs(tmp_path: Path) -> None:
    made = model("(float[n,8] x, float[n,8] k) => (float[n,8] y)", "y = Add (x, k)")
    before = saved(made, tmp_path / "a.onnx")
    with pytest.raises(ConfigError):
        passes.fix_shapes(before, {"x": (1, 8), "k": (2, 8)}, tmp_path / "b.onnx")
    with pytest.raises(UnknownNameError):
        passes.fix_shapes(before, {"q": (1, 8)}, tmp_path / "b.onnx")


def test_module_paths_survive_the_simplifier(tmp_path: Path) -> None:
    """Linear layers on three axes become Gemms between reshapes: nodes with new names, of the same module."""
    torch = pytest.importorskip("torch")
    from edgekit.graph import export
    from edgekit.types import TorchModel

    net = torch.nn.Sequential(torch.nn.Linear(8, 6), torch.nn.GELU(), torch.nn.Linear(6, 4)).eval()
    source = TorchModel(module=net, example_inputs={"input": torch.randn(2, 5, 8)})
    optimized = passes.optimize(export.export(source, tmp_path / "raw.onnx"), tmp_path / "out.onnx")
    found = {n.op_type: io.module_path(n) for n in io.load(optimized.path).graph}
    products = [io.module_path(n) for n in io.load(optimized.path).graph if n.op_type in ("Gemm", "MatMul")]
    assert products == ["0", "2"]
    assert found["Gelu"] == "1"
