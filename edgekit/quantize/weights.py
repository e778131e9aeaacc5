"""Weight-only quantization: integers in the file, float arithmetic.

INT8 by channel, or INT4 by blocks of consecutive inputs, behind DequantizeLinear; runtimes fold it into
the product (ONNX Runtime's MatMulNBits, OpenVINO's weight decompression) or dequantize at load. FLOAT16
weights are cast.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import ml_dtypes
import numpy as np
import onnx_ir as ir

from edgekit.quantize import recurrent
from edgekit.quantize.blocks import WEIGHTED, Block, attribute, constant, find_blocks, matrix, select
from edgekit.quantize.dynamic import gemm_bias, mark, report, why_float
from edgekit.quantize.edit import Editor, editors
from edgekit.quantize.embedding import quantize_embeddings, smallest_for_size
from edgekit.quantize.fronts import fronts
from edgekit.quantize.options import QuantizeOptions, QuantizeReport
from edgekit.quantize.params import Stored, quantize_blocks, quantize_weight
from edgekit.quantize.rounding import Rounding
from edgekit.quantize.rules import Recurrent

_SMALLEST = 1024  # elements: smaller weights are not worth a node
_FEW = 0.1  # of all weights: more of them are what the model consists of


def quantize_weights(
    graph: ir.Graph,
    dtype: str,
    options: QuantizeOptions,
    trained: Mapping[str, Stored] | None = None,
    rounding: Rounding | None = None,
    form: Recurrent = Recurrent.MULTIPLIED,
) -> QuantizeReport:
    """Store the weights of convolutions and products as ``int8``, ``int4`` or ``float16``, in place.

    Where INT4 does not fit (convolutions, inputs not a multiple of the block) INT8 is used, and said.
    Integers that were ``trained`` (by the weight's name) stay what they are, with a scale a channel. With the
    correction ``gptq`` INT4 weights are rounded with regard to what the layers read (``rounding``).
    """
    edit = editors(graph)
    blocks = [block for part in edit for block in find_blocks(part)]
    excluded = select(blocks, options.exclude)
    size = options.block_size
    impossible = partial(_impossible, smallest=_smallest(blocks))
    front, front_notes = fronts(blocks, None) if dtype != "float16" else ({}, ())
    rounded: dict[str, Stored] = {}
    gptq = dtype == "int4" and "gptq" in options.corrections and rounding is not None
    if gptq and rounding is not None:
        # What is read inside a branch or a loop cannot be looked at from outside.
        plain = [b for b in blocks if b.graph is graph and b not in excluded and b not in front]
        free = (b for b in plain if not impossible(b) and not _kept(b, trained))
        rounded = rounding.blockwise([b for b in free if _fits_int4(b, size)], size)
    layers = sum(block.weight_values or recurrent.weight_values(block) for block in blocks)
    reports, notes = [], [*front_notes]
    wide, narrow = list[int](), list[int]()
    for block in blocks:
        in_float = front.get(block) or why_float(block, excluded, impossible)
        reports += report(block, in_float, "")
        if in_float is not None:
            continue
        kept, editor = _kept(block, trained), edit[block.graph]
        values = block.weight_values or recurrent.weight_values(block)
        if recurrent.is_recurrent(block):
            if dtype != "float16":
                recurrent.store(editor, block, form)
                wide.append(values)
        elif dtype == "float16":
            _halve(editor, block)
        elif kept is not None:
            (narrow if _trained(editor, block, kept, dtype) else wide).append(values)
        elif dtype == "int4" and _fits_int4(block, size):
            name = (block.weight.name or "") if block.weight is not None else ""
            _four_bits(editor, block, rounded.get(name) or quantize_blocks(matrix(block), size), size)
            narrow.append(values)
        else:
            _eight_bits(editor, block)
            wide.append(values)
    tables = quantize_embeddings(graph, smallest_for_size(graph, layers)) if dtype != "float16" else {}
    for editor in edit.values():
        editor.drop_unused()
    if dtype == "int4" and wide:
        notes.append(f"{len(wide)} weights that are small or do not divide into blocks of {size} are INT8")
    if gptq:
        notes.append(f"gptq rounded the weights of {len(rounded)} products with regard to their inputs")
    nodes = tuple(mark(n, tables) for n in reports)
    done = ("gptq",) if gptq else ()
    share = sum(narrow) / sum(narrow + wide) if dtype == "int4" and narrow + wide else None
    return QuantizeReport(
        method="weights", corrections=done, nodes=nodes, notes=tuple(notes), four_bits=share
    )


def _kept(block: Block, trained: Mapping[str, Stored] | None) -> Stored | None:
    """The integers that a block's weight was trained to."""
    return (trained or {}).get(block.weight.name or "") if block.weight is not None else None


def _smallest(blocks: Sequence[Block]) -> int:
    """How many values a weight must have to be worth a node: where small ones are most of the model, one."""
    sizes = [block.weight_values or recurrent.weight_values(block) for block in blocks]
    small = sum(size for size in sizes if size < _SMALLEST)
    return _SMALLEST if small <= _FEW * sum(sizes) else 1


def _impossible(block: Block, smallest: int) -> str:
    if recurrent.is_recurrent(block):
        return recurrent.why_not(block)
    if block.op not in WEIGHTED:
        return f"{block.op} has no weights"
    array = constant(block.weight) if block.weight is not None else None
    if array is None:
        return "its weights are computed at run time"
    if array.dtype != np.float32:
        return f"its weights are {array.dtype}"
    return f"its weights are small ({array.size} values)" if array.size < smallest else ""


def _eight_bits(editor: Editor, block: Block) -> None:
    weight = block.weight
    assert weight is not None
    array = constant(weight)
    assert array is not None
    stored = quantize_weight(array, block.weight_axis, 8)
    block.core.replace_input_with(1, editor.dequantize(block.core, weight.name or "", stored))


def _trained(editor: Editor, block: Block, kept: Stored, dtype: str) -> bool:
    """Integers as they are; in half a byte each where INT4 is asked for and they fit: whether they do."""
    weight = block.weight
    assert weight is not None
    fits = dtype == "int4" and abs(kept.values.astype(np.int16)).max(initial=0) <= 7
    values = kept.values.astype(ml_dtypes.int4) if fits else kept.values
    stored = Stored(values=values, scale=kept.scale, axis=kept.axis)
    block.core.replace_input_with(1, editor.dequantize(block.core, weight.name or "", stored))
    return fits


def _halve(editor: Editor, block: Block) -> None:
    weight = block.weight
    assert weight is not None
    array = constant(weight)
    assert array is not None
    half = editor.constant(f"{weight.name}_float16", array.astype(np.float16))
    cast = editor.node("Cast", weight.name or "", [half], [ir.AttrInt64("to", ir.DataType.FLOAT.value)])
    cast.outputs[0].type, cast.outputs[0].shape = weight.type, weight.shape
    editor.graph.insert_before(block.core, cast)
    block.core.replace_input_with(1, cast.outputs[0])


def _fits_int4(block: Block, size: int) -> bool:
    if block.op not in ("Gemm", "MatMul") or block.weight is None or block.weight_axis is None:
        return False
    if block.weight_values < _SMALLEST:  # four bits fewer save nothing, and cost several dB
        return False
    plain = attribute(block.core, "alpha", 1.0) == 1.0 and not attribute(block.core, "transA", 0)
    return plain and matrix(block).shape[0] % size == 0


def _four_bits(editor: Editor, block: Block, stored: Stored, size: int) -> None:
    node = block.core
    weight = editor.dequantize(node, f"{block.name}_weight", stored, block_size=size)
    product = editor.node("MatMul", block.name, [node.inputs[0], weight])
    bias = gemm_bias(editor, block)
    made = (
        [product] if bias is None else [product, editor.node("Add", block.name, [product.outputs[0], bias])]
    )
    editor.replace(node, made)
