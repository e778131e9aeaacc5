"""What the builder refuses, and says of no node: every kind of node is built alone."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import onnx

from edgekit.backends.nvidia.call import Job, call, named, readable
from edgekit.backends.nvidia.cut import Cut, graphs
from edgekit.errors import UnsupportedNode
from edgekit.graph import io
from edgekit.types import Target

_SECONDS = 120.0


def builder_refuses(job: Job, target: Target, modules: Mapping[str, str]) -> list[UnsupportedNode]:
    """The nodes that no engine can be built of alone: the builder often says of none that it was it."""
    assert job.engine is not None
    model, until = Cut(job.onnx).proto, time.monotonic() + _SECONDS
    sizes = _usual_sizes(model.graph, job)
    engine, part = job.engine.with_name(".alone.engine"), job.onnx.with_name(f".{job.onnx.name}.alone")
    reasons: dict[bytes, str] = {}
    found = []
    try:
        for node, single in _singles(model, sizes):
            if time.monotonic() > until:
                break
            like = onnx.GraphProto()
            like.CopyFrom(single.graph)
            _forget_names(like)
            key = like.SerializeToString(deterministic=True)
            if key not in reasons:
                part.write_bytes(single.SerializeToString())
                answer = call(replace(job, onnx=part, engine=engine, profiles={}), target, modules)
                reasons[key] = answer["failure"]
            if reasons[key]:
                found.append(named(node.op_type, node.name or "?", readable(reasons[key]), modules))
    finally:
        part.unlink(missing_ok=True)
        engine.unlink(missing_ok=True)
    return found


def layers_named(onnx_file: Path, failure: str, modules: Mapping[str, str]) -> list[UnsupportedNode]:
    """The one node whose layer the builder's words name: layers are called after nodes, with a number behind."""
    words = set(re.findall(r"[^\s\[\](){}+,;]+", failure))
    words |= {re.sub(r"(_\d+)+$", "", word) for word in words} | {
        re.sub(r"_\d+$", "", word) for word in words
    }
    nodes = [n for graph in graphs(io.read_proto(onnx_file).graph) for n in graph.node if n.name in words]
    exact = [n for n in nodes if f"{n.name}_" in failure] or nodes
    longest = max((len(n.name) for n in exact), default=0)
    found = [n for n in exact if len(n.name) == longest]
    return [named(n.op_type, n.name, failure, modules) for n in found] if len(found) == 1 else []


_Sizes = Mapping[str, int]


def _usual_sizes(graph: onnx.GraphProto, job: Job) -> _Sizes:
    """Sizes of dynamic axes by name: the usual ones of the job's profile."""
    return {
        dim.dim_param: size
        for value in graph.input
        if value.name in job.profiles
        for dim, size in zip(value.type.tensor_type.shape.dim, job.profiles[value.name][1], strict=False)
        if dim.dim_param
    }


def _singles(model: onnx.ModelProto, sizes: _Sizes) -> Iterator[tuple[onnx.NodeProto, onnx.ModelProto]]:
    """Each node, those in bodies too, with a graph of it alone; none where the shapes that it reads are not known."""
    types: dict[str, onnx.ValueInfoProto] = {}
    weights: dict[str, onnx.TensorProto] = {}
    for graph in graphs(model.graph):
        types |= {v.name: v for v in (*graph.value_info, *graph.input, *graph.output)}
        weights |= {t.name: t for t in graph.initializer}
    for graph in graphs(model.graph):
        for node in graph.node:
            made = _alone(node, types, weights, sizes)
            if made is not None:
                yield (
                    node,
                    onnx.helper.make_model(
                        made, opset_imports=model.opset_import, ir_version=model.ir_version
                    ),
                )


def _alone(
    node: onnx.NodeProto,
    types: Mapping[str, onnx.ValueInfoProto],
    weights: Mapping[str, onnx.TensorProto],
    sizes: _Sizes,
) -> onnx.GraphProto | None:
    """``None`` where the shapes of what it reads, or the types of what it gives, are not known, or it has a body."""
    reads = [name for name in dict.fromkeys(node.input) if name]
    values = [_fixed(types.get(name), sizes) for name in reads if name not in weights]
    results = [_fixed(types.get(name), sizes) for name in node.output if name]
    if any(a.HasField("g") for a in node.attribute) or not all(map(_is_static, values)):
        return None
    if any(v is None or not v.type.HasField("tensor_type") for v in results):
        return None
    return onnx.helper.make_graph(
        [node],
        "alone",
        [v for v in values if v is not None],
        [v for v in results if v is not None],  # sizes that depend on the data have none
        [weights[n] for n in reads if n in weights],
    )


def _fixed(value: onnx.ValueInfoProto | None, sizes: _Sizes) -> onnx.ValueInfoProto | None:
    """With numbers in the place of names of dimensions, where they are known."""
    if value is None or not value.type.tensor_type.HasField("shape"):
        return value
    fixed = onnx.ValueInfoProto()
    fixed.CopyFrom(value)
    for dim in fixed.type.tensor_type.shape.dim:
        if dim.dim_param in sizes:
            dim.dim_value = sizes[dim.dim_param]
    return fixed


def _is_static(value: onnx.ValueInfoProto | None) -> bool:
    if value is None or not value.type.tensor_type.HasField("shape"):
        return False
    return all(d.HasField("dim_value") for d in value.type.tensor_type.shape.dim)


def _forget_names(graph: onnx.GraphProto) -> None:
    """So that nodes of one kind, with the same attributes and shapes, are asked for once."""
    names = {
        name: str(i) for i, name in enumerate(dict.fromkeys([*graph.node[0].input, *graph.node[0].output]))
    }
    node = graph.node[0]
    node.ClearField("name")
    node.ClearField("doc_string")
    node.ClearField("metadata_props")
    node.input[:] = [names[n] for n in node.input]
    node.output[:] = [names[n] for n in node.output]
    for value in (*graph.input, *graph.output):
        value.name = names[value.name]
    for tensor in graph.initializer:
        tensor.CopyFrom(
            onnx.TensorProto(name=names[tensor.name], dims=tensor.dims, data_type=tensor.data_type)
        )
