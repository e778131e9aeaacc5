"""New nodes in the place of an old one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from edgekit.graph.edit import add_constant, home

if TYPE_CHECKING:
    from edgekit.types import Array


class Maker:
    """Nodes that will stand for ``node``, in order: the last one's result is its result (see ``edit.replace``)."""

    def __init__(self, node: ir.Node) -> None:
        graph = home(node)
        assert graph is not None
        self.graph, self.near, self.made = graph, node.name or node.op_type, list[ir.Node]()

    def add(
        self, op: str, inputs: Sequence[ir.Value | None], **attributes: int | float | str | Sequence[int]
    ) -> ir.Value:
        """One of ONNX's own operators; its first output."""
        written = [ir.convenience.convert_attribute(k, v) for k, v in attributes.items()]
        node = ir.Node("", op, list(inputs), attributes=written, name=f"{self.near}/{op}_{len(self.made)}")
        node.outputs[0].name = f"{node.name}:0"
        self.made.append(node)
        return node.outputs[0]

    def ints(self, *values: int) -> ir.Value:
        """A 1-D constant."""
        return self.constant(np.asarray(values, np.int64))

    def constant(self, array: Array) -> ir.Value:
        """An initializer of the graph."""
        return add_constant(self.graph, array, f"{self.near}/constant")

    def part(self, x: ir.Value, axis: int, start: int, stop: int) -> ir.Value:
        """The elements ``start`` to ``stop`` along one axis."""
        return self.add("Slice", [x, self.ints(start), self.ints(stop), self.ints(axis)])
