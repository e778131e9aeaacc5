"""Graphs that come with Q/DQ: taken apart into a float graph and what was trained, so that any scheme can be laid on.

Quantization-aware training, here or elsewhere, gives a graph with QuantizeLinear and DequantizeLinear where it was
trained. A target wants them elsewhere too (additions, pooling, biases), and the same integers in another type. So
the graph is planned anew, with the integers of the weights and the ranges of the activations as they were trained:
UINT8 and INT8 differ by 128 in the zero point and are the same grid.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from edgekit.errors import UnsupportedError
from edgekit.graph import io as graphs
from edgekit.graph import ops
from edgekit.graph.edit import add_constant, bypass
from edgekit.graph.ops import Trait
from edgekit.quantize.blocks import attribute, constant
from edgekit.quantize.options import QuantizeOptions
from edgekit.quantize.params import Affine, Stored, affine
from edgekit.types import OnnxModel

_OFFSET = {"uint8": 0, "int8": -128, "int16": 0}
_STORED = frozenset({"int8", "uint8", "int4", "uint4"})
_MOVED = frozenset({"Transpose", "Identity"})


@dataclass(frozen=True, kw_only=True)
class Trained:
    """``ranges`` by the float tensor that was rounded, ``weights`` by the name of the float weight. ``notes`` say
    what could not be kept."""

    ranges: Mapping[str, Affine] = field(default_factory=dict)
    weights: Mapping[str, Stored] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.ranges or self.weights)

    def allowed(self, options: QuantizeOptions) -> QuantizeOptions:
        """Without the corrections that change weights: these were trained."""
        if not self:
            return options
        kept = ("bias",) if {"bias", "auto"} & set(options.corrections) else ()
        return dataclasses.replace(options, corrections=kept)

    def without_ranges(self) -> tuple[str, ...]:
        """Notes for a target that computes in float."""
        told = (
            ("activations were trained with ranges; this target computes them in float",)
            if self.ranges
            else ()
        )
        return (*self.notes, *told)

    def refuse_dynamic(self) -> None:
        """Raises :class:`UnsupportedError` where a target without ranges would drop those that were trained."""
        if self.ranges:
            raise UnsupportedError(
                "the model's activations were trained with ranges, and this target finds them anew on every run",
                hint="build an INT8 target (ort-int8, openvino-int8, tflite-int8), or train with activations=0",
            )


def has_quantizers(model: OnnxModel) -> bool:
    """Whether a model comes with Q/DQ."""
    return any(ops.has(n, Trait.QUANTIZES) for n in graphs.read_proto(model.path).graph.node)


def take_apart(model: OnnxModel, out: Path) -> tuple[OnnxModel, Trained]:
    """Write ``model`` without its Q/DQ to ``out``, and tell what they said.

    Weights keep the values that their integers stand for. Raises :class:`UnsupportedError` for a graph whose
    integers are computed with (QLinearConv and its like), and for activations in types that no target computes in.
    """
    ir_model = graphs.load(model.path)
    graph = ir_model.graph
    _refuse_integer_operators(graph)
    parts = _Parts()
    for node in tuple(graph):
        if node.op_type == "DequantizeLinear" and not node.domain and _constant_input(node):
            _weight(graph, node, parts)
    for node in tuple(graph):
        if node.op_type == "QuantizeLinear" and not node.domain and node.graph is not None:
            _pair(graph, node, parts)
    _sweep(graph)
    trained = Trained(ranges=parts.ranges, weights=parts.weights, notes=tuple(dict.fromkeys(parts.notes)))
    return graphs.save(ir_model, out), trained


@dataclass
class _Parts:
    ranges: dict[str, Affine] = field(default_factory=dict)
    weights: dict[str, Stored] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


# --- weights and biases -------------------------------------------------------------------------------------


def _constant_input(node: ir.Node) -> bool:
    return all(v is None or constant(v) is not None for v in node.inputs)


def _weight(graph: ir.Graph, node: ir.Node, parts: _Parts) -> None:
    """A constant behind DequantizeLinear becomes the floats that it stands for."""
    values, scale, zero = (constant(v) if v is not None else None for v in _padded(node.inputs, 3))
    assert values is not None
    assert scale is not None
    stored = _stored(node, values, scale, zero)
    real = stored.real if stored is not None else _dequantized(node, values, scale, zero)
    _put(graph, node, real, stored if values.dtype.name in _STORED else None, parts)
    wide = values.dtype.name not in _STORED and values.ndim > 1
    if stored is None or wide:
        kind = f"in {values.dtype.name.upper()}" if wide else "in blocks or with a zero point a channel"
        parts.notes.append(f"weights {kind} are rounded anew")


def _put(graph: ir.Graph, node: ir.Node, real: Any, stored: Stored | None, parts: _Parts) -> None:
    """An initializer in the place of ``node``'s result, and of what only moves it."""
    value = node.outputs[0]
    moved = [u.node for u in value.uses() if ops.is_op(u.node, "Transpose", "Identity")]
    if len(moved) < len(value.uses()):
        new = add_constant(graph, np.ascontiguousarray(real, np.float32), value.name or "weight")
        name, value.name = value.name, None
        del graph.initializers[new.name or ""]
        new.name = name
        graph.register_initializer(new)
        for use in tuple(value.uses()):
            if use.node not in moved:
                use.node.replace_input_with(use.idx, new)
        if stored is not None:
            parts.weights[new.name or ""] = stored
    for mover in moved:
        order = list(range(real.ndim))
        if mover.op_type == "Transpose":
            order = list(attribute(mover, "perm", order[::-1]))
        _put(graph, mover, real.transpose(order), None if stored is None else _moved(stored, order), parts)


def _moved(stored: Stored, order: Sequence[int]) -> Stored:
    axis = None if stored.axis is None else list(order).index(stored.axis)
    values = np.ascontiguousarray(stored.values.transpose(order))
    return Stored(values=values, scale=stored.scale, axis=axis, zero_point=stored.zero_point)


def _stored(node: ir.Node, values: Any, scale: Any, zero: Any) -> Stored | None:
    """Symmetric integers with one scale or one a channel; ``None`` for other forms."""
    offsets = np.zeros(1, np.int64) if zero is None else zero.astype(np.int64).reshape(-1)
    if attribute(node, "block_size", 0) or scale.ndim > 1 or (offsets != offsets[0]).any():
        return None
    axis = int(attribute(node, "axis", 1)) % max(1, values.ndim) if scale.ndim and values.ndim else None
    wide = values.astype(np.int64) - offsets[0]
    if values.dtype.name in _STORED and (wide.min(initial=0) < -128 or wide.max(initial=0) > 127):
        return None
    kind = np.int8 if values.dtype.name in _STORED else np.int32
    flat = np.asarray(scale, np.float32)
    return Stored(values=wide.astype(kind), scale=flat if axis is not None else flat.reshape(()), axis=axis)


def _dequantized(node: ir.Node, values: Any, scale: Any, zero: Any) -> Any:
    """The floats of any form of DequantizeLinear."""

    def spread(x: Any) -> Any:
        x = np.asarray(x)
        axis = int(attribute(node, "axis", 1)) % max(1, values.ndim)
        if x.ndim == 1 and values.ndim > 1:
            return x.reshape([-1 if i == axis else 1 for i in range(values.ndim)])
        block = attribute(node, "block_size", 0)
        return np.repeat(x, block, axis).take(range(values.shape[axis]), axis) if block else x

    offset = 0 if zero is None else spread(zero.astype(np.float32))
    return ((values.astype(np.float32) - offset) * spread(scale.astype(np.float32))).astype(np.float32)


# --- activations --------------------------------------------------------------------------------------------


def _pair(graph: ir.Graph, quantize: ir.Node, parts: _Parts) -> None:
    """A QuantizeLinear and the DequantizeLinear behind it leave; the range stays."""
    source = quantize.inputs[0]
    readers = [u.node for u in quantize.outputs[0].uses()]
    behind = all(r.op_type == "DequantizeLinear" and not r.domain for r in readers)
    if source is None or not behind or quantize.outputs[0].is_graph_output():
        raise UnsupportedError(
            f"{quantize.name or quantize.op_type} gives integers to other operators than DequantizeLinear",
            hint="export the model with Q/DQ pairs (QuantizeLinear followed by DequantizeLinear)",
        )
    array = constant(source)
    for reader in readers:
        if array is not None:
            _fake_quantized(graph, quantize, reader, parts)
            continue
        _keep_range(source, quantize, parts)
        if not bypass(reader, source):
            raise UnsupportedError(
                f"the graph gives its input {source.name!r} back quantized",
                hint="take QuantizeLinear and DequantizeLinear between an input and an output out",
            )


def _keep_range(source: ir.Value, quantize: ir.Node, parts: _Parts) -> None:
    scale, zero = (constant(v) if v is not None else None for v in _padded(quantize.inputs, 3)[1:])
    dtype = _dtype(quantize, zero)
    if scale is None or scale.size != 1 or dtype not in _OFFSET:
        raise UnsupportedError(
            f"tensor {source.name!r} is rounded to {dtype} with "
            f"{'a scale that is computed' if scale is None else f'{scale.size} scales'}",
            hint="activations are UINT8, INT8 or INT16 with one constant scale",
        )
    offset = 0 if zero is None else int(zero.reshape(-1)[0])
    found = Affine(scale=float(scale.reshape(-1)[0]), zero_point=offset, dtype=dtype)
    first = parts.ranges.setdefault(source.name or "", found)
    if first != found:
        parts.notes.append(f"tensor {source.name!r} was trained on two scales; the first is kept")


def _dtype(quantize: ir.Node, zero: Any) -> str:
    if zero is not None:
        return str(zero.dtype.name)
    told = attribute(quantize, "output_dtype", 0)
    return ir.DataType(told).name.lower() if told else "uint8"


def _fake_quantized(graph: ir.Graph, quantize: ir.Node, dequantize: ir.Node, parts: _Parts) -> None:
    """Float weights that are rounded in the graph: the integers are computed here."""
    array, scale, zero = (constant(v) if v is not None else None for v in _padded(quantize.inputs, 3))
    dtype = _dtype(quantize, zero)
    if array is None or scale is None or dtype not in _STORED:
        raise UnsupportedError(
            f"{quantize.name!r} rounds a constant to {dtype}",
            hint="weights are INT8 or INT4, with constant scales",
        )
    limits = {"int4": (-8, 7), "uint4": (0, 15)}.get(dtype) or (np.iinfo(dtype).min, np.iinfo(dtype).max)
    axis = int(attribute(quantize, "axis", 1)) % max(1, array.ndim)
    offset = np.zeros(scale.shape) if zero is None else zero.astype(np.float64)
    shape = [-1 if i == axis else 1 for i in range(array.ndim)] if scale.ndim else []
    steps = np.rint(array / scale.reshape(shape)) + offset.reshape(shape if offset.ndim else [])
    values = np.clip(steps, *limits).astype(np.uint8 if dtype.startswith("u") else np.int8)
    stored = _stored(dequantize, values, scale, zero)
    real = stored.real if stored is not None else _dequantized(dequantize, values, scale, zero)
    _put(graph, dequantize, real, stored, parts)


# --- the graph ----------------------------------------------------------------------------------------------


def _refuse_integer_operators(graph: ir.Graph) -> None:
    found = sorted({n.op_type for n in graph if ops.has(n, Trait.INTEGER) or n.op_type.startswith("QLinear")})
    if found:
        raise UnsupportedError(
            f"the graph computes on integers itself ({', '.join(found)}): it is made for one runtime",
            hint="give the float model, or one with QuantizeLinear and DequantizeLinear (Q/DQ)",
        )


def _sweep(graph: ir.Graph) -> None:
    """Remove what nothing reads any more."""
    for node in reversed(tuple(graph)):
        if not any(o.uses() or o.is_graph_output() for o in node.outputs):
            graph.remove(node, safe=True)
    for name, value in tuple(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
            del graph.initializers[name]


def _padded(values: Sequence[ir.Value | None], length: int) -> list[ir.Value | None]:
    return [*values, *[None] * (length - len(values))]


# --- on a target --------------------------------------------------------------------------------------------


def on_grid(kept: Affine, dtype: str, *, symmetric: bool) -> Affine | None:
    """A trained range in a target's type; ``None`` where the target cannot have it.

    UINT8 and INT8 give the same values. INT16 takes the range of 8 bits and rounds finer.
    """
    if dtype == "int16":
        return kept if kept.dtype == dtype else affine(kept.low, kept.high, dtype, symmetric=symmetric)
    if kept.dtype == "int16":
        return None
    moved = kept.zero_point - _OFFSET[kept.dtype] + _OFFSET[dtype]
    if symmetric and moved != 0:
        return None
    return Affine(scale=kept.scale, zero_point=moved, dtype=dtype)
