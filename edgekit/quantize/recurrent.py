"""Recurrent layers with integer weights: LSTM, GRU and RNN.

Stored as INT8 behind DequantizeLinear, which every runtime reads; or, for LSTM in ONNX Runtime, computed on integers
with activations quantized on every step (DynamicQuantizeLSTM). Where a scheme has no integer kernel for a layer it is
computed in float, and its weights are stored as integers all the same: they are most of the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgekit.graph import ops
from edgekit.quantize.blocks import Block, attribute, constant
from edgekit.quantize.edit import Editor
from edgekit.quantize.params import Stored, quantize_weight
from edgekit.quantize.rules import Recurrent

RECURRENT = ("LSTM", "GRU", "RNN")
MATRICES = (1, 2)
"""The inputs W ``[directions, gates * hidden, inputs]`` and R ``[directions, gates * hidden, hidden]``."""

SMALLEST = 1024
"""Values: smaller matrices are not worth the nodes."""

_CONTRIB = "com.microsoft"


def is_recurrent(block: Block) -> bool:
    """Whether the block is one of :data:`RECURRENT`."""
    return ops.is_op(block.core, *RECURRENT)


def weight_values(block: Block) -> int:
    """How many values both matrices have; 0 unless they are constants."""
    arrays = _matrices(block)
    return sum(a.size for a in arrays) if arrays else 0


def why_not(block: Block) -> str:
    """Why its matrices cannot be stored as integers; empty if they can."""
    arrays = _matrices(block)
    if not arrays:
        return "its weights are computed at run time"
    return "" if all(a.dtype == np.float32 for a in arrays) else f"its weights are {arrays[0].dtype}"


def why_not_dynamic(block: Block) -> str:
    """Why ONNX Runtime cannot compute it on integers; empty if it can."""
    if block.op != "LSTM":
        return f"ONNX Runtime has no integer kernel for {block.op}"
    if attribute(block.core, "layout", 0):
        return "ONNX Runtime's integer kernel wants time first"
    return why_not(block)


def store(editor: Editor, block: Block, form: Recurrent) -> None:
    """Both matrices as INT8 with a scale a gate's row, in place. Two directions share the scales."""
    for place in MATRICES:
        value = block.core.inputs[place]
        assert value is not None
        array = constant(value)
        assert array is not None
        stored = quantize_weight(array, 1, 8)
        write = _widened if form is Recurrent.WIDENED else _dequantized
        block.core.replace_input_with(place, write(editor, block.core, value.name or "", stored))


def _dequantized(editor: Editor, reader: ir.Node, name: str, stored: Stored) -> ir.Value:
    return editor.dequantize(reader, name, stored)


def _widened(editor: Editor, reader: ir.Node, name: str, stored: Stored) -> ir.Value:
    integers = editor.constant(f"{name}_quantized", stored.values)
    steps = editor.constant(f"{name}_steps", (1 / stored.scale).astype(np.float32).reshape(1, -1, 1))
    cast = editor.node("Cast", name, [integers], [ir.AttrInt64("to", ir.DataType.FLOAT.value)])
    real = editor.node("Div", name, [cast.outputs[0], steps])
    for node in (cast, real):
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        node.outputs[0].shape = ir.Shape(stored.values.shape)
    editor.graph.insert_before(reader, (cast, real))
    return real.outputs[0]


def store_in_float(
    edit: Mapping[ir.Graph, Editor], blocks: Iterable[Block], form: Recurrent
) -> tuple[Block, ...]:
    """Store the weights of the recurrent ones among ``blocks``, which the scheme leaves in float, where that saves
    something; gives those that were."""
    if form is Recurrent.FLOAT:
        return ()
    worth = [b for b in blocks if is_recurrent(b) and not why_not(b) and weight_values(b) >= SMALLEST]
    for block in worth:
        store(edit[block.graph], block, form)
    return tuple(worth)


def note(stored: Sequence[Block]) -> str:
    """For the manifest."""
    kinds = ", ".join(sorted({b.op for b in stored}))
    return f"the weights of {len(stored)} recurrent layers ({kinds}) are stored as INT8"


def compute_dynamically(editor: Editor, block: Block, bits: int) -> None:
    """Put ONNX Runtime's DynamicQuantizeLSTM in the place of an LSTM."""
    node = block.core
    inputs = [*node.inputs, *[None] * (8 - len(node.inputs))]
    added: list[ir.Value] = []
    for place in MATRICES:
        value = inputs[place]
        assert value is not None
        array = constant(value)
        assert array is not None
        # Its kernel reads the matrices transposed: [directions, inputs, gates * hidden], with a scale a row as it was.
        scale, integers = _by_direction(array, bits)
        hint = value.name or block.name
        inputs[place] = editor.constant(f"{hint}_quantized", integers.transpose(0, 2, 1).copy())
        added += [
            editor.constant(f"{hint}_scale", scale),
            editor.constant(f"{hint}_zero_point", np.zeros(scale.shape, np.int8)),
        ]
    attributes = [a for name, a in node.attributes.items() if name != "layout"]
    made = ir.Node(
        _CONTRIB,
        "DynamicQuantizeLSTM",
        [*inputs, *added],
        attributes,
        num_outputs=len(node.outputs),
        name=node.name,
    )
    made.metadata_props.update(node.metadata_props)
    editor.top.opset_imports.setdefault(_CONTRIB, 1)
    editor.graph.insert_before(node, made)
    for old, new in zip(node.outputs, made.outputs, strict=True):
        new.type, new.shape = old.type, old.shape
        for use in tuple(old.uses()):
            use.node.replace_input_with(use.idx, new)
        for i, value in enumerate(editor.graph.outputs):
            if value is old:
                editor.graph.outputs[i] = new
    names = [o.name for o in node.outputs]
    editor.graph.remove(node, safe=True)
    for old, new, name in zip(node.outputs, made.outputs, names, strict=True):
        old.name, new.name = None, name


def _by_direction(
    array: npt.NDArray[np.float32], bits: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int8]]:
    """Scales ``[directions, rows]`` and integers of a matrix ``[directions, rows, columns]``."""
    stored = [quantize_weight(part, 0, bits) for part in array]
    return np.stack([s.scale for s in stored]), np.stack([s.values for s in stored])


def _matrices(block: Block) -> list[npt.NDArray[np.float32]]:
    """W and R where both are constants, else nothing."""
    found = []
    for place in MATRICES:
        value = block.core.inputs[place] if len(block.core.inputs) > place else None
        array = constant(value) if value is not None else None
        if array is None or array.ndim != 3:
            return []
        found.append(array)
    return found
