"""A graph without the nodes that are refused, so that the rest of it can be parsed."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx

from edgekit.graph import io

TYPES = frozenset(
    {
        *("FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE", "FLOAT8E4M3FN", "FLOAT4E2M1"),
        *("BOOL", "UINT8", "INT4", "INT8", "INT32", "INT64"),
    }
)
"""Types that the parser takes for inputs and outputs (that of TensorRT for RTX 1.7, asked for each)."""


_PLACES = ("INT32", "INT64", "BOOL")
"""Types of what may have been a shape or a place."""


@dataclass
class Cut:
    """A graph without what is refused: the results of a node that is cut out are inputs.

    Weights in files of their own are not read: what is written must lie beside the graph.
    """

    path: Path
    _proto: onnx.ModelProto | None = None
    _integers: set[str] = field(default_factory=set)

    @property
    def proto(self) -> onnx.ModelProto:
        """The graph as it is now."""
        if self._proto is None:
            self._proto = io.read_proto(self.path)
            self._infer()
        return self._proto

    def _infer(self) -> None:
        """Types of what edgekit's own rewrites made; a graph that cannot be inferred keeps what it has."""
        assert self._proto is not None
        try:
            self._proto = onnx.shape_inference.infer_shapes(self._proto)
        except (onnx.shape_inference.InferenceError, ValueError):
            return

    def may_mislead(self, node: str, ops: Collection[str]) -> bool:
        """Whether a refusal of ``node`` may come from the cut: it reads numbers that were shapes or places before,
        and no operator of its kind (``ops``) was refused in its own right."""
        if not self._integers:
            return False
        return any(
            n.name == node and n.op_type not in ops and self._integers.intersection(n.input)
            for graph in graphs(self.proto.graph)
            for n in graph.node
        )

    def out(self, names: set[str]) -> bool:
        """Cut out the nodes called ``names``, or that hold such a one; whether there was one, and all could be."""
        graph = self.proto.graph
        kept = [v for v in graph.output if v.name not in names]
        dropped = len(kept) < len(graph.output)
        del graph.output[:]
        graph.output.extend(kept)
        inner = self._out_of_bodies(names)
        refused = [n for n in graph.node if not (names - inner).isdisjoint(_names(n))]
        types = {v.name: v for v in (*graph.value_info, *graph.output)}
        for node in refused:  # grows: what reads a type that no input has goes with it
            readers = [n for n in graph.node if not _reads(n).isdisjoint(node.output) and n not in refused]
            for output in {o for n in readers for o in _reads(n)}.intersection(node.output):
                value = types.get(output)
                if value is None or not value.type.HasField("tensor_type"):
                    return False
                kind = onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type)
                if kind not in TYPES:
                    refused += [n for n in readers if output in _reads(n) and n not in refused]
                    continue
                if kind in _PLACES:
                    self._integers.add(output)
                graph.input.append(value)
        for node in refused:
            graph.node.remove(node)
        return dropped or bool(refused) or bool(inner)

    def _out_of_bodies(self, names: set[str]) -> set[str]:
        """Take refused nodes out of the bodies of If, Loop and Scan: what they gave comes in from outside. The names of
        those that could be; for the others the node that holds the body has to go."""
        done, main = set[str](), self.proto.graph
        for body in list(graphs(main))[1:]:
            types = {v.name: v for v in (*body.value_info, *body.output)}
            for place in reversed(range(len(body.node))):
                node = body.node[place]
                known = [types.get(o) for o in node.output if o]
                values = [v for v in known if v is not None and _input_can_be(v)]
                if node.name in names and len(values) == len(known):
                    done.add(node.name)
                    self._from_outside(body, place, values)
        return done

    def _from_outside(self, body: onnx.GraphProto, place: int, values: Sequence[onnx.ValueInfoProto]) -> None:
        name = body.node[place].name
        del body.node[place]
        for value in values:
            entry = self.proto.graph.input.add()
            entry.CopyFrom(value)
            entry.name = f"{value.name}/cut"
            if onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type) in _PLACES:
                self._integers.add(value.name)
            stand = onnx.helper.make_node("Identity", [entry.name], [value.name], name=f"{name}/{value.name}")
            body.node.insert(place, stand)

    def write(self, path: Path) -> None:
        """The rest, and of its outputs those that are still computed."""
        graph = self.proto.graph
        computed = {o for n in graph.node for o in n.output}
        model = onnx.ModelProto()
        model.CopyFrom(self.proto)
        del model.graph.output[:]
        model.graph.output.extend(v for v in graph.output if v.name in computed)
        read = set().union(*map(_reads, graph.node))
        del model.graph.initializer[:]
        model.graph.initializer.extend(t for t in graph.initializer if t.name in read)
        path.write_bytes(model.SerializeToString())


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """It, and the bodies of its nodes, those of their nodes and so on."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for body in (*((attribute.g,) if attribute.HasField("g") else ()), *attribute.graphs):
                yield from graphs(body)


def _input_can_be(value: onnx.ValueInfoProto) -> bool:
    kind = value.type.tensor_type
    return value.type.HasField("tensor_type") and onnx.TensorProto.DataType.Name(kind.elem_type) in TYPES


def _reads(node: onnx.NodeProto) -> set[str]:
    """What it reads, and what its subgraphs do."""
    inner = [n for a in node.attribute for graph in (a.g, *a.graphs) for n in graph.node]
    return {*filter(None, node.input)}.union(*map(_reads, inner))


def _names(node: onnx.NodeProto) -> Iterator[str]:
    """Its own, and those of the nodes of its subgraphs."""
    yield node.name
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                yield from _names(inner)
