"""Tables read by Gather, as INT8 with a scale a row.

A language model's largest weight is often its embedding table. Rows are looked up, never multiplied, so a
scale a row costs nothing and keeps what one scale for the whole table would lose.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgekit.quantize.blocks import attribute, constant
from edgekit.quantize.params import quantize_weight

_SMALLEST = 1 << 16  # elements: below this a table saves less than the nodes that read it cost


def quantize_embeddings(graph: ir.Graph) -> dict[str, str]:
    """Rewrite Gather along axis 0 of large constant float32 tables, in place; node names by table name."""
    done: dict[str, str] = {}
    for node in tuple(graph):
        table = node.inputs[0] if node.op_type == "Gather" and not node.domain else None
        if table is None or attribute(node, "axis", 0) != 0:
            continue
        array = constant(table)
        if array is None or array.dtype != np.float32 or array.ndim != 2 or array.size < _SMALLEST:
            continue
        if any(u.node.op_type != "Gather" or u.idx != 0 for u in table.uses()):
            continue  # tied to a projection: it is needed in full anyway
        _rewrite(graph, node, table)
        done[node.name or ""] = table.name or ""
    for name in set(done.values()):
        if not graph.initializers[name].uses():
            del graph.initializers[name]
    return done


def _rewrite(graph: ir.Graph, node: ir.Node, table: ir.Value) -> None:
    array = constant(table)
    assert array is not None
    stored = quantize_weight(array, 0, 8)
    rows = _initializer(graph, f"{table.name}_quantized", ir.tensor(stored.values))
    scales = _initializer(graph, f"{table.name}_scale", ir.tensor(stored.scale.reshape(-1, 1)))
    output = node.outputs[0]
    name = output.name
    row = ir.Node("", "Gather", [rows, node.inputs[1]], num_outputs=1, name=f"{node.name}_rows")
    scale = ir.Node("", "Gather", [scales, node.inputs[1]], num_outputs=1, name=f"{node.name}_scales")
    to_float = ir.AttrInt64("to", ir.DataType.FLOAT.value)
    cast = ir.Node("", "Cast", [row.outputs[0]], [to_float], num_outputs=1, name=f"{node.name}_cast")
    product = ir.Node("", "Mul", [cast.outputs[0], scale.outputs[0]], num_outputs=1, name=node.name)
    for made in (row, scale, cast, product):
        made.metadata_props.update(node.metadata_props)
        made.outputs[0].name = f"{made.name}_output"
    new = product.outputs[0]
    new.type, new.shape = output.type, output.shape
    graph.insert_before(node, (row, scale, cast, product))
    for use in tuple(output.uses()):
        use.node.replace_input_with(use.idx, new)
    for i, value in enumerate(graph.outputs):
        if value is output:
            graph.outputs[i] = new
    graph.remove(node, safe=True)
    output.name, new.name = None, name


def _initializer(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    if name in graph.initializers:
        return graph.initializers[name]
    tensor.name = name
    value = ir.Value(
        name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.numpy().shape)
    )
    graph.register_initializer(value)
    return value
