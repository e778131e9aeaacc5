"""``.onnx``: nodes, constants and what quantizes them, by ONNX's own shape inference."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes import common

from edgekit.artifact.inspect.inspection import (
    Inspection,
    Scales,
    StoredWeight,
    Tally,
    most_common,
    open_axes,
    times_read,
    uncounted,
)
from edgekit.core.foreign import translated
from edgekit.errors import SourceError
from edgekit.graph import io, macs, ops
from edgekit.graph.ops import Trait
from edgekit.types import TensorSpec

_CARRIERS = ops.named(Trait.VIEW | Trait.PERMUTES | Trait.PASSES) | {"Cast"}
"""What may stand between a constant and the operator that computes with it."""

_SCALES: Mapping[str, Mapping[int, int]] = {
    "DequantizeLinear": {0: 1},
    "QLinearConv": {3: 4},
    "QLinearMatMul": {0: 1, 3: 4},
    "QGemm": {3: 4},
    "QAttention": {1: 4},
    "DynamicQuantizeMatMul": {1: 2},
    "MatMulIntegerToFloat": {1: 3},
    "ConvInteger": {1: 3},  # the zero point: scales come behind the operator, of the same shape
    "MatMulInteger": {1: 3},
    "DynamicQuantizeLSTM": {1: 8, 2: 10},
}
"""By operator, the inputs that are quantized weights and the input that has the scales (or what is of their shape)."""

_OPTIONS: Mapping[str, frozenset[int]] = {
    "Shape": frozenset({0}),
    "QuantizeLinear": frozenset({1, 2}),
    "DequantizeLinear": frozenset({1, 2}),
    "DynamicQuantizeLinear": frozenset(),
    "QLinearConv": frozenset({1, 2, 4, 5, 6, 7}),
    "QLinearMatMul": frozenset({1, 2, 4, 5, 6, 7}),
    "QLinearAdd": frozenset({1, 2, 4, 5, 6, 7}),
    "QLinearMul": frozenset({1, 2, 4, 5, 6, 7}),
    "QGemm": frozenset({1, 2, 4, 5, 7, 8}),
    "QAttention": frozenset({3, 4, 6, 7}),
    "ConvInteger": frozenset({2, 3}),
    "MatMulInteger": frozenset({2, 3}),
    "MatMulIntegerToFloat": frozenset({2, 3, 4, 5}),
    "DynamicQuantizeMatMul": frozenset({2, 3}),
    "DynamicQuantizeLSTM": frozenset({8, 9, 10, 11}),
    "MatMulNBits": frozenset({2, 3, 4}),
    "GatherBlockQuantized": frozenset({2, 3}),
    "BatchNormalization": frozenset({3, 4}),  # mean and variance: statistics, no parameters
    "Resize": frozenset({1, 2, 3}),
    "Upsample": frozenset({1}),
    "Clip": frozenset({1, 2}),
    "Pad": frozenset({1, 2, 3}),
    "OneHot": frozenset({1, 2}),
    "Dropout": frozenset({1, 2}),
    "Range": frozenset({0, 1, 2}),
    "TopK": frozenset({1}),
    "NonMaxSuppression": frozenset({2, 3, 4}),
}
"""By operator, inputs that say how to compute: scales, zero points, limits."""

_PACKED = {"MatMulNBits": 1, "GatherBlockQuantized": 0}
"""Operators whose weight is packed into bytes, and which input it is."""

_WIDE = frozenset(
    {ir.DataType.INT64, ir.DataType.UINT64, ir.DataType.INT32, ir.DataType.UINT32, ir.DataType.BOOL}
    | {ir.DataType.STRING}
)
"""Types of shapes, indices and masks; an INT32 that is dequantized is a bias."""


def read(path: Path) -> Inspection:
    """Raises :class:`SourceError` for a file that is damaged, :class:`UntrustedSourceError` for data outside it."""
    model = io.load(path)
    files = [path, *io.external_files(path)]
    # Nodes were not checked: their attributes and shapes need not fit one another.
    with translated(f"{path} is not a valid ONNX model", hint="export it again"):
        counted = macs.count_macs(path)
        model = common.ShapeInferencePass(check_type=False, strict_mode=False)(model).model
        tally = _tally(model)
        constants = model.graph.initializers
        inputs = tuple(_spec(v) for v in model.graph.inputs if v.name not in constants)
        outputs = tuple(_spec(v) for v in model.graph.outputs)
    nodes = [node.macs for node in counted]
    custom = sorted({f"{n.domain}.{n.op_type}" for n in _nodes(model) if _is_custom(n, model)})
    return Inspection(
        path=path,
        format="ONNX",
        size=sum(file.stat().st_size for file in files),
        inputs=inputs,
        outputs=outputs,
        operators=most_common(n.op_type for n in _nodes(model)),
        weights=dict(tally.weights.most_common()),
        macs=sum(count or 0 for count in nodes),
        facts=_facts(model, len(files) - 1),
        parameters=tally.parameters,
        layers=tuple(tally.layers),
        notes=(*open_axes(inputs), *uncounted(nodes)),
        custom=tuple(custom),
    )


UNKNOWN = "unknown rank"
"""What stands for the shape of a tensor that the file does not tell, nor shape inference."""


def _spec(value: ir.Value) -> TensorSpec:
    """An input or output, of whatever kind: to look at a file is not to take it as a source."""
    try:
        found = io.spec(value)
        return replace(found, dtype="string") if found.dtype == "object" else found  # numpy has no other name
    except SourceError:
        kind = value.type
        dtype = "unknown" if kind is None else type(kind).__name__.removesuffix("Type").lower()
        if isinstance(kind, ir.TensorType):
            dtype = _type(kind.dtype)
        shape = (UNKNOWN,) if value.shape is None else tuple(map(str, value.shape))
        return TensorSpec(name=value.name or "?", dtype=dtype, shape=shape)


def _facts(model: ir.Model, data_files: int) -> dict[str, int | str]:
    facts: dict[str, int | str] = {
        "opset": model.opset_imports.get("", model.opset_imports.get("ai.onnx", 0)),
        "ir_version": model.ir_version,
        "producer": " ".join(filter(None, (model.producer_name, model.producer_version))),
    }
    return facts | ({"data_files": data_files} if data_files else {})


def _nodes(model: ir.Model) -> Iterator[ir.Node]:
    yield from ir.traversal.RecursiveGraphIterator(model.graph)
    for function in model.functions.values():
        yield from ir.traversal.RecursiveGraphIterator(function)


KNOWN_DOMAINS = frozenset(
    {*ops.ONNX, "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc", "pkg.onnxscript.torch_lib"}
)


def _is_custom(node: ir.Node, model: ir.Model) -> bool:
    return node.domain not in KNOWN_DOMAINS and node.op_identifier() not in model.functions


def _tally(model: ir.Model) -> Tally:
    """Every constant of the graph and of those within it, once."""
    found = Tally()
    for value, tensor in _constants(model):
        found.weights[_type(tensor.dtype)] += tensor.nbytes
        weight = _weight(value, tensor)
        if weight is not None:
            found.add(weight)
    return found


def _constants(model: ir.Model) -> Iterator[tuple[ir.Value, ir.TensorProtocol]]:
    for scope in model.graphs():
        for value in scope.initializers.values():
            if value.const_value is not None:
                yield value, value.const_value
    for node in _nodes(model):
        attribute = node.attributes.get("value") if ops.is_op(node, "Constant") else None
        if attribute is not None and attribute.type == ir.AttributeType.TENSOR:
            yield node.outputs[0], attribute.as_tensor()


def _weight(value: ir.Value, tensor: ir.TensorProtocol) -> StoredWeight | None:
    """What is known of a constant that is a parameter; ``None`` for any other."""
    shape = tuple(d if isinstance(d, int) else 0 for d in tensor.shape)
    readers = _readers(value)
    if not readers:
        return None
    node, slot, scales, block = readers[0]
    name, input_type = value.name or "", _input_type(node)
    if (packed := _PACKED.get(node.op_type)) == slot and packed is not None:
        return _packed(name, node, tensor, input_type)
    if not shape or (tensor.dtype in _WIDE and scales is None) or tensor.dtype == ir.DataType.STRING:
        return None
    if (
        tensor.dtype in (ir.DataType.INT8, ir.DataType.UINT8)
        and scales is None
        and not _is_integer(node, slot)
    ):
        return None
    return StoredWeight(
        name=name,
        layer=node.name or "",
        op=node.op_type,
        dtype=_type(tensor.dtype),
        shape=shape,
        count=times_read(shape, len(readers)),
        size=tensor.nbytes,
        scales=scales,
        block=block,
        input=input_type,
    )


def _is_integer(node: ir.Node, slot: int) -> bool:
    return slot in _SCALES.get(node.op_type, {})


def _readers(value: ir.Value) -> list[tuple[ir.Node, int, Scales | None, int]]:
    """The operators that compute with a constant, which input it is there, and the scales on the way; none where
    nothing reads it, or only as an option."""
    found: list[tuple[ir.Node, int, Scales | None, int]] = []
    pending: list[tuple[ir.Value, Scales | None, int]] = [(value, None, 0)]
    seen = {id(value)}
    while pending:
        current, scales, block = pending.pop()
        for node, slot in current.uses():
            if slot in _OPTIONS.get(node.op_type, ()) or (slot > 0 and node.op_type in _CARRIERS):
                continue
            if node.op_type in _CARRIERS or node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                after = _granularity(node) if node.op_type == "DequantizeLinear" else (scales, block)
                if node.outputs and id(node.outputs[0]) not in seen:
                    seen.add(id(node.outputs[0]))
                    pending.append((node.outputs[0], *after))
            elif not _rescales(node, slot):
                own = _SCALES.get(node.op_type, {}).get(slot)
                found.append((node, slot, scales if own is None else _of_shape(_shape(node, own)), block))
    return found


_INTEGER_PRODUCTS = ("MatMulInteger", "ConvInteger")


def _rescales(node: ir.Node, slot: int) -> bool:
    """Whether an input of a Mul is the scale of an integer product, or part of it."""
    if not ops.is_op(node, "Mul") or len(node.inputs) != 2:
        return False
    other = node.inputs[1 - slot]
    producer = None if other is None else other.producer()
    if (
        producer is not None and producer.op_type == "DynamicQuantizeLinear"
    ):  # two scales: their product comes next
        return True
    if (
        producer is not None
        and producer.op_type == "Cast"
        and producer.inputs
        and producer.inputs[0] is not None
    ):
        producer = producer.inputs[0].producer()
    return producer is not None and producer.op_type in _INTEGER_PRODUCTS


def _granularity(node: ir.Node) -> tuple[Scales, int]:
    """What shares a scale of a DequantizeLinear, and how many values do where they are blocks."""
    block = node.attributes.get_int("block_size", 0)
    if block:
        return Scales.BLOCK, block
    return _of_shape(_shape(node, 1)) or Scales.TENSOR, 0


def _of_shape(shape: tuple[int, ...] | None) -> Scales | None:
    if shape is None:
        return Scales.TENSOR
    return Scales.CHANNEL if math.prod(shape) > 1 else Scales.TENSOR


def _shape(node: ir.Node, slot: int) -> tuple[int, ...] | None:
    value = node.inputs[slot] if slot < len(node.inputs) else None
    if value is None or value.shape is None:
        return None
    return tuple(d if isinstance(d, int) else 1 for d in value.shape)


def _packed(name: str, node: ir.Node, tensor: ir.TensorProtocol, input_type: str) -> StoredWeight:
    """A weight in blocks of a few bits; its shape is that of the matrix, not of the bytes."""
    bits, block = node.attributes.get_int("bits", 4), node.attributes.get_int("block_size", 0)
    rows, columns = node.attributes.get_int("N", 0), node.attributes.get_int("K", 0)
    shape = (
        (rows, columns) if rows and columns else tuple(d if isinstance(d, int) else 0 for d in tensor.shape)
    )
    if not rows and tensor.dtype == ir.DataType.UINT8 and bits < 8:
        shape = (*shape[:-1], shape[-1] * 8 // bits)
    return StoredWeight(
        name=name,
        layer=node.name or "",
        op=node.op_type,
        dtype=f"uint{bits}",
        shape=shape,
        count=math.prod(shape),
        size=tensor.nbytes,
        scales=Scales.BLOCK,
        block=block,
        input=input_type,
    )


def _input_type(node: ir.Node) -> str:
    """The type of a layer's first input: the integers' where they were just dequantized."""
    value = node.inputs[0] if node.inputs else None
    producer = None if value is None else value.producer()
    if producer is not None and producer.op_type == "DequantizeLinear":
        value = producer.inputs[0]
        quantizer = None if value is None else value.producer()
        if value is not None and value.dtype is None and quantizer is not None and len(quantizer.inputs) > 2:
            value = quantizer.inputs[2]
    return _type(value.dtype) if value is not None and value.dtype is not None else ""


def _type(dtype: ir.DataType) -> str:
    return {"FLOAT": "float32", "DOUBLE": "float64"}.get(dtype.name, dtype.name.lower())
