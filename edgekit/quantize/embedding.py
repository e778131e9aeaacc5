"""Tables read by Gather, as INT8 with a scale a row.

A language model's largest weight is often its embedding table. Rows are looked up, never multiplied, so a
scale a row costs nothing and keeps what one scale for the whole table would lose.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgekit.quantize.blocks import attribute, constant
from edgekit.quantize.edit import Editor
from edgekit.quantize.params import quantize_weight

SMALLEST = 1 << 16
"""Elements: below this a table saves less time than the nodes that read it cost."""
SMALLEST_FOR_SIZE = 1 << 12
"""Elements: below this a table saves hardly more bytes than the nodes that read it take."""
_FEW = 0.1
_NARROW = 4  # columns: a scale a row takes as many bytes as narrower rows


def quantize_embeddings(graph: ir.Graph, smallest: int = SMALLEST) -> dict[str, str]:
    """Rewrite Gather along axis 0 of constant float32 tables of at least ``smallest`` elements, in place; node names by
    table name."""
    done: dict[str, str] = {}
    editor = Editor(graph)  # names are those of all graphs inside as well
    stored: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}
    for node in tuple(graph):
        table = node.inputs[0] if node.op_type == "Gather" and not node.domain else None
        if table is None or attribute(node, "axis", 0) != 0:
            continue
        array = constant(table)
        if array is None or array.dtype != np.float32 or array.ndim != 2 or array.size < smallest:
            continue
        if array.shape[1] <= _NARROW:
            continue
        if any(u.node.op_type != "Gather" or u.idx != 0 for u in table.uses()):
            continue  # tied to a projection: it is needed in full anyway
        _rewrite(editor, node, table, stored)
        done[node.name or ""] = table.name or ""
    editor.drop_unused()
    return done


def smallest_for_size(graph: ir.Graph, others: int) -> int:
    """The ``smallest`` table where the file's size is what counts, beside ``others`` values in layers.

    Where small tables are much of the model, the smallest is stored as integers, too.
    """
    tables = {n.inputs[0]: n for n in graph if n.op_type == "Gather" and not n.domain}
    sizes = [a.size for t in tables if t is not None and (a := constant(t)) is not None and a.ndim == 2]
    small = sum(size for size in sizes if size < SMALLEST_FOR_SIZE)
    return SMALLEST_FOR_SIZE if small <= _FEW * (sum(sizes) + others) else 1


def _rewrite(
    editor: Editor, node: ir.Node, table: ir.Value, stored: dict[ir.Value, tuple[ir.Value, ir.Value]]
) -> None:
    if table not in stored:
        array = constant(table)
        assert array is not None
        integers = quantize_weight(array, 0, 8)
        stored[table] = (
            editor.constant(f"{table.name}_quantized", integers.values),
            editor.constant(f"{table.name}_scale", integers.scale.reshape(-1, 1)),
        )
    rows, scales = stored[table]
    hint = node.name or ""
    row = editor.node("Gather", f"{hint}_rows", [rows, node.inputs[1]])
    scale = editor.node("Gather", f"{hint}_scales", [scales, node.inputs[1]])
    cast = editor.node("Cast", hint, row.outputs, [ir.AttrInt64("to", ir.DataType.FLOAT.value)])
    product = editor.node("Mul", hint, [cast.outputs[0], scale.outputs[0]])
    editor.replace(node, (row, scale, cast, product))
