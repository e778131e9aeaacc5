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


MISREAD: set[Any] = set()
"""Overloads in it that the exporter takes and gets wrong for some values: its own way is not taken."""


def always(node: Node) -> bool:
    """Whether the exporter fails on a node of this operator: it does on any."""
    del node
    return True


def decomposes(
    *overloads: Any, where: Callable[[Node], bool] = always, misread: bool = False
) -> Callable[[_Function], _Function]:
    """Register a function for ATen overloads that the ONNX exporter lacks, or gets wrong ``where`` that holds; with
    ``misread``, wrong in a way that random inputs need not show."""

    def register(function: _Function) -> _Function:
        TABLE.update(dict.fromkeys(overloads, (function, where)))
        MISREAD.update(overloads if misread else ())
        return function

    return register


def misread(program: ExportedProgram) -> bool:
    """Whether the exporter has taken a node that it gets wrong."""
    return any(node.target in MISREAD and TABLE[node.target][1](node) for node in program.graph.nodes)


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
