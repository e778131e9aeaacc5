"""A graph without bfloat16, for runtimes that do not compute in it: the same numbers, in float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgekit.graph import io

_FROM, _TO = ir.DataType.BFLOAT16, ir.DataType.FLOAT


def without_bfloat16(path: Path, out: Path) -> Path:
    """Write the graph at ``path`` with float32 in place of bfloat16 to ``out``; ``path`` where it has none.

    Constants keep the numbers that bfloat16 gave them; what is computed is not rounded to it.
    """
    model = io.load(path)
    values = list(_values(model))
    if not any(v.dtype == _FROM for v in values):
        return path
    for value in values:
        if value.dtype != _FROM:
            continue
        if value.const_value is not None:
            value.const_value = _wide(value.const_value)
        value.dtype = _TO
    for node in model.graph.all_nodes():
        for name, attribute in list(node.attributes.items()):
            if attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype == _FROM:
                node.attributes[name] = ir.AttrTensor(name, _wide(attribute.as_tensor()))
            elif name in ("to", "dtype", "output_dtype") and attribute.value == int(_FROM):
                node.attributes[name] = ir.AttrInt64(name, int(_TO))
    return io.save(model, out).path


def _values(model: ir.Model) -> list[ir.Value]:
    graphs = [model.graph, *(g for g in model.graph.subgraphs())]
    found = [v for graph in graphs for v in (*graph.inputs, *graph.outputs, *graph.initializers.values())]
    return list(dict.fromkeys([*found, *(v for n in model.graph.all_nodes() for v in n.outputs)]))


def _wide(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    return ir.Tensor(tensor.numpy().astype(np.float32), name=tensor.name)
