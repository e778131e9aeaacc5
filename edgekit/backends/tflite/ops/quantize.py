"""QuantizeLinear and DequantizeLinear: where a graph says what is stored in integers."""

from __future__ import annotations

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from onnx import helper

from edgekit.backends.tflite.boundary import is_spatial
from edgekit.backends.tflite.builder import Builder
from edgekit.backends.tflite.ir import FLOAT32, INT4, INT8, INT16, UINT8, Tensor, Type
from edgekit.backends.tflite.ops import integer
from edgekit.backends.tflite.registry import Refusal, Rule, lookup, op
from edgekit.backends.tflite.view import View, channels_last


@op("QuantizeLinear", since=10, rule=Rule.ANY)
def quantize_linear(
    g: Builder,
    x: View,
    scale: View,
    zero: View | None = None,
    *,
    axis: int = 1,
    saturate: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
    precision: int = 0,
) -> View:
    """Nothing if the producer already delivers these parameters, else QUANTIZE."""
    del saturate, precision
    # What TFLite has no type for is computed: round, shift, clamp.
    if block_size or _is_arithmetic(g):
        dtype = zero.dtype if zero is not None else np.dtype(np.uint8)
        if output_dtype:
            dtype = np.dtype(helper.tensor_dtype_to_np_dtype(output_dtype))
        scale = _repeated(g, x, axis, block_size, scale)
        zero = None if zero is None else _repeated(g, x, axis, block_size, zero)
        return integer.quantized(g, g.dequantize(x), scale, zero, dtype, axis)
    kind = _kind(g)
    assert kind.quant is not None
    if kind.quant.per_channel:
        if x.tensor.data is None:
            raise Refusal("an activation quantized per channel")
        stored = kind.quant.quantize(np.asarray(x.const), kind.dtype)
        return View.of(Tensor(stored.shape, kind.dtype, x.tensor.name, stored, kind.quant))
    if x.dtype == kind.dtype and x.quant is not None and _prescribed(g):
        # Prescribed parameters cover the function's whole range: converting would only lose precision.
        return x
    if _is_thin_image(g, x):
        last = channels_last(x.rank)
        x = View(g.layout(x, last), last)
    return x.with_tensor(g.quantize(x.tensor, kind))


_THIN = 4
"""Channels up to which XNNPACK moves floats quicker than bytes: its tiles are 4 wide for floats and 16 for bytes.
Measured for [1, 3, 224, 224]: 0.042 ms and 0.070 ms."""


def _is_thin_image(g: Builder, x: View) -> bool:
    """Whether ``x`` is an image in the order of PyTorch that convolutions will want channels last."""
    value = g.node.inputs[0] if g.node is not None else None
    return (
        value is not None
        and value.is_graph_input()
        and x.is_plain
        and x.dtype == FLOAT32
        and x.rank in (4, 5)
        and 1 < x.shape[1] <= _THIN
        and is_spatial(value)
    )


def _prescribed(g: Builder) -> bool:
    """Whether the value comes from an operator whose output parameters TFLite prescribes."""
    assert g.node is not None
    source = g.node.inputs[0]
    producer = source.producer() if source is not None else None
    row = lookup(producer.domain, producer.op_type, g.opset) if producer is not None else None
    return row is not None and row.rule is Rule.FIXED


@op("DequantizeLinear", since=10, rule=Rule.ANY)
def dequantize_linear(
    g: Builder,
    x: View,
    scale: View,
    zero: View | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
) -> View:
    """Nothing: the value stays the quantized tensor until somebody needs it in float."""
    del output_dtype
    t = x.tensor
    if block_size and t.data is not None and scale.tensor.data is not None:
        return _stored_blocks(g, x)
    if block_size or (x.quant is None and _is_arithmetic(g)):
        scale = _repeated(g, x, axis, block_size, scale)
        zero = None if zero is None else _repeated(g, x, axis, block_size, zero)
        return integer.dequantized(g, x, scale, zero, axis)
    kind = _kind(g)
    if t.quant is not None:
        if not _reads_back(g, kind):
            raise Refusal("read with other parameters than it was quantized with")
        return x
    if t.data is not None:
        assert x.is_plain
        data = (t.data.astype(np.int16) - 128).astype(np.int8) if t.dtype == UINT8 else t.data
        return View.of(Tensor(t.shape, data.dtype, t.name, data, kind.quant))
    return _stored_input(g, x, kind)


def _reads_back(g: Builder, kind: Type) -> bool:
    """Whether this DequantizeLinear has the parameters of the QuantizeLinear before it."""
    assert g.node is not None
    source = g.node.inputs[0]
    producer = source.producer() if source is not None else None
    if producer is None or producer.op_type != "QuantizeLinear":
        return True
    written = g.lowering.lookahead.type_of(producer)
    return written is not None and written.quant is not None and written.quant.same_as(kind.quant)


def _is_arithmetic(g: Builder) -> bool:
    """Whether TFLite has no quantized tensor for it: parameters computed at run time, uint16, a shifted int16."""
    assert g.node is not None
    kind = g.lowering.lookahead.type_of(g.node)
    if kind is None or kind.quant is None or kind.dtype == np.uint16:
        return True
    return kind.dtype == INT16 and bool(np.any(kind.quant.zero_point))


def _stored_blocks(g: Builder, x: View) -> View:
    """A constant with a scale a block: an INT4 matrix stays as it is for FULLY_CONNECTED, others become float."""
    kind = _kind(g)
    assert kind.quant is not None
    assert x.tensor.data is not None
    if x.dtype == INT4 and x.rank == 2 and not np.any(kind.quant.zero_point):
        return View.of(Tensor(x.shape, x.dtype, x.tensor.name, x.tensor.data, kind.quant))
    return View.of(Tensor(x.shape, FLOAT32, x.tensor.name, kind.quant.dequantize(x.tensor.data)))


def _repeated(g: Builder, x: View, axis: int, block_size: int, parameter: View) -> View:
    """A parameter that comes once a block, repeated to the shape of the data."""
    if not block_size:
        return parameter
    stored = g.known(parameter, "blockwise quantization with parameters computed at run time")
    repeated = np.repeat(stored, block_size, axis % x.rank)
    data = repeated[tuple(slice(n) for n in x.shape)]
    return View.of(Tensor(data.shape, data.dtype, "", data))


def _kind(g: Builder) -> Type:
    assert g.node is not None
    kind = g.lowering.lookahead.type_of(g.node)
    if kind is None:
        raise Refusal("scale or zero point computed at run time")
    return kind


def _stored_input(g: Builder, x: View, kind: Type) -> View:
    """Integers that were not made by QuantizeLinear: an integer graph input, or integer arithmetic."""
    t = x.tensor
    assert kind.quant is not None
    if t in g.graph.inputs and t.dtype in (INT8, INT16) and not kind.quant.per_channel:
        t.quant = kind.quant
        return x
    shape = [1] * t.rank
    if kind.quant.per_channel:
        shape[x.position(kind.quant.axis)] = -1
    offset = 128 if t.dtype == UINT8 else 0
    zero = g.constant((kind.quant.zero_point + offset).astype(np.float32).reshape(shape))
    scale = g.constant(kind.quant.scale.reshape(shape))
    shifted = g.emit("SUB", [g.cast(t, FLOAT32), zero], t.shape, FLOAT32, schema.SubOptionsT())
    return x.with_tensor(g.binary("MUL", shifted, scale))
