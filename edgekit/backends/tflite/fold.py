"""Constant folding: nodes whose inputs are all constant are computed here, shapes are constants.

The operators of shape computations are written out in numpy (they make up nearly all foldable nodes, and
stay views where numpy allows); everything else goes to ONNX's reference implementation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from edgekit.backends.tflite.ir import Array

_GROWTH_LIMIT = 1 << 20
_RANDOM = frozenset(
    {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial"}
)
_STRUCTURAL = frozenset(
    {
        *("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "If", "Loop", "Scan"),
        *("SequenceEmpty", "SequenceConstruct", "SplitToSequence"),
    }
)


class NotFoldable(Exception):  # noqa: N818 - a signal, not an error
    """The node has to be lowered like any other."""


def fold(
    domain: str,
    op: str,
    opset: int,
    inputs: Sequence[Array | None],
    attributes: Mapping[str, Any],
    count: int = 1,
) -> tuple[Array, ...]:
    """The node's ``count`` outputs as numpy arrays (they may share memory with the inputs).

    Raises :class:`NotFoldable` for random and control-flow operators, for what the reference does not
    know, and where the result would be large and much larger than the inputs (Expand, Tile).
    """
    if op in _RANDOM or op in _STRUCTURAL:
        raise NotFoldable
    rule = _NUMPY.get(op) if domain == "" else None
    outputs = rule(opset, inputs, attributes) if rule is not None else None
    if outputs is None:
        outputs = _reference(domain, op, opset, inputs, attributes, count)
    before = sum(i.nbytes for i in inputs if i is not None)
    after = sum(o.nbytes for o in outputs)
    if after > _GROWTH_LIMIT and after > 4 * before and op != "ConstantOfShape":
        raise NotFoldable
    return outputs


def _reference(
    domain: str,
    op: str,
    opset: int,
    inputs: Sequence[Array | None],
    attributes: Mapping[str, Any],
    count: int,
) -> tuple[Array, ...]:
    from onnx import TensorProto, helper
    from onnx.reference import ReferenceEvaluator

    names = ["" if i is None else f"i{n}" for n, i in enumerate(inputs)]
    results = [f"o{n}" for n in range(count)]
    node = helper.make_node(op, names, results, domain=domain, **_plain_attributes(attributes))
    given = {f"i{n}": i for n, i in enumerate(inputs) if i is not None}
    infos = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for name, a in given.items()
    ]
    outs = [
        helper.make_value_info(n, helper.make_tensor_type_proto(TensorProto.UNDEFINED, None)) for n in results
    ]
    imports = [helper.make_opsetid(domain, opset)]
    model = helper.make_model(helper.make_graph([node], "fold", infos, outs), opset_imports=imports)
    try:
        outputs = ReferenceEvaluator(model).run(None, given)
    except Exception as error:
        raise NotFoldable from error
    if not all(isinstance(o, np.ndarray) for o in outputs):
        raise NotFoldable
    return tuple(outputs)


def _plain_attributes(attributes: Mapping[str, Any]) -> dict[str, Any]:
    from onnx import numpy_helper

    return {
        k: numpy_helper.from_array(v) if isinstance(v, np.ndarray) else list(v) if isinstance(v, tuple) else v
        for k, v in attributes.items()
        if v is not None
    }


# --- numpy rules: (opset, inputs, attributes) → outputs, or None to leave it to the reference ---------

_Outputs = tuple[Array, ...] | None
_Rule = Callable[[int, Sequence[Any], Mapping[str, Any]], _Outputs]


def target_shape(before: Sequence[int], wanted: Sequence[int], allowzero: int = 0) -> tuple[int, ...]:
    """ONNX Reshape's rule: 0 copies the input's dimension (unless ``allowzero``), -1 is inferred."""
    shape = [
        int(before[i]) if d == 0 and not allowzero and i < len(before) else int(d)
        for i, d in enumerate(wanted)
    ]
    if -1 in shape:
        known = int(np.prod([d for d in shape if d != -1], dtype=np.int64))
        total = int(np.prod(before, dtype=np.int64))
        shape[shape.index(-1)] = total // known if known else 0
    return tuple(shape)


def _binary(function: Callable[[Array, Array], Any]) -> _Rule:
    return lambda _opset, x, _attributes: (np.asarray(function(x[0], x[1])),)


def _divide(a: Array, b: Array) -> Array:
    if not np.issubdtype(a.dtype, np.integer):
        return np.asarray(a / b, a.dtype)
    quotient = np.abs(a) // np.abs(b)
    return np.asarray(np.where((a < 0) ^ (b < 0), -quotient, quotient), a.dtype)


def _axes(x: Sequence[Any], attributes: Mapping[str, Any]) -> tuple[int, ...] | None:
    given = x[1] if len(x) > 1 and x[1] is not None else attributes.get("axes")
    return None if given is None else tuple(int(a) for a in np.asarray(given).reshape(-1))


def _unsqueeze(_opset: int, x: Sequence[Any], attributes: Mapping[str, Any]) -> _Outputs:
    return (np.expand_dims(x[0], _axes(x, attributes) or ()),)


def _squeeze(_opset: int, x: Sequence[Any], attributes: Mapping[str, Any]) -> _Outputs:
    return (np.squeeze(x[0], _axes(x, attributes)),)


def _gather(_opset: int, x: Sequence[Any], attributes: Mapping[str, Any]) -> _Outputs:
    return (np.asarray(np.take(x[0], x[1], axis=attributes.get("axis", 0))),)


def _gather_elements(_opset: int, x: Sequence[Any], attributes: Mapping[str, Any]) -> _Outputs:
    return (np.take_along_axis(x[0], x[1], axis=attributes.get("axis", 0)),)


def _slice(opset: int, x: Sequence[Any], _attributes: Mapping[str, Any]) -> _Outputs:
    if opset < 10:
        return None
    data, starts, ends = x[0], x[1], x[2]
    axes = range(len(starts)) if len(x) < 4 or x[3] is None else x[3]
    steps = [1] * len(starts) if len(x) < 5 or x[4] is None else x[4]
    index: list[Any] = [slice(None)] * data.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        # Going backwards, an end before the first element means "through element 0".
        stop = None if step < 0 and end < -data.shape[axis] else int(end)
        index[int(axis)] = slice(int(start), stop, int(step))
    return (data[tuple(index)],)


def _cast(_opset: int, x: Sequence[Any], attributes: Mapping[str, Any]) -> _Outputs:
    from onnx import helper

    dtype = helper.tensor_dtype_to_np_dtype(attributes["to"])
    return None if dtype.kind in "OUV" else (x[0].astype(dtype),)


def _range(_opset: int, x: Sequence[Any], _attributes: Mapping[str, Any]) -> _Outputs:
    return (np.arange(x[0].item(), x[1].item(), x[2].item(), dtype=x[0].dtype),)


def _constant_of_shape(_opset: int, x: Sequence[Any], attributes: Mapping[str, Any]) -> _Outputs:
    value = attributes.get("value", np.zeros(1, np.float32))
    return (np.full(tuple(int(d) for d in x[0]), value.reshape(-1)[0], value.dtype),)


def _expand(_opset: int, x: Sequence[Any], _attributes: Mapping[str, Any]) -> _Outputs:
    shape = np.broadcast_shapes(x[0].shape, tuple(int(d) for d in x[1]))
    return (np.broadcast_to(x[0], shape),)


def _reshape(_opset: int, x: Sequence[Any], attributes: Mapping[str, Any]) -> _Outputs:
    return (x[0].reshape(target_shape(x[0].shape, x[1].tolist(), attributes.get("allowzero", 0))),)


def _transpose(_opset: int, x: Sequence[Any], attributes: Mapping[str, Any]) -> _Outputs:
    return (np.transpose(x[0], attributes.get("perm")),)


def _concat(_opset: int, x: Sequence[Any], attributes: Mapping[str, Any]) -> _Outputs:
    return (np.concatenate(x, axis=attributes["axis"]),)


def _identity(_opset: int, x: Sequence[Any], _attributes: Mapping[str, Any]) -> _Outputs:
    return (x[0],)


_NUMPY: dict[str, _Rule] = {
    "Add": _binary(np.add),
    "Sub": _binary(np.subtract),
    "Mul": _binary(np.multiply),
    "Div": _binary(_divide),
    "Equal": _binary(np.equal),
    "Less": _binary(np.less),
    "Greater": _binary(np.greater),
    "And": _binary(np.logical_and),
    "Or": _binary(np.logical_or),
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "Slice": _slice,
    "Cast": _cast,
    "Range": _range,
    "ConstantOfShape": _constant_of_shape,
    "Expand": _expand,
    "Reshape": _reshape,
    "Transpose": _transpose,
    "Concat": _concat,
    "Identity": _identity,
    "Where": lambda _o, x, _a: (np.asarray(np.where(x[0], x[1], x[2])),),
    "Not": lambda _o, x, _a: (np.logical_not(x[0]),),
    "Neg": lambda _o, x, _a: (np.negative(x[0]),),
    "Sqrt": lambda _o, x, _a: (np.asarray(np.sqrt(x[0]), x[0].dtype),),
}
