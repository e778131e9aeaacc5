"""One graph as the parser of one TensorRT version reads it: opset, Q/DQ, and operators that it has no layer for.

TensorRT 8.5 and 8.6 (JetPack 5) read up to opset 17 and want the Q/DQ of weights around a float constant; 9 reads up to
19; 10 reads 20 and integers with DequantizeLinear alone. (Source: the operator tables of onnx-tensorrt's releases.)
onnx's own version converter lacks the ways back of Split, Pad and the reductions, which every exported graph has, and
of what is new: what changed between 17 and 20 is undone here, and what is a function is written out (see
:mod:`edgekit.backends.nvidia.newer`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgekit.backends.nvidia import newer
from edgekit.backends.nvidia.engine import release
from edgekit.errors import UnsupportedError, UnsupportedNode, UnsupportedOperatorsError
from edgekit.graph import io

_OPSETS = (((10, 15), 24), ((10, 0), 20), ((9, 0), 19), ((8, 5), 17))
"""From which release on the parser reads which opset."""

OLDEST = (8, 5)

_REDUCTIONS = {
    f"Reduce{name}" for name in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")
}


def opset_of(version: str) -> int:
    """The newest opset that the parser of ``version`` reads. Raises :class:`UnsupportedError` for too old a one."""
    found = next((opset for since, opset in _OPSETS if release(version) >= since), None)
    if found is None:
        raise UnsupportedError(
            f"TensorRT {version} is older than {'.'.join(map(str, OLDEST))}: edgekit writes nothing for it",
            hint="update the device's TensorRT (on a Jetson: JetPack 5 or later)",
        )
    return found


def spell(source: Path, version: str, out: Path, target: str) -> tuple[Path, tuple[str, ...]]:
    """The graph at ``source`` for the parser of ``version``; ``source`` itself where that reads it as it is.

    Returns the path, and what was done as notes. Raises :class:`UnsupportedOperatorsError` with every node that there
    is no older spelling of.
    """
    model = io.load(source)
    newest, own = opset_of(version), model.opset_imports.get("", 0)
    old = release(version) < (10, 0)
    pairs = [n for n in model.graph if old and _stored(n) is not None]
    normalized = release(version) < (8, 6) and any(n.op_type == "LayerNormalization" for n in model.graph)
    if own <= newest and not pairs and not normalized:
        return source, ()
    notes = []
    if own > newest or normalized:
        model = _older(model, source.parent, newest, target, normalized=normalized)
        notes.append(f"opset {own} written as {newest} for TensorRT {version}")
    if pairs:
        count = sum(_pair(model.graph, n) for n in list(model.graph))
        notes.append(f"{count} integer constants written as float behind Q/DQ for TensorRT {version}")
    return io.save(model, out).path, tuple(notes)


def _older(model: ir.Model, folder: Path, opset: int, target: str, *, normalized: bool) -> ir.Model:
    own = model.opset_imports.get("", 0)
    proto = newer.written_out(ir.to_proto(model), opset, *(("LayerNormalization",) if normalized else ()))
    written = newer.folded(proto, folder)
    problems = [p for node in list(written.graph.all_nodes()) for p in _rewritten(node, own, opset)]
    if problems:
        raise UnsupportedOperatorsError(target, problems)
    written.opset_imports[""] = opset
    io.lower_ir_version(written)
    return written


def _rewritten(node: ir.Node, own: int, opset: int) -> Iterator[UnsupportedNode]:
    """One node as ``opset`` has it, in place; what that lacks comes back."""
    since, change = _CHANGES.get(node.op_type, (0, _no_change))
    reason = change(node) if opset < since and node.domain == "" else ""
    reason = reason or newer.lacking(node, own, opset)
    if reason:
        yield UnsupportedNode(
            op=node.op_type,
            node=newer.owner(node.name or "?"),
            reason=reason,
            module_path=io.module_path(node),
        )


def _constant(value: ir.Value | None) -> np.ndarray | None:
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def _reduction(node: ir.Node) -> str:
    """Axes that are an input become an attribute."""
    noop = node.attributes.pop("noop_with_empty_axes", None)
    if len(node.inputs) < 2 or node.inputs[1] is None:
        node.resize_inputs(1)
        return "" if noop is None or not noop.as_int() else "a reduction over no axis is newer than opset 17"
    axes = _constant(node.inputs[1])
    if axes is None:
        return "its axes are computed: opset 17 takes constant ones"
    node.resize_inputs(1)
    if axes.size:
        node.attributes["axes"] = ir.AttrInt64s("axes", [int(a) for a in axes.ravel()])
    return ""


def _split(node: ir.Node) -> str:
    """A number of parts becomes their sizes."""
    count = node.attributes.pop("num_outputs", None)
    if count is None or (len(node.inputs) > 1 and node.inputs[1] is not None):
        return ""
    value = node.inputs[0]
    shape = value.shape if value is not None else None
    axis = node.attributes.get_int("axis", 0) or 0
    size = shape[axis] if shape is not None else None
    parts = count.as_int()
    if not isinstance(size, int):
        return (
            "" if size is not None else "the size that it splits is not known: opset 17 wants sizes of parts"
        )
    chunk = -(-size // parts)
    sizes = np.asarray([min(chunk, size - i * chunk) for i in range(parts)], np.int64)
    node.resize_inputs(2)
    node.replace_input_with(1, _initializer(node, "sizes", sizes))
    return ""


def _pad(node: ir.Node) -> str:
    """Pads of some axes become those of all."""
    if node.attributes.get_string("mode", "constant") == "wrap":
        return "opset 17 has no Pad that wraps around"
    if len(node.inputs) < 4 or node.inputs[3] is None:
        node.resize_inputs(min(len(node.inputs), 3))
        return ""
    axes, pads = _constant(node.inputs[3]), _constant(node.inputs[1])
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    if axes is None or pads is None or shape is None:
        return "its axes or pads are computed: opset 17 takes pads of all axes"
    rank, half = len(shape), pads.size // 2
    whole = np.zeros(2 * rank, np.int64)
    for index, axis in enumerate(axes.ravel() % rank):
        whole[axis], whole[rank + axis] = pads[index], pads[half + index]
    node.replace_input_with(1, _initializer(node, "pads", whole))
    node.resize_inputs(3)
    return ""


def _resize(node: ir.Node) -> str:
    """Axes are those of a whole shape where they are all of them."""
    axes = node.attributes.pop("axes", None)
    if node.attributes.get_string("coordinate_transformation_mode", "") == "half_pixel_symmetric":
        return "opset 17 has no Resize with half_pixel_symmetric"
    if axes is None:
        return ""
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    if shape is not None and list(axes.as_ints()) == list(range(len(shape))):
        return ""
    return "opset 17 has no Resize of some axes"


def _grid_sample(node: ir.Node) -> str:
    older = {"linear": "bilinear", "cubic": "bicubic"}
    mode = node.attributes.get_string("mode", "linear") or "linear"
    node.attributes["mode"] = ir.AttrString("mode", older.get(mode, mode))
    value = node.inputs[0]
    deep = value is not None and value.shape is not None and len(value.shape) > 4
    return "opset 17 samples images only" if deep else ""


def _cast_like(node: ir.Node) -> str:
    """In the standard's own functions; TensorRT 8 has no conversion for it."""
    like = node.inputs[1]
    if like is None or like.dtype is None:
        return "the type that it casts to is not known"
    node.resize_inputs(1)
    node.op_type = "Cast"
    node.attributes["to"] = ir.AttrInt64("to", like.dtype)
    return ""


def _no_change(_: ir.Node) -> str:
    return ""


_CHANGES: dict[str, tuple[int, Callable[[ir.Node], str]]] = {
    **dict.fromkeys(_REDUCTIONS, (18, _reduction)),
    "Split": (18, _split),
    "Pad": (18, _pad),
    "Resize": (18, _resize),
    "GridSample": (20, _grid_sample),
    "CastLike": (20, _cast_like),
}
"""From which opset on an operator is as it is in newer ones, and how it is written in older ones."""


def _initializer(node: ir.Node, what: str, array: np.ndarray) -> ir.Value:
    """A new constant beside ``node``."""
    name = f"{node.outputs[0].name}_{what}"
    value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
    value.shape, value.type = ir.Shape(array.shape), ir.TensorType(ir.DataType.from_numpy(array.dtype))
    assert isinstance(node.graph, ir.Graph)
    node.graph.register_initializer(value)
    return value


def _stored(node: ir.Node) -> np.ndarray | None:
    """The INT8 constant that a DequantizeLinear reads."""
    if node.op_type != "DequantizeLinear" or node.inputs[0] is None:
        return None
    value = node.inputs[0]
    tensor = value.const_value if value.producer() is None else None
    return tensor.numpy() if tensor is not None and tensor.dtype == ir.DataType.INT8 else None


def _pair(graph: ir.Graph, node: ir.Node) -> bool:
    """Put a QuantizeLinear before a DequantizeLinear of a constant: the same integers, from a float constant."""
    stored, scale = _stored(node), None
    if stored is not None:
        scale = _constant(node.inputs[1])
    if stored is None or scale is None:
        return False
    axis = node.attributes.get_int("axis", 1) or 0
    steps = scale
    if scale.ndim == 1 and scale.size > 1:
        steps = scale.reshape([-1 if i == axis % stored.ndim else 1 for i in range(stored.ndim)])
    real = (stored.astype(np.float32) * steps.astype(np.float32)).astype(scale.dtype)
    assert node.inputs[0] is not None
    constant = _initializer(node, "real", real)
    attributes = {"axis": axis} if scale.ndim == 1 and scale.size > 1 else {}
    quantize = ir.node(
        "QuantizeLinear", [constant, *node.inputs[1:]], attributes=attributes, name=f"{node.name}_quantize"
    )
    quantize.outputs[0].name = f"{constant.name}_quantized"
    graph.insert_before(node, quantize)
    node.replace_input_with(0, quantize.outputs[0])
    return True
