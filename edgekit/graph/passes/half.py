"""Float32 → float16 or bfloat16, spelled out in the graph: weights and activations in 16 bits, float32 at the boundary.

Which node may change is read from the operator's own ONNX schema (every type variable that is bound to
float32 must admit the 16-bit type), so that no list of convertible operators has to be kept. For bfloat16 it is the
operator's newest schema: most got the type in opset 22, and what reads bfloat16 at all reads it in older opsets, too.
Whatever the caller names in ``keep`` stays in float32, as do nodes that contain subgraphs, and what is inside. In
float16, whose largest finite value is 65,504, these stay as well:

* operators whose intermediate values leave float16's range (largest finite value 65,504) on ordinary
  inputs - powers, exponentials, sums of squares - and the reductions and roots that follow them;
* nodes with a constant beyond float16's range, unless it stands for infinity, as masks' constants do.

bfloat16 has the range of float32 (and 8 bits of precision).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass, ShapeInferencePass

MAX = 65504.0
"""Largest finite float16."""

INFINITE = 1e8
"""From here on a constant is "never" or "always", and float16's largest value does as well."""

TINY = 2.0**-24
"""Smallest positive float16 (subnormal)."""

_WIDE = frozenset({"Pow", "Exp", "CumSum", "ReduceSumSquare", "ReduceL2", "ReduceLogSumExp", "ReduceProd"})
_FOLLOWS_WIDE = frozenset(
    {
        "Add",
        "Sub",
        "Div",
        "Max",
        "Min",
        "Clip",
        "Log",
        "Sqrt",
        "Reciprocal",
        "ReduceMean",
        "ReduceSum",
        "Identity",
    }
)
_NEVER = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "EyeLike", "Constant"})


@dataclass(frozen=True, kw_only=True)
class HalfType:
    """A 16-bit floating-point type. ``suffix`` is for names of values; ``narrow`` says that its range is smaller than
    float32's; ``largest`` and ``tiny`` are its largest finite and smallest positive number."""

    dtype: ir.DataType
    numpy: np.dtype
    suffix: str
    narrow: bool
    largest: float
    tiny: float


FLOAT16 = HalfType(
    dtype=ir.DataType.FLOAT16, numpy=np.dtype(np.float16), suffix="fp16", narrow=True, largest=MAX, tiny=TINY
)
BFLOAT16 = HalfType(
    dtype=ir.DataType.BFLOAT16,
    numpy=np.dtype(ml_dtypes.bfloat16),
    suffix="bf16",
    narrow=False,
    largest=2.0**127 * (2 - 2.0**-7),
    tiny=2.0**-133,
)


@dataclass(frozen=True, kw_only=True)
class HalfReport:
    """What changed: nodes now in 16 bits, nodes kept in float32, constants that lost their range."""

    converted: tuple[str, ...]
    kept: tuple[str, ...]
    clamped: tuple[str, ...]
    flushed: tuple[str, ...]


@dataclass(kw_only=True)
class _State:
    graph: ir.Graph
    half: HalfType
    opsets: dict[str, int]
    keep: frozenset[str]
    wide: set[ir.Value] = field(default_factory=set)
    casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = field(default_factory=dict)
    was_float: set[ir.Value] = field(default_factory=set)
    converted: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    clamped: list[str] = field(default_factory=list)
    flushed: list[str] = field(default_factory=list)


def to_half(model: ir.Model, half: HalfType = FLOAT16, *, keep: Collection[str] = ()) -> HalfReport:
    """Rewrite ``model`` in place. Graph inputs and outputs keep their names and dtypes.

    ``keep`` names nodes that stay in float32. Constants that stand for infinity (-1e9 of a mask) are clamped; single
    numbers (an epsilon) that would become zero are raised to the type's smallest positive number.
    """
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    ShapeInferencePass()(model)
    state = _State(graph=model.graph, half=half, opsets=dict(model.opset_imports), keep=frozenset(keep))
    for node in tuple(model.graph):
        _convert(node, state)
    _restore_outputs(state)
    _drop_unused_weights(state)
    return HalfReport(
        converted=tuple(state.converted),
        kept=tuple(state.kept),
        clamped=tuple(state.clamped),
        flushed=tuple(state.flushed),
    )


def _convert(node: ir.Node, state: _State) -> None:
    plan = None if _must_stay(node, state) else _plan(node, state)
    name = node.name or node.outputs[0].name or node.op_type
    if plan is None:
        if any(v is not None and _is_float(v, state) for v in (*node.inputs, *node.outputs)):
            state.kept.append(name)
        for user, index, value in _float_uses(node, state):
            _feed(user, index, value, ir.DataType.FLOAT, state)
        return
    inputs, outputs = plan
    for index, fed in enumerate(node.inputs):
        if fed is not None and _is_float(fed, state):
            dtype = state.half.dtype if index in inputs else ir.DataType.FLOAT
            _feed(node, index, fed, dtype, state)
    for index in outputs:
        state.was_float.add(node.outputs[index])
        node.outputs[index].dtype = state.half.dtype
    if inputs or outputs:
        _retype_attributes(node, state.half)
        state.converted.append(name)


def _must_stay(node: ir.Node, state: _State) -> bool:
    if node.name in state.keep or node.op_type in _NEVER or node.domain not in ("", "ai.onnx"):
        return True
    if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
        return True
    if not state.half.narrow:
        return False
    if any(v.const_value is not None and beyond_range(v.const_value.numpy()) for v in _floats(node, state)):
        return True
    moving = [v for v in _floats(node, state) if v.const_value is None]
    squares = node.op_type == "Mul" and len(node.inputs) == 2 and node.inputs[0] is node.inputs[1]
    follows = node.op_type in _FOLLOWS_WIDE and moving and all(v in state.wide for v in moving)
    if moving and (node.op_type in _WIDE or squares or follows):
        state.wide.update(node.outputs)
        return True
    return False


def _floats(node: ir.Node, state: _State) -> list[ir.Value]:
    return [v for v in node.inputs if v is not None and _is_float(v, state)]


def beyond_range(array: np.ndarray) -> bool:
    """Whether a constant holds a number that float16 has not, and that does not stand for infinity."""
    if array.dtype not in (np.float32, np.float64):
        return False
    sizes = np.abs(array)
    return bool(((sizes > MAX) & (sizes < INFINITE)).any())


def _plan(node: ir.Node, state: _State) -> tuple[frozenset[int], frozenset[int]] | None:
    """Indices of inputs and outputs that change; ``None`` if the operator cannot."""
    if node.op_type in ("Cast", "ConstantOfShape"):
        return _plan_source(node, state.half)
    try:
        schema = _schema(node.op_type, state)
    except onnx.defs.SchemaError:
        return None
    name = f"tensor({state.half.dtype.name.lower()})"
    half = {c.type_param_str for c in schema.type_constraints if name in c.allowed_type_strs}
    inputs: set[int] = set()
    bound: set[str] = set()
    for index, value in enumerate(node.inputs):
        if value is None:
            continue
        if value.dtype is None:
            return None
        variable = schema.inputs[min(index, len(schema.inputs) - 1)].type_str
        if value.dtype in (ir.DataType.FLOAT, state.half.dtype) and variable in half:
            inputs.add(index)
            bound.add(variable)
    outputs: set[int] = set()
    for index, value in enumerate(node.outputs):
        if value.dtype is None:
            return None
        if value.dtype == ir.DataType.FLOAT:
            if schema.outputs[min(index, len(schema.outputs) - 1)].type_str not in bound:
                return None
            outputs.add(index)
    return frozenset(inputs), frozenset(outputs)


def _schema(op: str, state: _State) -> onnx.defs.OpSchema:
    if state.half.narrow:
        return onnx.defs.get_schema(op, state.opsets.get("", 1), "")
    return onnx.defs.get_schema(op, "")


def _plan_source(node: ir.Node, half: HalfType) -> tuple[frozenset[int], frozenset[int]] | None:
    """Nodes whose output dtype is an attribute: the output changes, the input stays what it is."""
    if node.outputs[0].dtype != ir.DataType.FLOAT or _has_float_input(node, half):
        return None
    return frozenset(), frozenset({0})


def _has_float_input(node: ir.Node, half: HalfType) -> bool:
    return any(v is not None and v.dtype in (ir.DataType.FLOAT, half.dtype) for v in node.inputs)


def _retype_attributes(node: ir.Node, half: HalfType) -> None:
    if node.op_type == "Cast":
        node.attributes["to"] = ir.AttrInt64("to", int(half.dtype))
    elif node.op_type == "ConstantOfShape":
        value = node.attributes.get("value")
        array = np.zeros(1) if value is None else value.as_tensor().numpy()
        node.attributes["value"] = ir.AttrTensor("value", _tensor(_clamp(array, half).astype(half.numpy)))


def _float_uses(node: ir.Node, state: _State) -> Iterator[tuple[ir.Node, int, ir.Value]]:
    """Every use of a float value by a node that stays, those inside its subgraphs included."""
    nodes = [node]
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            nodes += ir.traversal.RecursiveGraphIterator(attribute.as_graph())
        elif attribute.type == ir.AttributeType.GRAPHS:
            for graph in attribute.as_graphs():
                nodes += ir.traversal.RecursiveGraphIterator(graph)
    for user in nodes:
        for index, value in enumerate(user.inputs):
            if value is not None and value in state.was_float:
                yield user, index, value


def _is_float(value: ir.Value, state: _State) -> bool:
    return value.dtype == ir.DataType.FLOAT or value in state.was_float


def _feed(node: ir.Node, index: int, value: ir.Value, dtype: ir.DataType, state: _State) -> None:
    """Make input ``index`` of ``node`` carry ``dtype``: as it is, through a weight copy, or through a Cast."""
    if value.dtype == dtype:
        return
    key = (value, dtype)
    if key not in state.casts:
        state.casts[key] = (
            _half_weight(value, state) if value.is_initializer() else _cast(value, dtype, state)
        )
    node.replace_input_with(index, state.casts[key])


def _half_weight(value: ir.Value, state: _State) -> ir.Value:
    assert value.const_value is not None
    assert value.name is not None
    array, half = value.const_value.numpy(), state.half
    finite = np.isfinite(array)
    if np.any(np.abs(array[finite]) > half.largest):
        state.clamped.append(value.name)
    stored = _clamp(array, half).astype(half.numpy)
    if array.size == 1 and np.all(stored == 0) and np.any(array != 0):
        state.flushed.append(value.name)
        stored = np.copysign(np.full_like(array, half.tiny), array).astype(half.numpy)
    name = f"{value.name}_{half.suffix}"
    new = ir.Value(
        name=name,
        type=ir.TensorType(half.dtype),
        shape=value.shape,
        const_value=_tensor(stored, name),
    )
    state.graph.register_initializer(new)
    return new


def _clamp(array: np.ndarray, half: HalfType) -> np.ndarray:
    return np.where(np.isfinite(array), np.clip(array, -half.largest, half.largest), array)


def _tensor(array: np.ndarray, name: str | None = None) -> ir.Tensor[Any]:
    return ir.Tensor(array, name=name)


def _cast(value: ir.Value, dtype: ir.DataType, state: _State) -> ir.Value:
    suffix = state.half.suffix if dtype == state.half.dtype else "fp32"
    node = ir.node("Cast", [value], {"to": int(dtype)}, name=f"{value.name}_to_{suffix}")
    out = node.outputs[0]
    out.name, out.dtype, out.shape = f"{value.name}_{suffix}", dtype, value.shape
    producer = value.producer()
    if producer is None:
        state.graph.insert_before(state.graph[0], node)
    else:
        state.graph.insert_after(producer, node)
    return out


def _restore_outputs(state: _State) -> None:
    for index, value in enumerate(state.graph.outputs):
        if value not in state.was_float:
            continue
        name = value.name
        value.name = f"{name}_{state.half.suffix}"
        out = _cast(value, ir.DataType.FLOAT, state)
        out.name = name
        state.graph.outputs[index] = out


def _drop_unused_weights(state: _State) -> None:
    """Remove float32 weights that nothing reads any more; their 16-bit copies take the names over."""
    for (value, _), half in state.casts.items():
        name = value.name
        unused = not value.uses() and not value.is_graph_input() and not value.is_graph_output()
        if half.is_initializer() and unused and name is not None:
            state.graph.initializers.pop(name)
            half.name = name
