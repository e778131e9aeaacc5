"""TFLite files of others: read as a tree of tables whose references to one another lead somewhere."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from edgekit.backends.tflite import flatbuffer_schema
from edgekit.core.foreign import translated

if TYPE_CHECKING:
    from ai_edge_litert import schema_py_generated as schema

_NONE = -1
"""The index of an optional input that is not given."""


def read_tree(data: bytes, where: str) -> schema.ModelT:
    """All tables of a model. Raises :class:`SourceError` where an offset leads out of the file, or an index is that
    of a tensor, buffer or operator code that is not there."""
    tables = flatbuffer_schema()
    with translated(f"{where} is damaged", hint="build or copy it again"):
        if data[4:8] != b"TFL3":
            raise ValueError("it is no TFLite file")
        tree: schema.ModelT = tables.ModelT.InitFromObj(tables.Model.GetRootAs(data, 0))
        _check(tree)
    return tree


def _check(tree: schema.ModelT) -> None:
    buffers, codes = len(tree.buffers or ()), len(tree.operatorCodes or ())
    if not tree.subgraphs:
        raise ValueError("it has no graph")
    for graph in tree.subgraphs:
        graph.tensors, graph.operators = graph.tensors or [], graph.operators or []
        count = len(graph.tensors)
        _within("the graph's inputs", graph.inputs, count)
        _within("the graph's outputs", graph.outputs, count)
        for number, tensor in enumerate(graph.tensors):
            _within(f"tensor {number}'s buffer", [tensor.buffer], buffers)
        for number, operator in enumerate(graph.operators):
            _within(f"operator {number}'s code", [operator.opcodeIndex], codes)
            given = [i for i in _items(operator.inputs) if i != _NONE]
            _within(f"operator {number}'s inputs", given, count)
            _within(f"operator {number}'s outputs", operator.outputs, count)
    for signature in tree.signatureDefs or ():
        maps = [*(signature.inputs or ()), *(signature.outputs or ())]
        _within("the signature's tensors", [m.tensorIndex for m in maps], len(tree.subgraphs[0].tensors))
        if any(m.name is None for m in maps):
            raise ValueError("a tensor of the signature has no name")


def _within(what: str, indices: Collection[int] | None, count: int) -> None:
    wrong = [int(i) for i in _items(indices) if not 0 <= int(i) < count]
    if wrong:
        raise ValueError(f"{what}: there is no number {wrong[0]} of {count}")


def _items(values: Collection[int] | None) -> Collection[int]:
    return () if values is None else values
