"""``.tflite``: every subgraph, read from the flatbuffer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.artifact.explorer.graph import INPUT, OUTPUT, Edge, Graph, Names, Node, Tensor
from edgekit.artifact.inspect.tflite_file import Subgraph
from edgekit.backends.tflite.reading import read_tree
from edgekit.core.foreign import translated

if TYPE_CHECKING:
    from ai_edge_litert import schema_py_generated as schema

_BODIES = ("condSubgraphIndex", "bodySubgraphIndex", "thenSubgraphIndex", "elseSubgraphIndex")
"""The options of WHILE and IF that name the graphs they run."""
_LONGEST = 200


def read(path: Path) -> tuple[Graph, ...]:
    """Raises :class:`SourceError` for a file that is damaged, :class:`MissingExtraError` without LiteRT's schema."""
    tree = read_tree(path.read_bytes(), str(path))
    with translated(f"{path} is damaged", hint="build or copy it again"):
        names = Names()
        ids = [names.new(_text(graph.name) or f"subgraph {n}") for n, graph in enumerate(tree.subgraphs)]
        return tuple(
            Graph(id=graph_id, nodes=tuple(_nodes(tree, number, ids))) for number, graph_id in enumerate(ids)
        )


def _nodes(tree: schema.ModelT, number: int, ids: Sequence[str]) -> Iterator[Node]:
    graph, names = Subgraph(tree, number), Names()
    tensors = _Tensors(graph)
    inputs, outputs = graph.ends
    for index in inputs:
        tensor = tensors.of(index)
        node_id = names.new(tensor.name)
        tensors.made[index] = node_id, 0
        yield Node(id=node_id, op=INPUT, names=(tensor.name,), outputs=(tensor,))
    wired = [graph.wired(n) for n in range(len(graph.codes))]
    node_ids = []
    for code, (_, written) in zip(graph.codes, wired, strict=True):
        node_ids.append(names.new(tensors.of(written[0]).name if written else code))
        tensors.made |= {index: (node_ids[-1], slot) for slot, index in enumerate(written)}
    for n, (read_, written) in enumerate(wired):
        made = tuple(map(tensors.of, written))
        options = tree.subgraphs[number].operators[n].builtinOptions
        yield Node(
            id=node_ids[n],
            op=graph.codes[n],
            names=tuple(dict.fromkeys(tensor.name for tensor in made)),
            inputs=tuple(None if index < 0 else tensors.of(index) for index in read_),
            outputs=made,
            edges=tensors.edges(read_),
            macs=graph.macs_of(n),
            bodies=tuple(_bodies(options, ids)),
            attributes=dict(_options(options)),
        )
    for index in outputs:
        tensor = tensors.of(index)
        node_id = names.new(f"{tensor.name} (output)")
        yield Node(id=node_id, op=OUTPUT, names=(), inputs=(tensor,), edges=tensors.edges([index]))


class _Tensors:
    """The tensors of one subgraph, and which node makes each."""

    def __init__(self, graph: Subgraph) -> None:
        self._graph = graph
        self._known: dict[int, Tensor] = {}
        self._widened = {
            written[0]: read_[0]
            for number, code in enumerate(graph.codes)
            if code == "DEQUANTIZE"
            for read_, written in [graph.wired(number)]
            if read_ and written and graph.is_constant(read_[0])
        }
        self.made: dict[int, tuple[str, int]] = {}

    def of(self, index: int) -> Tensor:
        """A tensor by its number."""
        if index not in self._known:
            (spec,) = self._graph.specs([index])
            self._known[index] = Tensor(
                name=spec.name,
                dtype=spec.dtype,
                shape=spec.shape,
                stored=self._stored(index),
                constant=self._graph.is_constant(index),
                scale=spec.scale,
                zero_point=spec.zero_point,
            )
        return self._known[index]

    def _stored(self, index: int) -> str:
        """Of a weight that is widened when the file is loaded, the type in the file. (Of activations a DEQUANTIZE is
        executed as it stands: what reads it computes with floats.)"""
        return self._graph.specs([self._widened[index]])[0].dtype if index in self._widened else ""

    def edges(self, read: Sequence[int]) -> tuple[Edge, ...]:
        """From the nodes that make what is read."""
        return tuple(
            Edge(source=self.made[index][0], output=self.made[index][1], input=slot)
            for slot, index in enumerate(read)
            if index in self.made
        )


def _bodies(options: object, ids: Sequence[str]) -> Iterator[str]:
    for name in _BODIES:
        number = getattr(options, name, None)
        if isinstance(number, int) and 0 <= number < len(ids):
            yield ids[number]


def _options(options: object) -> Iterator[tuple[str, str]]:
    for name, value in sorted(vars(options).items()) if options is not None else ():
        if name not in _BODIES and value is not None:
            text = str(value)
            yield name, text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _text(value: bytes | str | None) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value or ""
