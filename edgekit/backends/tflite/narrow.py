"""Models whose interface is int32 where it was int64: LiteRT in JavaScript has no tensors of int64."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import flatbuffers

from edgekit.backends.tflite import flatbuffer_schema
from edgekit.backends.tflite.reading import read_tree

if TYPE_CHECKING:
    from ai_edge_litert import schema_py_generated as schema


def int32_interface(model: bytes) -> bytes:
    """The model with a CAST behind each input of int64, and before each output: the same numbers in 32 bits."""
    tables = flatbuffer_schema()
    tree = read_tree(model, "the model")
    graph = tree.subgraphs[0]
    code = _cast_code(tree)
    inputs, outputs = [int(i) for i in graph.inputs], [int(i) for i in graph.outputs]
    before, behind = [], []
    for place, index in enumerate(inputs):
        if graph.tensors[index].type == tables.TensorType.INT64:
            inputs[place] = _narrow(graph, index)
            before.append(_cast(code, inputs[place], index, tables.TensorType.INT32, tables.TensorType.INT64))
    for place, index in enumerate(outputs):
        if graph.tensors[index].type == tables.TensorType.INT64:
            outputs[place] = _narrow(graph, index)
            behind.append(
                _cast(code, index, outputs[place], tables.TensorType.INT64, tables.TensorType.INT32)
            )
    renumbered = {
        **dict(zip((int(i) for i in graph.inputs), inputs, strict=True)),
        **dict(zip((int(i) for i in graph.outputs), outputs, strict=True)),
    }
    graph.inputs, graph.outputs = inputs, outputs
    graph.operators = [*before, *graph.operators, *behind]
    for signature in tree.signatureDefs or ():
        for entry in (*(signature.inputs or ()), *(signature.outputs or ())):
            if signature.subgraphIndex == 0:
                entry.tensorIndex = renumbered.get(int(entry.tensorIndex), entry.tensorIndex)
    builder = flatbuffers.Builder(len(model) + (64 << 10))
    builder.Finish(tree.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def _narrow(graph: schema.SubGraphT, index: int) -> int:
    """A tensor of int32 beside the one at ``index``, which gives its name away."""
    tables = flatbuffer_schema()
    wide = graph.tensors[index]
    tensor = copy.copy(wide)
    tensor.type = tables.TensorType.INT32
    # Buffer 0 is the empty one by the format's rule.
    tensor.buffer = 0
    wide.name = (wide.name if isinstance(wide.name, bytes) else str(wide.name).encode()) + b"/int64"
    graph.tensors.append(tensor)
    return len(graph.tensors) - 1


def _cast(code: int, source: int, result: int, of: int, to: int) -> schema.OperatorT:
    tables = flatbuffer_schema()
    operator = tables.OperatorT()
    operator.opcodeIndex, operator.inputs, operator.outputs = code, [source], [result]
    options = tables.CastOptionsT()
    options.inDataType, options.outDataType = of, to
    operator.builtinOptionsType, operator.builtinOptions = tables.BuiltinOptions.CastOptions, options
    return operator


def _cast_code(tree: schema.ModelT) -> int:
    """The number of CAST among the model's operator codes, which has it behind this."""
    tables = flatbuffer_schema()
    cast = tables.BuiltinOperator.CAST
    for index, code in enumerate(tree.operatorCodes or ()):
        if max(code.builtinCode, code.deprecatedBuiltinCode) == cast:
            return index
    code = tables.OperatorCodeT()
    code.builtinCode, code.deprecatedBuiltinCode, code.version = cast, cast, 1
    tree.operatorCodes = [*(tree.operatorCodes or ()), code]
    return len(tree.operatorCodes) - 1
