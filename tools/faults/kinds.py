"""What can go wrong between a model and its artifact, each as an edit of the graph, of its Q/DQ, or of the calibration.

A fault changes what is lowered, never the source that the artifact is compared with. ``apply`` returns ``False``
where the fault does not exist for a network (it has one column, no pictures, …).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import onnx
from onnx import helper, numpy_helper

Graph: TypeAlias = onnx.GraphProto


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a fault may know: the network's inputs and its own outputs, ``[n, …]`` each, by output name."""

    inputs: np.ndarray
    outputs: dict[str, np.ndarray]
    image: bool


Edit: TypeAlias = Callable[[Graph, Seen], bool]
Data: TypeAlias = Callable[[np.ndarray, Seen], np.ndarray | None]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One fault. Exactly one of ``graph`` (float), ``quantized`` and ``calibration`` is set."""

    kind: str
    name: str
    graph: Edit | None = None
    quantized: Edit | None = None
    calibration: Data | None = None


def faults() -> list[Fault]:
    """All of them, of each kind one or more."""
    return [
        *_at_the_output(),
        *_at_the_input(),
        *_in_the_weights(),
        *_in_the_scales(),
        *_in_the_calibration(),
    ]


# --- the output --------------------------------------------------------------------------------------


def _at_the_output() -> Iterator[Fault]:
    def fault(kind: str, name: str, edit: Edit) -> Fault:
        return Fault(kind=kind, name=name, graph=edit)

    yield fault("dead output", "the widest column is 0", _columns(lambda s: (_one(s, 0.0), None)))
    yield fault("dead output", "the narrowest column is its mean", _columns(_narrowest_is_constant))
    yield fault(
        "dead output", "all columns are their means", _columns(lambda s: (np.zeros_like(s.std), s.mean))
    )
    yield fault(
        "scale of one channel", "one column is 1.7 times too large", _columns(lambda s: (_one(s, 1.7), None))
    )
    yield fault(
        "scale of one channel", "one column has the other sign", _columns(lambda s: (_one(s, -1.0), None))
    )
    yield fault("offset", "one column is off by its deviation", _columns(lambda s: (None, s.std * _pick(s))))
    yield fault("offset", "all columns are off by a deviation", _columns(lambda s: (None, s.std)))
    yield fault("swapped classes", "two columns are exchanged", _exchanged)
    yield fault("swapped classes", "all columns are shifted by one", _shifted)
    yield fault("coarse output", "three levels are left", _coarse(3))
    yield fault("coarse output", "one scale for all columns, 16 levels", _coarse(16))
    yield fault("clipped outliers", "beyond half the range nothing is told", _clipped)
    yield fault("quiet samples", "what is small is 0", _dead_zone)
    yield fault("wrong integer output", "class indices are off by one", _integers("Add"))
    yield fault("wrong integer output", "flags are inverted", _integers("Not"))
    yield fault("wrong integer output", "always the first class", _integers("Mul"))
    yield fault("not finite", "NaN where the input is large", _nan_where_large)
    yield fault("missing operator", "the last activation is gone", _without_last("Softmax", "Sigmoid"))


@dataclass(frozen=True, kw_only=True)
class _Columns:
    mean: np.ndarray
    std: np.ndarray


def _statistics(array: np.ndarray) -> _Columns:
    """By column of axis 1, in a shape that broadcasts: ``[1, c, 1, …]``."""
    axes = tuple(k for k in range(array.ndim) if k != 1)
    return _Columns(
        mean=array.mean(axis=axes, keepdims=True).astype(np.float32),
        std=array.std(axis=axes, keepdims=True).astype(np.float32),
    )


def _pick(s: _Columns) -> np.ndarray:
    """1 for the column with the largest spread, else 0."""
    chosen = np.zeros_like(s.std)
    chosen.flat[int(s.std.argmax())] = 1
    return chosen


def _one(s: _Columns, factor: float) -> np.ndarray:
    return 1 + _pick(s) * np.float32(factor - 1)


def _narrowest_is_constant(s: _Columns) -> tuple[np.ndarray, np.ndarray] | None:
    if s.std.size < 2:
        return None
    keep = np.ones_like(s.std)
    keep.flat[int(s.std.argmin())] = 0
    return keep, s.mean * (1 - keep)


def _columns(of: Callable[[_Columns], tuple[np.ndarray | None, np.ndarray | None] | None]) -> Edit:
    """``y * scale + shift`` by column."""

    def apply(graph: Graph, seen: Seen) -> bool:
        name = _float_output(graph)
        if name is None or seen.outputs[name].ndim < 2:
            return False
        found = of(_statistics(seen.outputs[name]))
        if found is None:
            return False
        scale, shift = found
        inner, last = _renamed_output(graph, name), name
        if scale is not None:
            target = last if shift is None else "fault/scaled"
            graph.node.append(
                helper.make_node("Mul", [inner, _constant(graph, "scale", scale)], [target], "fault/mul")
            )
            inner = target
        if shift is not None:
            graph.node.append(
                helper.make_node("Add", [inner, _constant(graph, "shift", shift)], [last], "fault/add")
            )
        return True

    return apply


def _gathered(order: Callable[[int], list[int] | None]) -> Edit:
    def apply(graph: Graph, seen: Seen) -> bool:
        name = _float_output(graph)
        if name is None or seen.outputs[name].ndim < 2 or seen.outputs[name].shape[1] < 2:
            return False
        indices = order(seen.outputs[name].shape[1])
        inner = _renamed_output(graph, name)
        index = _constant(graph, "order", np.array(indices, np.int64))
        graph.node.append(helper.make_node("Gather", [inner, index], [name], "fault/gather", axis=1))
        return True

    return apply


_exchanged = _gathered(lambda n: [1, 0, *range(2, n)])
_shifted = _gathered(lambda n: [n - 1, *range(n - 1)])


def _coarse(levels: int) -> Edit:
    def apply(graph: Graph, seen: Seen) -> bool:
        name = _float_output(graph)
        if name is None:
            return False
        values = seen.outputs[name]
        step = np.array((values.max() - values.min()) / (levels - 1), np.float32)
        low = np.array(values.min(), np.float32)
        inner = _renamed_output(graph, name)
        low_name, step_name = _constant(graph, "low", low), _constant(graph, "step", step)
        graph.node.extend([
            helper.make_node("Sub", [inner, low_name], ["fault/a"], "fault/sub"),
            helper.make_node("Div", ["fault/a", step_name], ["fault/b"], "fault/div"),
            helper.make_node("Round", ["fault/b"], ["fault/c"], "fault/round"),
            helper.make_node("Mul", ["fault/c", step_name], ["fault/d"], "fault/mul"),
            helper.make_node("Add", ["fault/d", low_name], [name], "fault/add"),
        ])  # fmt: skip
        return True

    return apply


def _clipped(graph: Graph, seen: Seen) -> bool:
    name = _float_output(graph)
    if name is None:
        return False
    low, high = (np.array(q, np.float32) for q in np.quantile(seen.outputs[name], [0.3, 0.7]))
    inner = _renamed_output(graph, name)
    limits = [_constant(graph, "low", low), _constant(graph, "high", high)]
    graph.node.append(helper.make_node("Clip", [inner, *limits], [name], "fault/clip"))
    return True


def _dead_zone(graph: Graph, seen: Seen) -> bool:
    """Inputs below a third of their largest value are 0, as a scale for the loudest gives."""
    if seen.inputs.dtype.kind != "f":
        return False
    limit = _constant(graph, "limit", np.array(np.abs(seen.inputs).max() / 6, np.float32))

    def nodes(x: str, y: str) -> list[onnx.NodeProto]:
        return [
            helper.make_node("Abs", [x], ["fault/abs"], "fault/abs"),
            helper.make_node("Greater", ["fault/abs", limit], ["fault/loud"], "fault/greater"),
            helper.make_node("Cast", ["fault/loud"], ["fault/mask"], "fault/cast", to=onnx.TensorProto.FLOAT),
            helper.make_node("Mul", [x, "fault/mask"], [y], "fault/mul"),
        ]

    return _before(graph, nodes)


def _integers(op: str) -> Edit:
    def apply(graph: Graph, seen: Seen) -> bool:
        wanted = "b" if op == "Not" else "i"
        name = next((o.name for o in graph.output if seen.outputs[o.name].dtype.kind == wanted), None)
        if name is None:
            return False
        inner = _renamed_output(graph, name)
        if op == "Not":
            graph.node.append(helper.make_node("Not", [inner], [name], "fault/not"))
            return True
        value = _constant(graph, "value", np.array(1 if op == "Add" else 0, seen.outputs[name].dtype))
        graph.node.append(helper.make_node(op, [inner, value], [name], "fault/integer"))
        return True

    return apply


def _nan_where_large(graph: Graph, seen: Seen) -> bool:
    """The logarithm of a negative number for one sample in twenty."""
    name = _float_output(graph)
    if name is None:
        return False
    limit = _constant(graph, "limit", np.array(np.quantile(seen.outputs[name], 0.995), np.float32))
    zero = _constant(graph, "zero", np.array(0.0, np.float32))
    inner = _renamed_output(graph, name)
    graph.node.extend([
        helper.make_node("Sub", [limit, inner], ["fault/a"], "fault/sub"),
        helper.make_node("Sqrt", ["fault/a"], ["fault/b"], "fault/sqrt"),
        helper.make_node("Mul", ["fault/b", zero], ["fault/c"], "fault/mul"),
        helper.make_node("Add", [inner, "fault/c"], [name], "fault/add"),
    ])  # fmt: skip
    return True


def _without_last(*ops: str) -> Edit:
    def apply(graph: Graph, _: Seen) -> bool:
        found = [n for n in graph.node if n.op_type in ops]
        if not found or (found[-1].op_type == "Sigmoid" and found[-1].output[0] in _multiplied(graph)):
            return False
        return _bypassed(graph, found[-1])

    return apply


def _multiplied(graph: Graph) -> set[str]:
    """What a product takes: a sigmoid there belongs to a SiLU."""
    return {name for n in graph.node if n.op_type == "Mul" for name in n.input}


# --- the input ---------------------------------------------------------------------------------------


def _at_the_input() -> Iterator[Fault]:
    def fault(kind: str, name: str, edit: Edit) -> Fault:
        return Fault(kind=kind, name=name, graph=edit)

    yield fault("preprocessing", "divided by 2 once more", _scaled_input(0.5, 0.0))
    yield fault("preprocessing", "a mean of half a deviation is not removed", _scaled_input(1.0, 0.7))
    yield fault(
        "preprocessing",
        "red and blue are exchanged",
        _gathered_input(1, lambda n: [2, 1, 0] if n == 3 else None),
    )
    yield fault("layout", "height and width are exchanged", _transposed)
    yield fault("layout", "the picture is mirrored", _gathered_input(3, lambda n: list(range(n))[::-1]))
    yield fault("layout", "moved by two pixels", _gathered_input(3, lambda n: [*range(2, n), n - 1, n - 1]))
    yield fault("truncated input", "the second half is not seen", _truncated)
    yield fault(
        "wrong input",
        "columns are in another order",
        _gathered_input(1, lambda n: [*range(1, n), 0] if n > 3 else None),
    )


def _scaled_input(factor: float, deviations: float) -> Edit:
    def apply(graph: Graph, seen: Seen) -> bool:
        if seen.inputs.dtype.kind != "f":
            return False
        scale = _constant(graph, "factor", np.array(factor, np.float32))
        shift = _constant(graph, "mean", np.array(deviations * seen.inputs.std(), np.float32))
        return _before(graph, lambda x, y: [
            helper.make_node("Mul", [x, scale], ["fault/x"], "fault/scale"),
            helper.make_node("Add", ["fault/x", shift], [y], "fault/shift"),
        ])  # fmt: skip

    return apply


def _gathered_input(axis: int, order: Callable[[int], list[int] | None]) -> Edit:
    def apply(graph: Graph, seen: Seen) -> bool:
        if seen.inputs.ndim <= axis or (axis > 1 and not seen.image):
            return False
        indices = order(seen.inputs.shape[axis])
        if indices is None:
            return False
        index = _constant(graph, "order", np.array(indices, np.int64))
        return _before(
            graph, lambda x, y: [helper.make_node("Gather", [x, index], [y], "fault/order", axis=axis)]
        )

    return apply


def _transposed(graph: Graph, seen: Seen) -> bool:
    if not seen.image:
        return False
    return _before(
        graph, lambda x, y: [helper.make_node("Transpose", [x], [y], "fault/turn", perm=[0, 1, 3, 2])]
    )


def _truncated(graph: Graph, seen: Seen) -> bool:
    length = seen.inputs.shape[-1]
    if seen.inputs.ndim < 2 or length < 8:
        return False
    mask = np.ones((1,) * (seen.inputs.ndim - 1) + (length,), seen.inputs.dtype)
    mask[..., length // 2 :] = 0
    name = _constant(graph, "mask", mask)
    return _before(graph, lambda x, y: [helper.make_node("Mul", [x, name], [y], "fault/cut")])


# --- weights -----------------------------------------------------------------------------------------


def _in_the_weights() -> Iterator[Fault]:
    def fault(
        kind: str, name: str, change: Callable[[np.ndarray, np.random.Generator], np.ndarray], place: int
    ) -> Fault:
        return Fault(kind=kind, name=name, graph=_weights(change, place))

    yield fault(
        "damaged weights",
        "a quarter of the first layer's are 0",
        lambda w, g: w * (g.random(w.shape) > 0.25),
        0,
    )
    yield fault(
        "damaged weights",
        "noise as large as the weights in the last layer",
        lambda w, g: w + g.normal(size=w.shape) * w.std(),
        -1,
    )
    yield fault(
        "another model",
        "the last layer of another training",
        lambda w, g: g.normal(size=w.shape) * w.std(),
        -1,
    )
    yield fault(
        "another model", "all layers but the last", lambda w, g: g.permutation(w.ravel()).reshape(w.shape), 0
    )
    yield fault(
        "too few bits",
        "two bits in the middle layer",
        lambda w, _: np.round(w / np.abs(w).max()) * np.abs(w).max() * 0.7,
        1,
    )
    yield fault("lost channel", "one filter of the first layer is 0", _lost_channel, 0)
    yield Fault(kind="lost bias", name="the last bias is gone", graph=_lost_bias)
    yield Fault(
        kind="missing operator", name="one activation is gone", graph=_without_first("Relu", "LeakyRelu")
    )


def _lost_channel(w: np.ndarray, _: np.random.Generator) -> np.ndarray:
    result = w.copy()
    if w.ndim == 2:
        result[:, np.abs(w).sum(axis=0).argsort()[-w.shape[1] // 4 :]] = 0
    else:
        strong = np.abs(w).reshape(len(w), -1).sum(axis=1).argsort()
        result[strong[-max(1, len(w) // 4) :]] = 0
    return result


def _weights(change: Callable[[np.ndarray, np.random.Generator], np.ndarray], place: int) -> Edit:
    def apply(graph: Graph, _: Seen) -> bool:
        stored = _layer_weights(graph)
        if len(stored) < 2:
            return False
        tensor = stored[place]
        values = numpy_helper.to_array(tensor)
        changed = change(values, np.random.default_rng(0)).astype(values.dtype)
        tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))
        return True

    return apply


def _layer_weights(graph: Graph) -> list[onnx.TensorProto]:
    named = {t.name: t for t in graph.initializer}
    layers = [n for n in graph.node if n.op_type in ("Conv", "Gemm", "MatMul")]
    return [named[n.input[1]] for n in layers if n.input[1] in named]


def _lost_bias(graph: Graph, _: Seen) -> bool:
    named = {t.name: t for t in graph.initializer}
    layers = [
        n for n in graph.node if n.op_type in ("Conv", "Gemm") and len(n.input) > 2 and n.input[2] in named
    ]
    if not layers:
        return False
    tensor = named[layers[-1].input[2]]
    tensor.CopyFrom(numpy_helper.from_array(np.zeros_like(numpy_helper.to_array(tensor)), tensor.name))
    return True


def _without_first(*ops: str) -> Edit:
    def apply(graph: Graph, _: Seen) -> bool:
        found = [n for n in graph.node if n.op_type in ops]
        return bool(found) and _bypassed(graph, found[0])

    return apply


# --- scales ------------------------------------------------------------------------------------------


def _in_the_scales() -> Iterator[Fault]:
    def fault(kind: str, name: str, edit: Edit) -> Fault:
        return Fault(kind=kind, name=name, quantized=edit)

    yield fault("wrong scale", "an activation's scale is 8 times too small", _activation_scale(1 / 8))
    yield fault("wrong scale", "an activation's scale is 32 times too large", _activation_scale(32.0))
    yield fault("wrong scale", "one channel's weights have 3 times their scale", _weight_scale(3.0))
    yield fault("wrong scale", "all weights of a layer have half their scale", _weight_scale(0.5, every=True))
    yield fault("wrong zero point", "an activation's is off by 40", _zero_point(40))


def _activations(graph: Graph) -> list[onnx.NodeProto]:
    """The quantizers of activations, in order; those of weights take initializers."""
    stored = {t.name for t in graph.initializer}
    return [n for n in graph.node if n.op_type == "QuantizeLinear" and n.input[0] not in stored]


def _edit_both(
    graph: Graph, quantizer: onnx.NodeProto, which: int, change: Callable[[np.ndarray], np.ndarray]
) -> bool:
    """Change the scale (1) or zero point (2), which ``which`` says, of a quantizer or dequantizer
    above; a copy, as others may share the tensor."""
    named = {t.name: t for t in graph.initializer}
    if len(quantizer.input) <= which or quantizer.input[which] not in named:
        return False
    tensor = numpy_helper.to_array(named[quantizer.input[which]])
    name = f"fault/{quantizer.input[which]}"
    graph.initializer.append(numpy_helper.from_array(change(tensor).astype(tensor.dtype), name))
    quantizer.input[which] = name
    return True


def _activation_scale(factor: float) -> Edit:
    """On both sides: what a wrong range gives, not a mismatch."""

    def apply(graph: Graph, _: Seen) -> bool:
        found = _activations(graph)
        if not found:
            return False
        chosen = found[len(found) // 2]
        behind = [n for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0] == chosen.output[0]]
        done = [_edit_both(graph, n, 1, lambda s: s * factor) for n in (chosen, *behind)]
        return all(done)

    return apply


def _zero_point(by: int) -> Edit:
    """On one side only: a mismatch."""

    def change(z: np.ndarray) -> np.ndarray:
        limits = np.iinfo(z.dtype)
        return np.where(
            z.astype(np.int64) + by > limits.max, z.astype(np.int64) - by, z.astype(np.int64) + by
        )

    def apply(graph: Graph, _: Seen) -> bool:
        found = _activations(graph)
        return bool(found) and _edit_both(graph, found[len(found) // 2], 2, change)

    return apply


def _weight_scale(factor: float, every: bool = False) -> Edit:
    def change(scale: np.ndarray) -> np.ndarray:
        scale = np.array(scale)
        if every or scale.ndim == 0:
            return scale * np.float32(factor)
        scale.flat[int(scale.argmax())] *= factor
        return scale

    def apply(graph: Graph, _: Seen) -> bool:
        named = {t.name: t for t in graph.initializer}
        found = [
            n for n in graph.node
            if n.op_type == "DequantizeLinear" and n.input[0] in named and len(named[n.input[0]].dims) > 1
        ]  # fmt: skip
        return bool(found) and _edit_both(graph, found[len(found) // 2], 1, change)

    return apply


# --- calibration -------------------------------------------------------------------------------------


def _in_the_calibration() -> Iterator[Fault]:
    def fault(kind: str, name: str, data: Data) -> Fault:
        return Fault(kind=kind, name=name, calibration=data)

    def floats(change: Callable[[np.ndarray], np.ndarray]) -> Data:
        return lambda rows, _: change(rows).astype(np.float32) if rows.dtype.kind == "f" else None

    yield fault("stale calibration", "inputs at a quarter of their size", floats(lambda x: x * 0.25))
    yield fault("stale calibration", "inputs at 20 times their size", floats(lambda x: x * 20))
    yield fault("rare class", "calibration saw only the calmest samples", _calmest)
    yield fault("calibration", "constants", floats(lambda x: np.full_like(x, x.mean())))


def _calmest(rows: np.ndarray, _: Seen) -> np.ndarray | None:
    if rows.dtype.kind != "f":
        return None
    energy = (rows.reshape(len(rows), -1) ** 2).sum(axis=1)
    flat = rows[energy.argsort()[: max(8, len(rows) // 10)]]
    return np.clip(flat, *np.quantile(flat, [0.02, 0.6]))


# --- graphs ------------------------------------------------------------------------------------------


def _float_output(graph: Graph) -> str | None:
    return next(
        (o.name for o in graph.output if o.type.tensor_type.elem_type == onnx.TensorProto.FLOAT), None
    )


def _renamed_output(graph: Graph, name: str) -> str:
    """The tensor behind the output ``name`` under another name, so that the output can be made anew."""
    inner = f"fault/{name}"
    for node in graph.node:
        for names in (node.output, node.input):
            for k, found in enumerate(names):
                if found == name:
                    names[k] = inner
    return inner


def _before(graph: Graph, nodes: Callable[[str, str], list[onnx.NodeProto]]) -> bool:
    """Put nodes between the first input and all that takes it."""
    name, inner = graph.input[0].name, "fault/input"
    for node in graph.node:
        for k, found in enumerate(node.input):
            if found == name:
                node.input[k] = inner
    for position, node in enumerate(nodes(name, inner)):
        graph.node.insert(position, node)
    return True


def _bypassed(graph: Graph, node: onnx.NodeProto) -> bool:
    """Leave a node out: whoever takes its result takes its input."""
    outputs = {o.name for o in graph.output}
    if node.output[0] in outputs:
        graph.node.append(helper.make_node("Identity", [node.input[0]], [node.output[0]], "fault/identity"))
    else:
        for other in graph.node:
            for k, found in enumerate(other.input):
                if found == node.output[0]:
                    other.input[k] = node.input[0]
    graph.node.remove(node)
    return True


def _constant(graph: Graph, name: str, value: np.ndarray) -> str:
    graph.initializer.append(numpy_helper.from_array(np.asarray(value), f"fault/{name}"))
    return f"fault/{name}"
