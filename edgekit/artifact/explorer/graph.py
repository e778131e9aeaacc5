"""Nodes of a graph, whatever the format of the file: what each of them computes, on which tensors, in which types."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from edgekit.types import Json

INPUT, OUTPUT = "Input", "Output"
"""The operators of the nodes that stand for the model's inputs and outputs."""


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """A tensor that a node reads or writes. ``stored`` is the type that its values were rounded to where it was just
    dequantized; ``dtype`` that of the tensor itself. ``scale`` is set where all of it shares one."""

    name: str
    dtype: str = ""
    shape: tuple[int | str, ...] | None = None
    stored: str = ""
    constant: bool = False
    scale: float | None = None
    zero_point: int | None = None

    @property
    def text(self) -> str:
        """Type and shape: ``int8 1 × 8 × 8 × 32``."""
        shape = "" if self.shape is None else " × ".join(map(str, self.shape)) or "scalar"
        rounded = f"({self.stored})" if self.stored and self.stored != self.dtype else ""
        return " ".join(filter(None, (self.dtype, rounded, shape, "constant" if self.constant else "")))


@dataclass(frozen=True, kw_only=True)
class Edge:
    """The output ``output`` of the node ``source`` is the input ``input`` of the node that has the edge."""

    source: str
    output: int
    input: int


@dataclass(frozen=True, kw_only=True)
class Node:
    """One operator. ``id`` is its own within the graph; ``names`` are what runtimes, manifests and comparisons call it,
    the likeliest first; ``inputs`` has ``None`` where one is not given; ``macs`` is 0 where it does not multiply and
    ``None`` where shapes do not tell; ``bodies`` are the ids of graphs that it runs."""

    id: str
    op: str
    names: tuple[str, ...]
    inputs: tuple[Tensor | None, ...] = ()
    outputs: tuple[Tensor, ...] = ()
    edges: tuple[Edge, ...] = ()
    macs: int | None = 0
    module: str = ""
    bodies: tuple[str, ...] = ()
    attributes: Mapping[str, str] = field(default_factory=dict)

    @property
    def precision(self) -> str:
        """What a node that multiplies computes with: ``int8 × int8``; empty for any other."""
        if self.macs == 0:
            return ""
        types = [t.stored or t.dtype for t in self.inputs[:2] if t is not None]
        return " × ".join(filter(None, types))


@dataclass(frozen=True, kw_only=True)
class Graph:
    """One graph of a model: the main one, or the body of a loop, a branch or a function."""

    id: str
    nodes: tuple[Node, ...]


class Names:
    """Ids that are unique, made from names that need not be."""

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}

    def new(self, name: str) -> str:
        """``name``, or with a number behind it where it was given out before."""
        taken = name or "?"
        while taken in self._seen:
            self._seen[name] = self._seen.get(name, 1) + 1
            taken = f"{name}#{self._seen[name]}"
        self._seen[taken] = 1
        return taken


def document(graph: Graph, more: Mapping[str, Mapping[str, str]]) -> dict[str, Json]:
    """The graph in Model Explorer's form. ``more``: attributes of nodes that the file does not know, by id."""
    return {"id": graph.id, "nodes": [_node(node, more.get(node.id, {})) for node in graph.nodes]}


def _node(node: Node, more: Mapping[str, str]) -> Json:
    return {
        "id": node.id,
        "label": node.op,
        "namespace": node.module.replace("/", "_").replace(".", "/"),
        "subgraphIds": list(node.bodies),
        "attrs": _pairs([*_attributes(node), *more.items()]),
        "incomingEdges": [
            {"sourceNodeId": e.source, "sourceNodeOutputId": str(e.output), "targetNodeInputId": str(e.input)}
            for e in node.edges
        ],
        "inputsMetadata": [
            {"id": str(slot), "attrs": _pairs(_tensor(tensor))}
            for slot, tensor in enumerate(node.inputs)
            if tensor is not None
        ],
        "outputsMetadata": [
            {"id": str(slot), "attrs": _pairs(_tensor(tensor))} for slot, tensor in enumerate(node.outputs)
        ],
    }


def _attributes(node: Node) -> Iterator[tuple[str, str]]:
    yield "operator", node.op
    if node.module:
        yield "module", node.module
    if node.precision:
        yield "precision", node.precision
    if node.macs != 0:
        yield "multiply-accumulates", "unknown" if node.macs is None else f"{node.macs:,}"
    for slot, tensor in enumerate(node.inputs):
        if tensor is not None and tensor.constant:
            yield f"input {slot}", f"{tensor.name}: {tensor.text}"
    yield from node.attributes.items()


def _tensor(tensor: Tensor) -> Iterator[tuple[str, str]]:
    yield "tensor_name", tensor.name
    yield "tensor_shape", tensor.text
    if tensor.scale is not None:
        yield "quantization", f"{tensor.scale:.6g} × (q - {tensor.zero_point or 0})"


def _pairs(items: Iterable[tuple[str, str]]) -> list[Json]:
    return [{"key": key, "value": value} for key, value in items]
