"""Which ATen operators are replaced before the ONNX exporter sees them, and by what."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

_Function = TypeVar("_Function", bound=Callable[..., Any])
_Table = dict[Any, tuple[Callable[..., Any], Callable[[Node], bool]]]

TABLE: _Table = {}
"""ATen overload → what to trace in its place, and whether a node of the program needs that."""


MISREAD: set[Any] = set()
"""Overloads in it that the exporter takes, and gets wrong for some values or writes in operators that few runtimes
have: its own way is not taken."""


def always(node: Node) -> bool:
    """Whether the exporter fails on a node of this operator: it does on any."""
    del node
    return True


def decomposes(
    *overloads: Any, where: Callable[[Node], bool] = always, misread: bool = False
) -> Callable[[_Function], _Function]:
    """Register a function for ATen overloads that the ONNX exporter lacks, or gets wrong ``where`` that holds; with
    ``misread``, wrong in a way that comparing with the module in ONNX Runtime need not show."""

    def register(function: _Function) -> _Function:
        TABLE.update(dict.fromkeys(overloads, (function, where)))
        MISREAD.update(overloads if misread else ())
        return function

    return register


def misread(program: ExportedProgram) -> bool:
    """Whether the exporter has taken a node that it gets wrong."""
    return any(node.target in MISREAD and TABLE[node.target][1](node) for node in _nodes(program))


def _nodes(program: ExportedProgram) -> Iterator[Node]:
    """Those in the bodies of loops and branches, too."""
    for module in program.graph_module.modules():
        if isinstance(module, GraphModule):
            yield from module.graph.nodes


def static(*sizes: Any) -> bool:
    """Whether all sizes are numbers: what is taken apart step by step has to know how many."""
    return all(isinstance(size, int) for size in sizes)


def decomposed(program: ExportedProgram) -> ExportedProgram | None:
    """The program with :data:`TABLE` applied; ``None`` where no node of it is concerned.

    Operators that are made of others (a matrix norm of singular values) are taken apart where these are concerned.
    """
    table = _needed(program)
    if not table:
        program = program.run_decompositions({})
        table = _needed(program)
    if not table:
        return None
    program = program.run_decompositions(table)
    rest = {overload: function for overload, function in _needed(program).items() if overload not in table}
    return program.run_decompositions(rest) if rest else program


def _needed(program: ExportedProgram) -> dict[Any, Callable[..., Any]]:
    """The part of :data:`TABLE` that nodes of the program need."""
    table = {}
    for node in _nodes(program):
        function, where = TABLE.get(node.target, (None, always))
        if function is not None and where(node):
            table[node.target] = function
            if (copying := _copying(node.target)) in TABLE:
                table[copying] = function
    return table


def _copying(overload: Any) -> Any:
    """What becomes of an operator that writes into its first argument: the one of its name that does not."""
    packet = overload._schema.name.rpartition("::")[2]
    return getattr(getattr(torch.ops.aten, packet.removesuffix("_"), None), overload._overloadname, None)
