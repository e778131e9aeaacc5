"""New nodes and initializers with names of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgekit.quantize.params import Stored


def whole(graph: ir.Graph) -> tuple[ir.Graph, ...]:
    """The graph and those inside its If, Loop and Scan, at any depth."""
    return (graph, *dict.fromkeys(graph.subgraphs()))


def names_in(graph: ir.Graph) -> set[str]:
    """Every name in use, inside branches and loops, too: a name is one thing in all of them."""
    names: set[str | None] = set()
    for part in whole(graph):
        names |= {v.name for n in part for v in n.outputs} | {v.name for v in part.inputs}
        names |= set(part.initializers) | {n.name for n in part}
    return {n for n in names if n}


class Editor:
    """Adds to a graph. Small constants that are equal are stored once. ``names``: those in use, shared with the
    editors of graphs around and inside, of which ``top`` is the model's."""

    def __init__(self, graph: ir.Graph, names: set[str] | None = None, top: ir.Graph | None = None) -> None:
        self.graph, self.top = graph, top or graph
        self._constants: dict[tuple[str, bytes], ir.Value] = {}
        self._names = names_in(graph) if names is None else names

    def constant(self, hint: str, array: npt.NDArray[Any]) -> ir.Value:
        """An initializer; scalars are shared by equal requests."""
        key = (str(array.dtype), array.tobytes()) if array.ndim == 0 else None
        if key is not None and key in self._constants:
            return self._constants[key]
        name = self.unique(hint)
        tensor = ir.Tensor(array, name=name)
        value = ir.Value(
            name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape)
        )
        self.graph.register_initializer(value)
        if key is not None:
            self._constants[key] = value
        return value

    def node(
        self,
        op: str,
        hint: str,
        inputs: Sequence[ir.Value | None],
        attributes: Sequence[ir.Attr] = (),
        outputs: int = 1,
    ) -> ir.Node:
        """A node, not yet in the graph; its outputs are named after it."""
        name = self.unique(f"{hint}_{op}")
        node = ir.Node("", op, inputs, attributes, num_outputs=outputs, name=name)
        for i, value in enumerate(node.outputs):
            value.name = name if i == 0 else self.unique(f"{name}_{i}")
        return node

    def dequantize(self, reader: ir.Node, name: str, stored: Stored, block_size: int = 0) -> ir.Value:
        """Integers in the file and a DequantizeLinear before ``reader``; the float value."""
        scale = np.asarray(stored.scale)
        zeros = np.full(scale.shape, stored.zero_point, stored.values.dtype)
        parts = {"quantized": stored.values, "scale": scale, "zero_point": zeros}
        inputs = [self.constant(f"{name}_{part}", array) for part, array in parts.items()]
        node = self.node("DequantizeLinear", name, inputs)
        if stored.axis is not None and scale.ndim:
            node.attributes["axis"] = ir.AttrInt64("axis", stored.axis)
        if block_size:
            node.attributes["block_size"] = ir.AttrInt64("block_size", block_size)
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        node.outputs[0].shape = ir.Shape(stored.values.shape)
        self.graph.insert_before(reader, node)
        return node.outputs[0]

    def replace(self, node: ir.Node, made: Sequence[ir.Node]) -> None:
        """Put ``made`` in a node's place; the last one's output takes over the node's, under its name."""
        old, new = node.outputs[0], made[-1].outputs[0]
        for one in made:
            one.metadata_props.update(node.metadata_props)
        new.type, new.shape = old.type, old.shape
        self.graph.insert_before(node, made)
        for use in tuple(old.uses()):
            use.node.replace_input_with(use.idx, new)
        for i, value in enumerate(self.graph.outputs):
            if value is old:
                self.graph.outputs[i] = new
        self.graph.remove(node, safe=True)
        name, old.name = old.name, None
        new.name = name

    def drop_unused(self) -> None:
        """Remove initializers that nothing reads any more."""
        for name, value in tuple(self.graph.initializers.items()):
            if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
                del self.graph.initializers[name]

    def unique(self, hint: str) -> str:
        """``hint``, or with the first free number behind it."""
        name, i = hint, 0
        while name in self._names:
            i += 1
            name = f"{hint}_{i}"
        self._names.add(name)
        return name


def editors(graph: ir.Graph) -> dict[ir.Graph, Editor]:
    """One for the graph and for each inside it, with one set of names."""
    names = names_in(graph)
    return {part: Editor(part, names, graph) for part in whole(graph)}
