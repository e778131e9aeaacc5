"""The commonest operators against ONNX Runtime over shapes, strides, axes, broadcasting, and layouts.

Every value is drawn together with the order in which its axes lie in TFLite: a Transpose in front emits nothing,
it is bookkeeping in the view that the operator's handler gets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from onnx import helper

pytest.importorskip("ai_edge_litert")

from tflite_support import check, graph

few = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)
DIM = st.integers(1, 5)
SHAPE = st.lists(DIM, min_size=1, max_size=5).map(tuple)
RNG = np.random.default_rng(5)
START = RNG.bit_generator.state


def real(*shape: int) -> np.ndarray:
    return np.asarray(RNG.standard_normal(shape), np.float32)


class Case:
    """One operator; its inputs lie in drawn orders."""

    def __init__(self, data: st.DataObject) -> None:
        RNG.bit_generator.state = START  # an example that failed fails again
        self.data = data
        self.nodes: list[onnx.NodeProto] = []
        self.feeds: dict[str, np.ndarray] = {}
        self.constants: dict[str, np.ndarray] = {}
        self.types: dict[str, int] = {}

    def input(self, values: np.ndarray) -> str:
        """An input of the graph whose axes lie in any order; the name of the value to read."""
        name = f"x{len(self.feeds)}"
        if values.ndim < 2:
            self.feeds[name] = values
            self.types[name] = helper.np_dtype_to_tensor_dtype(values.dtype)
            return name
        order = self.data.draw(st.permutations(range(values.ndim)), label=f"order of {name}")
        self.feeds[name] = np.ascontiguousarray(np.transpose(values, order))
        self.types[name] = helper.np_dtype_to_tensor_dtype(values.dtype)
        back = [order.index(i) for i in range(values.ndim)]
        self.nodes.append(helper.make_node("Transpose", [name], [f"{name}_t"], perm=back))
        return f"{name}_t"

    def constant(self, values: Any, dtype: Any = None) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = np.asarray(values, dtype)
        return name

    def agrees(
        self, op: str, inputs: Sequence[str], outputs: int = 1, tolerance: float = 1e-5, **a: Any
    ) -> None:
        """Add the operator, compare with ONNX Runtime."""
        names = [f"y{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), names, **a))
        shapes = {n: v.shape for n, v in self.feeds.items()}
        model = graph(self.nodes, shapes, names, self.constants, types=self.types)
        check(model, self.feeds, tolerance=tolerance)


# --- convolutions and pooling -----------------------------------------------------------------------


def window(data: st.DataObject, n: int, *, dilated: bool = True) -> dict[str, Any]:
    """Kernel, strides, dilations and padding over ``n`` axes."""
    kernel = [data.draw(st.integers(1, 3)) for _ in range(n)]
    found: dict[str, Any] = {
        "kernel_shape": kernel,
        "strides": [data.draw(st.integers(1, 3)) for _ in range(n)],
    }
    if dilated:
        found["dilations"] = [data.draw(st.integers(1, 2)) for _ in range(n)]
    style = data.draw(st.sampled_from(["NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    if style.startswith("SAME") and dilated:
        found["dilations"] = [1] * n  # ONNX Runtime refuses others
    if style == "NOTSET":
        found["pads"] = [data.draw(st.integers(0, k - 1)) for k in kernel * 2]
    else:
        found["auto_pad"] = style
    return found


@few
@given(data=st.data())
def test_conv(data):
    case, n = Case(data), data.draw(st.integers(1, 2))
    groups = data.draw(st.sampled_from([1, 2, 4]))
    w = window(data, n)
    x = case.input(real(data.draw(st.integers(1, 2)), 4, *(data.draw(st.integers(5, 9)) for _ in range(n))))
    inputs = [x, case.constant(real(8, 4 // groups, *w["kernel_shape"]))]
    if data.draw(st.booleans()):
        inputs.append(case.constant(real(8)))
    case.agrees("Conv", inputs, group=groups, **w)


@few
@given(data=st.data())
def test_conv_transpose(data):
    case, n = Case(data), data.draw(st.integers(1, 2))
    groups = data.draw(st.sampled_from([1, 2]))
    strides = [data.draw(st.integers(1, 3)) for _ in range(n)]
    kernel = [data.draw(st.integers(1, 4)) for _ in range(n)]
    dilations = [data.draw(st.integers(1, 2)) for _ in range(n)]
    a: dict[str, Any] = {"strides": strides, "dilations": dilations, "group": groups}
    a["pads"] = [data.draw(st.integers(0, min(1, k - 1))) for k in kernel * 2]
    a["output_padding"] = [data.draw(st.integers(0, s - 1)) for s in strides]
    x = case.input(real(1, 4, *(data.draw(st.integers(3, 6)) for _ in range(n))))
    inputs = [x, case.constant(real(4, 6 // groups, *kernel)), case.constant(real(6))]
    case.agrees("ConvTranspose", inputs, **a)


@few
@given(data=st.data(), op=st.sampled_from(["MaxPool", "AveragePool"]))
def test_pool(data, op):
    case, n = Case(data), data.draw(st.integers(1, 2))
    w = window(data, n, dilated=False)
    assume("pads" in w or all(s <= k for s, k in zip(w["strides"], w["kernel_shape"], strict=True)))
    if "pads" in w or w.get("auto_pad") == "VALID":
        w["ceil_mode"] = data.draw(st.integers(0, 1))
    if op == "AveragePool":
        w["count_include_pad"] = data.draw(st.integers(0, 1))
    x = case.input(real(1, 3, *(data.draw(st.integers(5, 9)) for _ in range(n))))
    case.agrees(op, [x], **w)


# --- products ---------------------------------------------------------------------------------------


@few
@given(data=st.data())
def test_gemm(data):
    case = Case(data)
    m, k, n = (data.draw(DIM) for _ in range(3))
    a = {name: data.draw(st.integers(0, 1)) for name in ("transA", "transB")}
    left = case.input(real(k, m) if a["transA"] else real(m, k))
    right = real(n, k) if a["transB"] else real(k, n)
    inputs = [left, case.constant(right) if data.draw(st.booleans()) else case.input(right)]
    bias = data.draw(st.sampled_from([None, (n,), (m, n), (1, n), (m, 1), (1,), ()]))
    if bias is not None:
        inputs.append(case.constant(real(*bias)) if data.draw(st.booleans()) else case.input(real(*bias)))
    scales = {name: data.draw(st.sampled_from([1.0, 0.5])) for name in ("alpha", "beta")}
    case.agrees("Gemm", inputs, **a, **scales)


@few
@given(data=st.data())
def test_matmul(data):
    case = Case(data)
    m, k, n = (data.draw(DIM) for _ in range(3))
    batch = data.draw(st.lists(st.integers(1, 3), max_size=3))
    left, right = (partial_shape(data, batch) for _ in range(2))
    left = data.draw(st.sampled_from([(*left, m, k), (k,)]))
    right = data.draw(st.sampled_from([(*right, k, n), (k, n), (k,)]))
    values = real(*right)
    b = case.constant(values) if data.draw(st.booleans()) else case.input(values)
    case.agrees("MatMul", [case.input(real(*left)), b])


def partial_shape(data: st.DataObject, shape: Sequence[int]) -> tuple[int, ...]:
    """A shape that broadcasts to ``shape``: some axes 1, some leading ones missing."""
    kept = shape[data.draw(st.integers(0, len(shape))) :]
    return tuple(data.draw(st.sampled_from([d, 1])) for d in kept)


# --- elementwise ------------------------------------------------------------------------------------


@few
@given(data=st.data(), op=st.sampled_from(["Add", "Sub", "Mul", "Div"]), shape=SHAPE)
def test_arithmetic(data, op, shape):
    case = Case(data)
    left, right = (partial_shape(data, shape) for _ in range(2))
    second = np.asarray(np.abs(real(*right)) + 0.5, np.float32)
    b = case.constant(second) if data.draw(st.booleans()) else case.input(second)
    inputs = [case.input(real(*left)), b]
    case.agrees(op, inputs[::-1] if op in ("Add", "Mul") and data.draw(st.booleans()) else inputs)


@few
@given(data=st.data(), op=st.sampled_from(["Relu", "Sigmoid", "Tanh", "Clip"]), shape=SHAPE)
def test_activations(data, op, shape):
    case = Case(data)
    inputs = [case.input(real(*shape) * 3)]
    if op == "Clip":
        low = data.draw(st.sampled_from([None, -1.0, 0.0, -0.3]))
        high = data.draw(st.sampled_from([None, 1.0, 6.0, 0.4]))
        inputs += ["" if v is None else case.constant(np.float32(v)) for v in (low, high)]
    case.agrees(op, inputs, tolerance=2e-5)


@few
@given(data=st.data(), shape=SHAPE, opset_axis=st.integers(-5, 4))
def test_softmax(data, shape, opset_axis):
    assume(-len(shape) <= opset_axis < len(shape))
    case = Case(data)
    case.agrees("Softmax", [case.input(real(*shape))], axis=opset_axis, tolerance=2e-6)


@few
@given(data=st.data(), shape=SHAPE)
def test_where(data, shape):
    case = Case(data)
    condition, a, b = (partial_shape(data, shape) for _ in range(3))
    chosen = case.input(np.asarray(real(*condition) > 0))
    inputs = [case.constant(real(*s)) if data.draw(st.booleans()) else case.input(real(*s)) for s in (a, b)]
    case.agrees("Where", [chosen, *inputs])


# --- reductions and normalization -------------------------------------------------------------------


@few
@given(data=st.data(), op=st.sampled_from(["ReduceMean", "ReduceSum", "ReduceMax"]), shape=SHAPE)
def test_reductions(data, op, shape):
    case = Case(data)
    axes = data.draw(st.sets(st.integers(0, len(shape) - 1)))
    signed = [a - len(shape) if data.draw(st.booleans()) else a for a in sorted(axes)]
    inputs = [case.input(real(*shape) + 1)]
    if signed:
        inputs.append(case.constant(signed, np.int64))
    a = {"keepdims": data.draw(st.integers(0, 1)), "noop_with_empty_axes": data.draw(st.integers(0, 1))}
    case.agrees(op, inputs, **a)


@few
@given(data=st.data(), shape=SHAPE)
def test_layer_normalization(data, shape):
    assume(math.prod(shape) > 1)
    case = Case(data)
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    normal = shape[axis:]
    inputs = [case.input(real(*shape)), case.constant(real(*normal))]
    if data.draw(st.booleans()):
        inputs.append(case.constant(real(*normal)))
    case.agrees("LayerNormalization", inputs, axis=axis, epsilon=1e-2, tolerance=2e-5)


# --- moves ------------------------------------------------------------------------------------------


@few
@given(data=st.data(), shape=SHAPE)
def test_transpose(data, shape):
    case = Case(data)
    a = {"perm": data.draw(st.permutations(range(len(shape))))} if data.draw(st.booleans()) else {}
    case.agrees("Transpose", [case.input(real(*shape))], **a)


@few
@given(data=st.data(), shape=SHAPE)
def test_reshape(data, shape):
    case = Case(data)
    left, wanted = math.prod(shape), []
    while len(wanted) < 5 and data.draw(st.booleans()):
        if len(wanted) < len(shape) and left % shape[len(wanted)] == 0 and data.draw(st.booleans()):
            wanted.append(0)  # as in the input
            left //= shape[len(wanted) - 1]
        else:
            factor = data.draw(st.sampled_from([d for d in range(1, left + 1) if left % d == 0]))
            wanted.append(factor)
            left //= factor
    wanted.append(-1 if data.draw(st.booleans()) else left)
    case.agrees("Reshape", [case.input(real(*shape)), case.constant(wanted, np.int64)])


@few
@given(data=st.data(), shape=SHAPE)
def test_squeeze_and_unsqueeze(data, shape):
    case = Case(data)
    ones = [i for i, d in enumerate(shape) if d == 1]
    if data.draw(st.booleans()):
        axes = data.draw(st.sets(st.sampled_from(ones))) if ones else set()
        given_axes = [
            case.constant([a - len(shape) * data.draw(st.booleans()) for a in sorted(axes)], np.int64)
        ]
        case.agrees("Squeeze", [case.input(real(*shape)), *(given_axes if axes else [])])
    else:
        rank = len(shape) + data.draw(st.integers(1, 2))
        axes = data.draw(st.permutations(range(rank)))[: rank - len(shape)]
        signed = [a - rank * data.draw(st.booleans()) for a in axes]
        case.agrees("Unsqueeze", [case.input(real(*shape)), case.constant(signed, np.int64)])


@few
@given(data=st.data(), shape=SHAPE, count=st.integers(1, 7))
def test_concat(data, shape, count):
    case = Case(data)
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    inputs = []
    for _ in range(count):
        size = list(shape)
        size[axis] = data.draw(DIM)
        inputs.append(
            case.constant(real(*size)) if data.draw(st.integers(0, 4)) == 0 else case.input(real(*size))
        )
    assume(case.feeds)
    case.agrees("Concat", inputs, axis=axis)


@few
@given(data=st.data(), shape=SHAPE)
def test_slice(data, shape):
    case = Case(data)
    axes = sorted(data.draw(st.sets(st.integers(0, len(shape) - 1), min_size=1)))
    starts, ends, steps = [], [], []
    for a in axes:
        step = data.draw(st.sampled_from([1, 1, 2, 3, -1, -2]))
        first = data.draw(st.integers(0, shape[a] - 1))
        last = data.draw(st.integers(first + 1, shape[a] + 2) if step > 0 else st.integers(-1, first - 1))
        starts.append(first - shape[a] * data.draw(st.booleans()))
        ends.append(last if last >= 0 else -shape[a] - 1)
        steps.append(step)
    signed = [a - len(shape) * data.draw(st.booleans()) for a in axes]
    constants = [case.constant(v, np.int64) for v in (starts, ends, signed, steps)]
    case.agrees("Slice", [case.input(real(*shape)), *constants])


@few
@given(data=st.data(), shape=SHAPE, mode=st.sampled_from(["constant", "reflect", "edge", "wrap"]))
def test_pad(data, shape, mode):
    case = Case(data)
    low = -1 if mode == "constant" else 0
    pads = []
    for d in (*shape, *shape):
        top = {"constant": 2, "reflect": d - 1, "edge": 2, "wrap": d}[mode]
        pads.append(data.draw(st.integers(low if d > 2 else 0, min(top, 2))))
    inputs = [case.input(real(*shape)), case.constant(pads, np.int64)]
    if mode == "constant" and data.draw(st.booleans()):
        inputs.append(case.constant(np.float32(data.draw(st.sampled_from([0.0, -1.5])))))
    case.agrees("Pad", inputs, mode=mode)


@few
@given(data=st.data(), shape=SHAPE)
def test_gather(data, shape):
    case = Case(data)
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    index_shape = data.draw(st.sampled_from([(), (1,), (3,), (2, 2)]))
    known = data.draw(st.booleans())
    low = -shape[axis] if known else 0
    index = RNG.integers(low, shape[axis], index_shape)
    x = case.input(real(*shape))
    case.agrees("Gather", [x, case.constant(index) if known else case.input(index)], axis=axis)


@few
@given(data=st.data(), shape=SHAPE)
def test_split(data, shape):
    case = Case(data)
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    sizes = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=6))
    whole = list(shape)
    whole[axis] = sum(sizes)
    x = case.input(real(*whole))
    if data.draw(st.booleans()):
        case.agrees("Split", [x, case.constant(sizes, np.int64)], outputs=len(sizes), axis=axis)
    else:
        count = data.draw(st.integers(1, whole[axis]))
        assume((count - 1) * -(-whole[axis] // count) < whole[axis])
        case.agrees("Split", [x], outputs=count, axis=axis, num_outputs=count)


@few
@given(data=st.data(), shape=SHAPE)
def test_expand(data, shape):
    case = Case(data)
    wanted = [data.draw(st.sampled_from([d, 1])) if d > 1 else data.draw(DIM) for d in shape]
    wanted = [data.draw(DIM) for _ in range(data.draw(st.integers(0, 5 - len(shape))))] + wanted
    case.agrees("Expand", [case.input(real(*shape)), case.constant(wanted, np.int64)])


RESIZES = {
    "nearest": ["asymmetric", "half_pixel", "align_corners", "pytorch_half_pixel"],
    "linear": ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"],
    "cubic": ["half_pixel", "align_corners"],
}


@few
@given(data=st.data(), mode=st.sampled_from(sorted(RESIZES)))
def test_resize(data, mode):
    case = Case(data)
    height, width = (data.draw(st.integers(2, 6)) for _ in range(2))
    a = {"mode": mode, "coordinate_transformation_mode": data.draw(st.sampled_from(RESIZES[mode]))}
    if mode == "nearest":
        a["nearest_mode"] = data.draw(
            st.sampled_from(["floor", "round_prefer_floor", "round_prefer_ceil", "ceil"])
        )
    empty, x = case.constant(np.zeros(0, np.float32)), case.input(real(1, 3, height, width))
    if data.draw(st.booleans()):
        whole = a["coordinate_transformation_mode"] == "align_corners"  # ONNX Runtime rounds, ONNX does not
        factors = [1.0, 2.0, 3.0] if whole else [0.5, 1.0, 1.5, 2.0, 3.0]
        scales = [1.0, 1.0, *(data.draw(st.sampled_from(factors)) for _ in range(2))]
        inputs = [x, empty, case.constant(scales, np.float32)]
    else:
        sizes = [1, 3, *(data.draw(st.integers(1, 9)) for _ in range(2))]
        inputs = [x, empty, "", case.constant(sizes, np.int64)]
    case.agrees("Resize", inputs, tolerance=2e-5, **a)
