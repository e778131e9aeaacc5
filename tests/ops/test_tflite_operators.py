"""Parity of the commonest operators with ONNX Runtime, over shapes, strides, axes and broadcasting."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from onnx import helper

pytest.importorskip("ai_edge_litert")

from tflite_support import check, graph, single

few = settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
RNG = np.random.default_rng(3)


def weights(*shape: int) -> np.ndarray:
    return np.asarray(RNG.standard_normal(shape) / np.sqrt(max(1, int(np.prod(shape[1:])))), np.float32)


@few
@given(
    size=st.tuples(st.integers(5, 12), st.integers(5, 12)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    dilation=st.integers(1, 2),
    pads=st.tuples(*[st.integers(0, 2)] * 4),
    groups=st.sampled_from([1, 2, 4]),
)
def test_conv(size, kernel, stride, dilation, pads, groups):
    assume(dilation == 1 or stride == (1, 1))
    assume(
        all(
            n + pads[i] + pads[i + 2] >= (k - 1) * dilation + 1
            for i, (n, k) in enumerate(zip(size, kernel, strict=True))
        )
    )
    model = single(
        "Conv",
        [(1, 4, *size)],
        [weights(8, 4 // groups, *kernel), weights(8)],
        strides=stride,
        dilations=[dilation] * 2,
        pads=pads,
        group=groups,
    )
    check(model)


@few
@given(
    kernel=st.integers(2, 4),
    stride=st.integers(1, 3),
    pad=st.integers(0, 1),
    extra=st.integers(0, 1),
    groups=st.sampled_from([1, 2]),
)
def test_conv_transpose(kernel, stride, pad, extra, groups):
    assume(extra < stride)
    model = single(
        "ConvTranspose",
        [(1, 4, 5, 6)],
        [weights(4, 6 // groups, kernel, kernel), weights(6)],
        strides=[stride] * 2,
        pads=[pad] * 4,
        output_padding=[extra] * 2,
        group=groups,
    )
    check(model)


@few
@given(
    length=st.integers(6, 12),
    kernel=st.integers(1, 3),
    pads=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    groups=st.sampled_from([1, 4]),
)
def test_conv_1d(length, kernel, pads, groups):
    check(
        single(
            "Conv", [(2, 4, length)], [weights(4, 4 // groups, kernel), weights(4)], pads=pads, group=groups
        )
    )


@few
@given(
    op=st.sampled_from(["MaxPool", "AveragePool"]),
    size=st.tuples(st.integers(5, 9), st.integers(5, 9)),
    kernel=st.integers(2, 3),
    stride=st.integers(1, 3),
    pads=st.tuples(*[st.integers(0, 1)] * 4),
    ceil=st.integers(0, 1),
    count=st.integers(0, 1),
)
def test_pool(op, size, kernel, stride, pads, ceil, count):
    extra = {"count_include_pad": count} if op == "AveragePool" else {}
    model = single(
        op,
        [(1, 3, *size)],
        kernel_shape=[kernel] * 2,
        strides=[stride] * 2,
        pads=pads,
        ceil_mode=ceil,
        **extra,
    )
    check(model)


SHAPES = st.lists(st.integers(1, 4), min_size=0, max_size=5)


@few
@given(op=st.sampled_from(["Add", "Sub", "Mul", "Div", "Max", "Min"]), shape=SHAPES, data=st.data())
def test_broadcasting(op, shape, data):
    left = tuple(data.draw(st.sampled_from([d, 1])) for d in shape)
    drop = data.draw(st.integers(0, len(shape)))
    right = tuple(data.draw(st.sampled_from([d, 1])) for d in shape[drop:])
    model = single(op, [left, right])
    feeds = {"x0": weights(*left), "x1": np.asarray(np.abs(weights(*right)) + 0.5, np.float32)}
    check(model, feeds)


@few
@given(
    op=st.sampled_from(["Add", "Mul"]),
    position=st.sampled_from([(3,), (1, 3, 1, 1), (3, 1, 1), (1, 1, 7), (3, 6, 7), ()]),
)
def test_constants_in_front_of_a_convolutions_layout(op, position):
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node(op, ["c", "k"], ["y"])]
    if position == (3,):
        position = (7,)
    model = graph(nodes, {"x": (1, 2, 6, 7)}, ["y"], {"w": weights(3, 2, 1, 1), "k": weights(*position)})
    check(model)


@few
@given(
    op=st.sampled_from(
        ["ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2", "ReduceProd", "ReduceLogSumExp"]
    ),
    axes=st.sets(st.integers(-4, 3), min_size=1, max_size=3),
    keep=st.integers(0, 1),
    behind_conv=st.booleans(),
)
def test_reductions(op, axes, keep, behind_conv):
    axes = sorted({a % 4 for a in axes})
    nodes = [
        helper.make_node("Conv" if behind_conv else "Identity", ["x", "w"] if behind_conv else ["x"], ["c"])
    ]
    nodes.append(helper.make_node(op, ["c", "axes"], ["y"], keepdims=keep))
    constants = {"axes": np.asarray(axes, np.int64)} | ({"w": weights(3, 3, 1, 1)} if behind_conv else {})
    check(graph(nodes, {"x": (2, 3, 4, 5)}, ["y"], constants))


@few
@given(data=st.data())
def test_matmul(data):
    m, k, n = (data.draw(st.integers(1, 5)) for _ in range(3))
    batch = data.draw(st.lists(st.integers(1, 3), max_size=2))
    left = (*(data.draw(st.sampled_from([d, 1])) for d in batch), m, k)
    constant = data.draw(st.booleans())
    right = (k, n) if constant else (*(data.draw(st.sampled_from([d, 1])) for d in batch), k, n)
    model = single("MatMul", [left], [weights(*right)]) if constant else single("MatMul", [left, right])
    check(model)


@few
@given(
    ta=st.integers(0, 1),
    tb=st.integers(0, 1),
    alpha=st.sampled_from([1.0, 0.5]),
    beta=st.sampled_from([1.0, 2.0]),
    bias=st.sampled_from([None, (5,), (3, 5), (1, 5), (3, 1), ()]),
)
def test_gemm(ta, tb, alpha, beta, bias):
    constants = [weights(5, 4) if tb else weights(4, 5)] + ([] if bias is None else [weights(*bias)])
    check(single("Gemm", [(4, 3) if ta else (3, 4)], constants, transA=ta, transB=tb, alpha=alpha, beta=beta))


@few
@given(shape=st.permutations([2, 3, 4, 5]), data=st.data(), behind_conv=st.booleans())
def test_reshape_and_transpose_in_any_layout(shape, data, behind_conv):
    """Chains of moves behind a channels-last tensor."""
    nodes = [
        helper.make_node("Conv" if behind_conv else "Identity", ["x", "w"] if behind_conv else ["x"], ["v0"])
    ]
    constants = {"w": weights(shape[1], shape[1], 1, 1)} if behind_conv else {}
    current = list(shape)
    for i in range(4):
        if data.draw(st.booleans()):
            perm = data.draw(st.permutations(range(len(current))))
            nodes.append(helper.make_node("Transpose", [f"v{i}"], [f"v{i + 1}"], perm=perm))
            current = [current[p] for p in perm]
        else:
            at = data.draw(st.integers(0, max(len(current) - 2, 0)))
            if len(current) > 1 and data.draw(st.booleans()):
                current[at : at + 2] = [current[at] * current[at + 1]]
            elif current[at] % 2 == 0:
                current[at : at + 1] = [2, current[at] // 2]
            else:
                current.insert(at, 1)
            constants[f"s{i}"] = np.asarray(current, np.int64)
            nodes.append(helper.make_node("Reshape", [f"v{i}", f"s{i}"], [f"v{i + 1}"]))
    check(graph(nodes, {"x": shape}, ["v4"], constants))


@few
@given(
    starts=st.integers(-6, 6),
    ends=st.integers(-8, 8),
    step=st.sampled_from([1, 2, 3, -1, -2]),
    axis=st.integers(-3, 2),
)
def test_slice(starts, ends, step, axis):
    size = (4, 5, 6)[axis]
    assume(len(range(size)[starts : (None if step < 0 and ends < -size else ends) : step]) > 0)
    arrays = [np.asarray([v], np.int64) for v in (starts, ends, axis, step)]
    check(single("Slice", [(4, 5, 6)], arrays))


@few
@given(
    mode=st.sampled_from(["constant", "reflect", "edge"]),
    pads=st.lists(st.integers(-1, 2), min_size=6, max_size=6),
    value=st.sampled_from([0.0, 1.5]),
)
def test_pad(mode, pads, value):
    constants = [np.asarray(pads, np.int64)] + ([np.float32(value)] if mode == "constant" else [])
    assume(mode == "constant" or all(p >= 0 for p in pads))
    check(single("Pad", [(3, 4, 5)], constants, mode=mode))


@few
@given(axis=st.integers(-4, 3), count=st.integers(2, 12), behind_conv=st.booleans())
def test_concat_and_split(axis, count, behind_conv):
    shape = [2, 3, 4, 5]
    shape[axis] = count
    source = (
        helper.make_node("Conv", ["x", "w"], ["c"]) if behind_conv else helper.make_node("Relu", ["x"], ["c"])
    )
    parts = [f"p{i}" for i in range(count)]
    nodes = [
        source,
        helper.make_node("Split", ["c"], parts, axis=axis, num_outputs=count),
        helper.make_node("Concat", parts[::-1], ["y"], axis=axis),
    ]
    constants = {"w": weights(shape[1], shape[1], 1, 1)} if behind_conv else {}
    check(graph(nodes, {"x": shape}, ["y"], constants))


@few
@given(op=st.sampled_from(["Softmax", "LogSoftmax"]), axis=st.integers(-4, 3))
def test_softmax(op, axis):
    check(single(op, [(2, 3, 4, 5)], axis=axis))


ACTIVATIONS = {
    "Relu": {},
    "Sigmoid": {},
    "Tanh": {},
    "LeakyRelu": {"alpha": 0.1},
    "Elu": {"alpha": 0.7},
    "Selu": {},
    "Celu": {"alpha": 2.0},
    "HardSigmoid": {"alpha": 0.3},
    "HardSwish": {},
    "Softplus": {},
    "Softsign": {},
    "Mish": {},
    "Gelu": {"approximate": "tanh"},
    "ThresholdedRelu": {"alpha": 0.4},
    "Shrink": {"lambd": 0.3, "bias": 0.1},
    "Erf": {},
    "Exp": {},
    "Neg": {},
    "Abs": {},
    "Sign": {},
    "Floor": {},
    "Ceil": {},
    "Round": {},
    "Sin": {},
    "Cos": {},
    "Reciprocal": {},
}


@pytest.mark.parametrize("op", ACTIVATIONS)
def test_activation(op):
    check(single(op, [(2, 3, 4, 5)], **ACTIVATIONS[op]), tolerance=2e-6 if op != "Erf" else 1e-5)


@pytest.mark.parametrize(
    "limits", [(0.0, 6.0), (-1.0, 1.0), (0.0, 1.0), (-0.3, 0.4), (None, 0.5), (0.1, None)]
)
def test_clip(limits):
    check(single("Clip", [(3, 4)], [None if v is None else np.float32(v) for v in limits]))


@few
@given(
    axis=st.integers(-3, 2), index=st.lists(st.integers(-3, 2), min_size=1, max_size=4), scalar=st.booleans()
)
def test_gather(axis, index, scalar):
    indices = np.asarray(index[0] if scalar else index, np.int64)
    check(single("Gather", [(3, 4, 3)], [indices], axis=axis))


@pytest.mark.parametrize(
    "op", ["InstanceNormalization", "GroupNormalization", "LayerNormalization", "BatchNormalization"]
)
def test_normalization(op):
    parameters = [weights(4) + 1, weights(4)]
    extra = {"GroupNormalization": {"num_groups": 2}}.get(op, {})
    if op == "BatchNormalization":
        parameters += [weights(4), np.abs(weights(4)) + 1]
    if op == "LayerNormalization":
        parameters = [weights(6) + 1, weights(6)]
    check(
        single(op, [(2, 4, 5, 6)], [p.astype(np.float32) for p in parameters], epsilon=1e-3, **extra),
        tolerance=5e-6,
    )


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_to_space(mode):
    check(single("DepthToSpace", [(1, 12, 3, 4)], blocksize=2, mode=mode))


def test_where_and_comparison():
    nodes = [helper.make_node("Less", ["x", "k"], ["m"]), helper.make_node("Where", ["m", "x", "k"], ["y"])]
    check(graph(nodes, {"x": (2, 3, 4)}, ["y"], {"k": weights(3, 1)}))


@few
@given(
    shape=st.sampled_from([(2, 3, 4), (3, 4), (1,), (2, 1, 4)]),
    target=st.sampled_from([(2, 3, 4), (5, 2, 3, 4), (2, 3, 1)]),
)
def test_expand(shape, target):
    try:
        np.broadcast_shapes(shape, target)
    except ValueError:
        assume(False)
    check(single("Expand", [shape], [np.asarray(target, np.int64)]))
