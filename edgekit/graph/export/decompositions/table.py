"""Which ATen operators are replaced before the ONNX exporter sees them, and by what."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch.export import ExportedProgram
from torch.fx import Node

_Function = TypeVar("_Function", bound=Callable[..., Any])
_Table = dict[Any, tuple[Callable[..., Any], Callable[[Node], bool]]]

TABLE: _Table = {}
"""ATen overload → what to trace in its place, and whether a node of the program needs that."""


def always(node: Node) -> bool:
    """Whether the exporter fails on a node of this operator: it does on any."""
    del node
    return True


def decomposes(*overloads: Any, where: Callable[[Node], bool] = always) -> Callable[[_Function], _Function]:
    """Register a function for ATen overloads that the ONNX exporter lacks, or gets wrong ``where`` that holds."""

    def register(function: _Function) -> _Function:
        TABLE.update(dict.fromkeys(overloads, (function, where)))
        return function

    return register


def static(*sizes: Any) -> bool:
    """Whether all sizes are numbers: what is taken apart step by step has to know how many."""
    return all(isinstance(size, int) for size in sizes)


def decomposed(program: ExportedProgram) -> ExportedProgram | None:
    """The program with :data:`TABLE` applied; ``None`` where no node of it is concerned."""
    table = {}
    for node in program.graph.nodes:
        function, where = TABLE.get(node.target, (None, always))
        if function is not None and where(node):
            table[node.target] = function
    return program.run_decompositions(table) if table else None
