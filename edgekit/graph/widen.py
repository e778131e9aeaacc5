"""Graphs in float32 that were in another float: for runtimes that do not compute in that, and for quantization."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgekit.graph import io
from edgekit.types import OnnxModel

_FLOAT = ir.DataType.FLOAT
_NAMES = {
    ir.DataType.FLOAT16: "float16",
    ir.DataType.BFLOAT16: "bfloat16",
    ir.DataType.DOUBLE: "float64",
}
_OTHERS = frozenset(_NAMES)
_WEIGHTED = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm", "LSTM", "GRU", "RNN"})


def without_bfloat16(path: Path, out: Path) -> Path:
    """Write the graph at ``path`` with float32 in place of bfloat16 to ``out``; ``path`` where it has none.

    Constants keep the numbers that bfloat16 gave them; what is computed is not rounded to it.
    """
    model = io.load(path)
    if not any(v.dtype == ir.DataType.BFLOAT16 for v in _values(model)):
        return path
    _widen(model, {ir.DataType.BFLOAT16})
    return io.save(model, out).path


def in_float32(model: OnnxModel, out: Path, *, keep: str = "") -> OnnxModel | None:
    """Write ``model`` to ``out`` with float32 in place of every other float, but for inputs and outputs, which keep
    their types; ``None`` where its products and convolutions are in float32 (or in ``keep``) as it is.

    What float16 does to a value on its way is not in it: quantization does more.
    """
    read, others = io.load(model.path), frozenset(t for t in _OTHERS if _NAMES[t] != keep)
    products = [n for n in read.graph.all_nodes() if n.op_type in _WEIGHTED and n.domain == ""]
    if not any(o.dtype in others for n in products for o in n.outputs):
        return None
    _cast_inputs(read.graph, others)
    kinds = {v: v.dtype for v in read.graph.inputs if v.dtype in others}
    results = [(v, v.dtype) for v in read.graph.outputs]
    boundary = {n for v in kinds for n, _ in v.uses()}
    _widen(read, others, but=boundary)
    for value, dtype in kinds.items():
        value.dtype = dtype
    _cast_outputs(read.graph, [dtype if dtype in others else None for _, dtype in results])
    return io.save(read, out)


def _cast_inputs(graph: ir.Graph, others: Collection[ir.DataType]) -> None:
    for value in graph.inputs:
        if value.dtype not in others:
            continue
        cast = ir.node("Cast", [value], {"to": int(_FLOAT)}, name=f"{value.name}/float32")
        made = cast.outputs[0]
        made.name, made.dtype, made.shape = f"{value.name}/float32:0", _FLOAT, value.shape
        ir.convenience.replace_all_uses_with(value, made)
        cast.replace_input_with(0, value)
        graph.insert_before(graph[0], cast)


def _cast_outputs(graph: ir.Graph, wanted: Collection[ir.DataType | None]) -> None:
    for index, (value, dtype) in enumerate(zip(tuple(graph.outputs), wanted, strict=True)):
        if dtype is None or value.dtype == dtype:
            continue
        name = value.name
        value.name = f"{name}/float32"
        cast = ir.node("Cast", [value], {"to": int(dtype)}, name=f"{name}/back")
        made = cast.outputs[0]
        made.name, made.dtype, made.shape = name, dtype, value.shape
        graph.append(cast)
        graph.outputs[index] = made


def _widen(model: ir.Model, kinds: Collection[ir.DataType], *, but: Collection[ir.Node] = ()) -> None:
    """``but``: nodes whose attributes stay."""
    for value in _values(model):
        if value.dtype not in kinds:
            continue
        if value.const_value is not None:
            value.const_value = _wide(value.const_value)
        value.dtype = _FLOAT
    for node in model.graph.all_nodes():
        if node in but:
            continue
        for name, attribute in list(node.attributes.items()):
            if attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype in kinds:
                node.attributes[name] = ir.AttrTensor(name, _wide(attribute.as_tensor()))
            elif name in ("to", "dtype", "output_dtype") and attribute.value in set(map(int, kinds)):
                node.attributes[name] = ir.AttrInt64(name, int(_FLOAT))


def _values(model: ir.Model) -> list[ir.Value]:
    graphs = [model.graph, *(g for g in model.graph.subgraphs())]
    found = [v for graph in graphs for v in (*graph.inputs, *graph.outputs, *graph.initializers.values())]
    return list(dict.fromkeys([*found, *(v for n in model.graph.all_nodes() for v in n.outputs)]))


def _wide(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    return ir.Tensor(tensor.numpy().astype(np.float32), name=tensor.name)
