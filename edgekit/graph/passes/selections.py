"""What a boolean mask picks, without ever having a size that the data decides."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgekit.graph.edit import attribute, constant, home, nodes, produced_by, replace, static_shape, sweep
from edgekit.graph.make import Maker
from edgekit.graph.ops import is_op

_ARITHMETIC = (
    "Add",
    "Sub",
    "Mul",
    "Div",
    "Pow",
    "Max",
    "Min",
    "Neg",
    "Abs",
    "Reciprocal",
    "Exp",
    "Log",
    "Sqrt",
)
_ELEMENTWISE = (*_ARITHMETIC, "Relu", "Clip", "Sigmoid", "Tanh", "Cast", "Identity")
_DEEPEST = 16
_EMPTY = {"ReduceSum": 0.0, "ReduceMean": 0.0, "ReduceMax": -np.inf, "ReduceMin": np.inf}


class MaskInPlace(ir.passes.InPlacePass):
    """``x[mask] = …`` and reductions of ``x[mask]`` → Where over the whole tensor.

    Exporters write indices (NonZero, then ScatterND or GatherND), whose number only the data knows; TFLite files are
    compiled for fixed shapes, and other runtimes leave their fast paths. Elementwise arithmetic in between is done on
    the whole tensor.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the rewrite."""
        modified = False
        for node in nodes(model, "ScatterND", *_EMPTY):
            if home(node) is None:
                continue
            make = Maker(node)
            if _written(node, make) if node.op_type == "ScatterND" else _reduced(node, make):
                replace(node, make.made)
                modified = True
        if modified:
            sweep(model)
        return ir.passes.PassResult(model, modified=modified)


def _mask(indices: ir.Value | None) -> ir.Value | None:
    """The mask whose true places ``indices`` are."""
    value, turned, reshaped = indices, False, False
    for _ in range(4):
        node = produced_by(value, "Transpose", "Squeeze", "Unsqueeze", "Reshape")
        if node is None:
            break
        turned |= node.op_type == "Transpose"
        reshaped |= node.op_type != "Transpose"
        value = node.inputs[0]
    found = produced_by(value, "NonZero")
    mask = found.inputs[0] if found is not None else None
    shape = static_shape(mask) if mask is not None and mask.dtype == ir.DataType.BOOL else None
    if not shape or indices is None or indices.shape is None:
        return None
    # Of one axis, [1, n] and [n, 1] hold the same in the same order.
    column = len(shape) == 1 and len(indices.shape) == 2 and indices.shape[1] == 1
    return mask if column or (turned and not reshaped) else None


def _written(node: ir.Node, make: Maker) -> bool:
    """``Where(mask, what is written, x)``."""
    x, mask, updates = node.inputs[0], _mask(node.inputs[1]), node.inputs[2]
    shape = static_shape(x)
    if mask is None or x is None or shape is None or attribute(node, "reduction", "none") != "none":
        return False
    new = _number(updates)
    new = _whole(updates, mask, make) if new is None else new
    if new is None:
        return False
    wide = _spread(mask, len(shape), make)
    make.add("Where", [wide, new, x])
    return True


def _reduced(node: ir.Node, make: Maker) -> bool:
    """The reduction with the elements that are not picked set to what does not count."""
    x = node.inputs[0]
    mask = _mask_of(x, 0)
    rank = len(x.shape) if x is not None and x.shape is not None else 0
    axes = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    over = {int(a) % rank for a in axes.reshape(-1)} if axes is not None and rank else set(range(rank))
    if mask is None or mask.shape is None or x is None or 0 not in over or x.dtype != ir.DataType.FLOAT:
        return False
    whole = _whole(x, mask, make)
    if whole is None:
        return False
    lead = len(mask.shape)
    spatial = sorted({*range(lead), *(a + lead - 1 for a in over)})
    wide = _spread(mask, rank + lead - 1, make)
    nothing = make.constant(np.asarray(_EMPTY[node.op_type], np.float32))
    kept = make.add("Where", [wide, whole, nothing])
    code = "ReduceSum" if node.op_type == "ReduceMean" else node.op_type
    reduced = make.add(code, [kept, make.ints(*spatial)], keepdims=0)
    if node.op_type == "ReduceMean":
        ones = make.constant(np.ones((), np.float32))
        number = make.add("Where", [wide, ones, make.constant(np.zeros((), np.float32))])
        others = _others(x, over)
        if others is None:
            return False
        count = make.add("ReduceSum", [number, make.ints(*range(rank + lead - 1))], keepdims=0)
        reduced = make.add(
            "Div", [reduced, make.add("Mul", [count, make.constant(np.asarray(others, np.float32))])]
        )
    if attribute(node, "keepdims", 1):
        make.add("Unsqueeze", [reduced, make.ints(*sorted(over))])
    return True


def _others(x: ir.Value, over: set[int]) -> float | None:
    """How many elements a picked place has along the other axes that are reduced."""
    sizes = [x.shape[a] for a in over if a] if x.shape is not None else []
    return (
        float(np.prod([d for d in sizes if isinstance(d, int)]))
        if all(isinstance(d, int) for d in sizes)
        else None
    )


def _number(value: ir.Value | None) -> ir.Value | None:
    """The one element that an expansion repeats."""
    for _ in range(4):
        node = produced_by(value, "Expand", "Reshape", "Identity")
        if node is None:
            return None
        value = node.inputs[0]
        shape = static_shape(value)
        if shape is not None and np.prod(shape) == 1 and len(shape) <= 1:
            return value
    return None


def _mask_of(value: ir.Value | None, depth: int) -> ir.Value | None:
    """The mask that picked ``value``'s elements, through elementwise arithmetic."""
    node = value.producer() if value is not None else None
    if node is None or depth > _DEEPEST:
        return None
    if is_op(node, "GatherND"):
        return _mask(node.inputs[1]) if attribute(node, "batch_dims", 0) == 0 else None
    if not is_op(node, *_ELEMENTWISE):
        return None
    return next((m for m in (_mask_of(v, depth + 1) for v in node.inputs) if m is not None), None)


def _whole(value: ir.Value | None, mask: ir.Value, make: Maker, depth: int = 0) -> ir.Value | None:
    """``value`` before ``mask`` picked from it; ``None`` where something else of the mask's size takes part."""
    node = value.producer() if value is not None else None
    if value is None or depth > _DEEPEST:
        return None
    shape = static_shape(value)
    if shape is not None and np.prod(shape) == 1 and len(shape) <= 1:
        return value
    if node is None:
        return None
    if is_op(node, "GatherND"):
        source = node.inputs[0]
        fits = _mask(node.inputs[1]) is mask and attribute(node, "batch_dims", 0) == 0
        return source if fits and static_shape(source) is not None else None
    if is_op(node, "Expand"):  # of what has the size already
        return _whole(node.inputs[0], mask, make, depth + 1)
    if not is_op(node, *_ELEMENTWISE):
        return None
    inputs = [None if v is None else _whole(v, mask, make, depth + 1) for v in node.inputs]
    if any(new is None for new, old in zip(inputs, node.inputs, strict=True) if old is not None):
        return None
    return make.add(node.op_type, inputs, **{k: a.value for k, a in node.attributes.items()})


def _spread(mask: ir.Value, rank: int, make: Maker) -> ir.Value:
    """The mask with an axis of size 1 for each that it does not cover."""
    have = len(mask.shape) if mask.shape is not None else rank
    return mask if have == rank else make.add("Unsqueeze", [mask, make.ints(*range(have, rank))])
