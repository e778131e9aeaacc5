"""Constant folding: nodes whose inputs are all constant are computed here, shapes are constants.

The operators of shape computations are written out in numpy (they make up nearly all foldable nodes, and
stay views where numpy allows); everything else goes to ONNX's reference implementation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from edgekit.backends.tflite.ir import Array
from edgekit.core.foreign import attempted
from edgekit.graph import ops

Attributes: TypeAlias = Mapping[str, object]

_GROWTH_LIMIT = 1 << 20
_SLICE_BY_INPUTS = 10
"""The opset from which on Slice takes its limits as inputs."""
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
    attributes: Attributes,
    count: int = 1,
) -> tuple[Array, ...]:
    """The node's ``count`` outputs as numpy arrays (they may share memory with the inputs).

    Raises :class:`NotFoldable` for random and control-flow operators, for what the reference does not
    know, and where the result would be large and much larger than the inputs (Expand, Tile).
    """
    if op in ops.RANDOM or op in _STRUCTURAL:
        raise NotFoldable
    rule = _NUMPY.get(op) if domain == "" and (op != "Slice" or opset >= _SLICE_BY_INPUTS) else None
    output = rule(*inputs, **attributes) if rule is not None else None
    computed = None if output is None else (np.asarray(output),)
    outputs = computed or _reference(domain, op, opset, inputs, attributes, count)
    before = sum(i.nbytes for i in inputs if i is not None)
    after = sum(o.nbytes for o in outputs)
    # An Expand of a mask would put megabytes into the file that one operator makes at run time.
    if after > _GROWTH_LIMIT and after > 4 * before and op != "ConstantOfShape":
        raise NotFoldable
    return outputs


def _reference(
    domain: str,
    op: str,
    opset: int,
    inputs: Sequence[Array | None],
    attributes: Attributes,
    count: int,
) -> tuple[Array, ...]:
    names = ["" if i is None else f"i{n}" for n, i in enumerate(inputs)]
    results = [f"o{n}" for n in range(count)]
    node = helper.make_node(op, names, results, domain=domain, **_plain_attributes(attributes))
    values = {f"i{n}": i for n, i in enumerate(inputs) if i is not None}
    infos = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for name, a in values.items()
    ]
    outs = [
        helper.make_value_info(n, helper.make_tensor_type_proto(TensorProto.UNDEFINED, None)) for n in results
    ]
    imports = [helper.make_opsetid(domain, opset)]
    model = helper.make_model(helper.make_graph([node], "fold", infos, outs), opset_imports=imports)
    # The reference implementation raises whatever its numpy code meets: the node is lowered like any other then.
    outputs = attempted(lambda: ReferenceEvaluator(model).run(None, values))
    if isinstance(outputs, Exception):
        raise NotFoldable from outputs
    if not all(isinstance(o, np.ndarray) for o in outputs):
        raise NotFoldable
    return tuple(outputs)


def _plain_attributes(attributes: Attributes) -> dict[str, Any]:
    return {
        k: numpy_helper.from_array(v) if isinstance(v, np.ndarray) else list(v) if isinstance(v, tuple) else v
        for k, v in attributes.items()
        if v is not None
    }


# --- numpy rules: (inputs, attributes) → the output, or None to leave it to the reference -------------


def target_shape(before: Sequence[int], wanted: Sequence[int], allowzero: int = 0) -> tuple[int, ...]:
    """ONNX Reshape's rule: 0 copies the input's dimension (unless ``allowzero``), -1 is inferred."""
    shape = [
        int(before[i]) if d == 0 and not allowzero and i < len(before) else int(d)
        for i, d in enumerate(wanted)
    ]
    if -1 in shape:
        product = int(np.prod([d for d in shape if d != -1], dtype=np.int64))
        total = int(np.prod(before, dtype=np.int64))
        shape[shape.index(-1)] = total // product if product else 0
    return tuple(shape)


def _divide(a: Array, b: Array) -> Array:
    if not np.issubdtype(a.dtype, np.integer):
        return np.asarray(a / b, a.dtype)
    quotient = np.abs(a) // np.abs(b)
    return np.asarray(np.where((a < 0) ^ (b < 0), -quotient, quotient), a.dtype)


def _axes(axes: Array | Sequence[int] | None) -> tuple[int, ...] | None:
    """An input since opset 13, an attribute before."""
    return None if axes is None else tuple(int(a) for a in np.asarray(axes).reshape(-1))


def _slice(
    data: Array, starts: Array, ends: Array, axes: Array | None = None, steps: Array | None = None
) -> Array:
    places = range(len(starts)) if axes is None else axes
    strides = [1] * len(starts) if steps is None else steps
    index = [slice(None)] * data.ndim
    for start, end, axis, step in zip(starts, ends, places, strides, strict=True):
        # Going backwards, an end before the first element means "through element 0".
        stop = None if step < 0 and end < -data.shape[axis] else int(end)
        index[int(axis)] = slice(int(start), stop, int(step))
    return np.asarray(data[tuple(index)])


def _cast(x: Array, *, to: int, saturate: int = 1, round_mode: str = "up") -> Array | None:
    del saturate, round_mode  # only for the 8-bit float types
    dtype = helper.tensor_dtype_to_np_dtype(to)
    return None if dtype.kind in "OUV" else x.astype(dtype)


def _constant_of_shape(shape: Array, *, value: Array | None = None) -> Array:
    fill = np.zeros(1, np.float32) if value is None else value
    return np.full(tuple(int(d) for d in shape), fill.reshape(-1)[0], fill.dtype)


def _expand(x: Array, shape: Array) -> Array:
    return np.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(int(d) for d in shape)))


def _reshape(x: Array, shape: Array, *, allowzero: int = 0) -> Array:
    return x.reshape(target_shape(x.shape, shape.tolist(), allowzero))


def _concat(*parts: Array, axis: int) -> Array:
    return np.concatenate(parts, axis=axis)


_NUMPY: dict[str, Callable[..., Array | None]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": _divide,
    "Equal": np.equal,
    "Less": np.less,
    "Greater": np.greater,
    "And": np.logical_and,
    "Or": np.logical_or,
    "Unsqueeze": lambda x, axes=None: np.expand_dims(x, _axes(axes) or ()),
    "Squeeze": lambda x, axes=None: np.squeeze(x, _axes(axes)),
    "Gather": lambda x, index, *, axis=0: np.take(x, index, axis=axis),
    "GatherElements": lambda x, index, *, axis=0: np.take_along_axis(x, index, axis=axis),
    "Cast": _cast,
    "Range": lambda start, limit, delta: np.arange(
        start.item(), limit.item(), delta.item(), dtype=start.dtype
    ),
    "ConstantOfShape": _constant_of_shape,
    "Expand": _expand,
    "Reshape": _reshape,
    "Slice": _slice,
    "Transpose": lambda x, *, perm=None: np.transpose(x, perm),
    "Concat": _concat,
    "Identity": lambda x: x,
    "Where": np.where,
    "Not": np.logical_not,
    "Neg": np.negative,
    "Sqrt": lambda x: np.sqrt(x).astype(x.dtype),
}
