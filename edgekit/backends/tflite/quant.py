"""Reading quantization out of a Q/DQ graph.

A value between QuantizeLinear and DequantizeLinear *is* its quantized tensor: DequantizeLinear emits
nothing, QuantizeLinear emits nothing where the producer was lowered to integer arithmetic and so already
has these parameters. Which parameters a producer has to deliver is found by looking ahead
(:func:`wanted_type`).

TFLite's signed scheme is used throughout: uint8 values are shifted to int8, scale unchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from edgekit.backends.tflite.ir import INT8, UINT8, Array, DType, Quant, Type
from edgekit.backends.tflite.registry import Rule, lookup
from edgekit.graph import ops
from edgekit.graph.ops import Trait


@dataclass(slots=True)
class Lookahead:
    """Which quantized type each value is to have, from the QuantizeLinear nodes behind it."""

    constant: Callable[[ir.Value], Array | None]
    opset: int
    outputs: frozenset[ir.Value]
    _known: dict[ir.Value, Type | None] = field(default_factory=dict)

    def wanted_type(self, value: ir.Value) -> Type | None:
        """The type that all consumers of ``value`` quantize it to, or None.

        Looks through what keeps parameters (Reshape, Transpose …) and through activations that the
        producer can fuse.
        """
        chain = []
        while value not in self._known:
            chain.append(value)
            following = self._step(value)
            if not isinstance(following, ir.Value):
                self._known[value] = following
                break
            value = following
        result = self._known[value]
        for v in chain:
            self._known[v] = result
        return result

    def _step(self, value: ir.Value) -> Type | ir.Value | None:
        """The type, or the one value further on that decides, or None."""
        if value in self.outputs:
            return None
        consumers = [use.node for use in value.uses()]
        if not consumers:
            return None
        # Readers that quantize alike ask for one tensor; a float reader besides needs the float.
        if all(n.op_type == "QuantizeLinear" for n in consumers):
            types = [self.type_of(n) for n in consumers]
            first = types[0]
            same = all(first is not None and t is not None and _equal(first, t) for t in types)
            return first if same else None
        if len(consumers) != 1 or consumers[0].inputs[0] is not value:
            return None
        node = consumers[0]
        row = lookup(node.domain, node.op_type, self.opset)
        keeps = row is not None and row.rule is Rule.SAME
        return node.outputs[0] if keeps or ops.has(node, Trait.CLIPS) else None

    def type_of(self, node: ir.Node) -> Type | None:
        """The tensor type that a QuantizeLinear or DequantizeLinear node speaks of."""
        inputs = [*node.inputs, None][:3]
        scale = self.constant(inputs[1]) if inputs[1] is not None else None
        if scale is None:
            return None
        zero = self.constant(inputs[2]) if inputs[2] is not None else None
        # A zero point computed at run time: TFLite's parameters are part of the file.
        if inputs[2] is not None and zero is None:
            return None
        dtype = zero.dtype if zero is not None else self._stored_dtype(node)
        # ONNX's default of both operators.
        axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 1
        rank = len(node.inputs[0].shape) if node.inputs[0] and node.inputs[0].shape is not None else None
        axis = axis % rank if rank else axis
        if "block_size" in node.attributes and node.attributes["block_size"].as_int():
            return _blocked(scale, zero, dtype, axis, node.attributes["block_size"].as_int())
        return make_type(scale, zero, dtype, axis)

    def _stored_dtype(self, node: ir.Node) -> DType:
        """The integer type without a zero point: what QuantizeLinear writes, what DequantizeLinear reads."""
        if node.op_type == "QuantizeLinear":
            return _output_dtype(node)
        source = node.inputs[0]
        assert source is not None
        producer = source.producer()
        if producer is not None and producer.op_type == "QuantizeLinear":
            zero = producer.inputs[2] if len(producer.inputs) > 2 else None
            stored_zero = self.constant(zero) if zero is not None else None
            return stored_zero.dtype if stored_zero is not None else _output_dtype(producer)
        if source.dtype is not None:
            return np.dtype(source.dtype.numpy())
        data = self.constant(source)
        return UINT8 if data is None else data.dtype


def make_type(scale: Array, zero: Array | None, dtype: DType, axis: int) -> Type:
    """A TFLite type from ONNX's scale and zero point; uint8 becomes int8."""
    zeros = np.zeros(scale.size, np.int64) if zero is None else zero.astype(np.int64).reshape(-1)
    # TFLite's specification has int8 activations, no uint8: 128 less is the same number.
    if dtype == UINT8:
        zeros, dtype = zeros - 128, INT8
    return Type(dtype, Quant(scale.astype(np.float32).reshape(-1), zeros, axis if scale.size > 1 else 0))


def _blocked(scale: Array, zero: Array | None, dtype: DType, axis: int, block: int) -> Type:
    """A type with a scale for every ``block`` elements along ``axis``."""
    zeros = np.zeros(scale.shape, np.int64) if zero is None else zero.astype(np.int64)
    return Type(dtype, Quant(scale.astype(np.float32), zeros, axis, block))


def _output_dtype(node: ir.Node) -> DType:
    if "output_dtype" in node.attributes and node.attributes["output_dtype"].as_int():
        return np.dtype(ir.DataType(node.attributes["output_dtype"].as_int()).numpy())
    return UINT8


def _equal(a: Type, b: Type) -> bool:
    return a.dtype == b.dtype and a.quant is not None and a.quant.same_as(b.quant)
