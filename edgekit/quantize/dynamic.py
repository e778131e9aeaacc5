"""Dynamic quantization: matrix products on integers, activations quantized anew on every run.

ONNX's own operators (DynamicQuantizeLinear, MatMulInteger), in the form that ONNX Runtime fuses. No
calibration is needed; convolutions stay float, because ONNX Runtime's integer convolution with dynamic
ranges is slower than its float one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir

from edgekit.graph import io as graphs
from edgekit.quantize import recurrent
from edgekit.quantize.blocks import Block, attribute, constant, find_blocks, matrix, select
from edgekit.quantize.edit import Editor, editors
from edgekit.quantize.embedding import quantize_embeddings
from edgekit.quantize.fronts import fronts
from edgekit.quantize.options import Cause, InFloat, NodeReport, QuantizeOptions, QuantizeReport
from edgekit.quantize.params import quantize_weight
from edgekit.quantize.rules import Recurrent


def quantize_dynamic(
    graph: ir.Graph, options: QuantizeOptions, form: Recurrent = Recurrent.FLOAT
) -> QuantizeReport:
    """Rewrite every Gemm and MatMul with a constant float32 matrix, and large tables, in place.

    The weights of recurrent layers that have no integer kernel are stored in ``form``.
    """
    edit = editors(graph)
    blocks = [block for part in edit for block in find_blocks(part)]
    excluded = select(blocks, options.exclude)
    shared: dict[tuple[ir.Value, Editor], ir.Node] = {}
    reports = []
    left: list[Block] = []
    front, notes = fronts(blocks, None)
    for block in blocks:
        in_float = front.get(block) or why_float(block, excluded, _impossible)
        reports += report(block, in_float, "uint8")
        editor = edit[block.graph]
        if in_float is not None and in_float.cause is Cause.UNSUPPORTED:
            left.append(block)
        if in_float is None and recurrent.is_recurrent(block):
            recurrent.compute_dynamically(editor, block, options.weight_bits)
        elif in_float is None:
            _rewrite(editor, block, shared, options.weight_bits)
    stored = recurrent.store_in_float(edit, left, form)
    tables = quantize_embeddings(graph)
    for editor in edit.values():
        editor.drop_unused()
    nodes = tuple(mark(n, tables) for n in reports)
    notes += (recurrent.note(stored),) if stored else ()
    return QuantizeReport(method="dynamic", corrections=(), nodes=nodes, notes=notes)


def why_float(
    block: Block, excluded: Mapping[Block, str], impossible: Callable[[Block], str]
) -> InFloat | None:
    """Why a block stays in float, as the options or the scheme want it; ``None`` for one to quantize."""
    return InFloat.excluded(excluded[block]) if block in excluded else InFloat.unsupported(impossible(block))


def report(block: Block, in_float: InFloat | None, activation: str) -> list[NodeReport]:
    """One entry for each node of a block."""
    return [
        NodeReport(
            node=node.name or "",
            op=block.op if node is block.core else node.op_type,
            module_path=graphs.module_path(node),
            quantized=in_float is None,
            activation=activation if in_float is None else "",
            cause=in_float.cause if in_float is not None else None,
            reason=in_float.reason if in_float is not None else "",
            macs=block.macs if node is block.core else 0,
            weights=_values(block) if node is block.core else 0,
        )
        for node in block.nodes
    ]


def _values(block: Block) -> int:
    return recurrent.weight_values(block) if recurrent.is_recurrent(block) else block.weight_values


def mark(node: NodeReport, tables: dict[str, str]) -> NodeReport:
    """The entry of a lookup whose table became integers."""
    if node.node not in tables:
        return node
    return NodeReport(node=node.node, op=node.op, module_path=node.module_path, quantized=True)


def _impossible(block: Block) -> str:
    if recurrent.is_recurrent(block):
        return recurrent.why_not_dynamic(block)
    if block.op not in ("Gemm", "MatMul"):
        return f"{block.op} is not quantized dynamically"
    weight = block.weight
    array = constant(weight) if weight is not None else None
    if array is None:
        return "its weights are computed at run time"
    if array.dtype != np.float32 or array.ndim != 2:
        return f"its weight is {array.dtype} with {array.ndim} axes, not a float32 matrix"
    if block.op == "Gemm" and (
        attribute(block.core, "alpha", 1.0) != 1.0 or attribute(block.core, "transA", 0)
    ):
        return "Gemm with alpha or transA"
    return ""


def gemm_bias(editor: Editor, block: Block) -> ir.Value | None:
    """The third input of a Gemm times beta, as something to add."""
    node = block.core
    if block.op != "Gemm" or len(node.inputs) < 3 or node.inputs[2] is None:
        return None
    beta, bias = attribute(node, "beta", 1.0), node.inputs[2]
    array = constant(bias)
    if beta == 1.0:
        return bias
    if array is not None:
        return editor.constant(f"{bias.name}_scaled", (array * np.float32(beta)).astype(np.float32))
    scaled = editor.node(
        "Mul", node.name or "beta", [bias, editor.constant("beta", np.asarray(beta, np.float32))]
    )
    editor.graph.insert_before(node, scaled)
    return scaled.outputs[0]


def _rewrite(editor: Editor, block: Block, shared: dict[tuple[ir.Value, Editor], ir.Node], bits: int) -> None:
    node, hint = block.core, block.name
    data = node.inputs[0]
    assert data is not None
    key = (data, editor)  # what one branch computes another cannot read
    if key not in shared:
        shared[key] = editor.node("DynamicQuantizeLinear", data.name or "", [data], outputs=3)
        editor.graph.insert_before(node, shared[key])
    integers, scale, zero = shared[key].outputs
    stored = quantize_weight(matrix(block), 1, bits)
    weight = editor.constant(f"{hint}_quantized", stored.values)
    zeros = editor.constant(f"{hint}_zero_point", np.zeros(stored.scale.shape, np.int8))
    product = editor.node("MatMulInteger", hint, [integers, weight, zero, zeros])
    cast = editor.node("Cast", hint, product.outputs, [ir.AttrInt64("to", ir.DataType.FLOAT.value)])
    scales = editor.node("Mul", f"{hint}_scales", [scale, editor.constant(f"{hint}_scale", stored.scale)])
    result = editor.node("Mul", hint, [cast.outputs[0], scales.outputs[0]])
    made = [product, cast, scales, result]
    bias = gemm_bias(editor, block)
    if bias is not None:
        made.append(editor.node("Add", hint, [result.outputs[0], bias]))
    editor.replace(node, made)
