"""What the parser and the builder refuse of a graph: every node at once, in words.

The parser goes on behind an operator that it has no conversion for, and stops at a node whose attributes or types it
does not take. So what it refused is cut out of the graph (what the node gave becomes an input) and the rest is parsed
again, until nothing more is refused.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx
import onnx_ir as ir

from edgekit.backends.nvidia import worker
from edgekit.backends.nvidia.profiles import Profiles
from edgekit.errors import BackendError, RuntimeCrashError, UnsupportedNode, UnsupportedOperatorsError
from edgekit.graph import io
from edgekit.types import Target

_TYPES = frozenset(
    {
        *("FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE", "FLOAT8E4M3FN", "FLOAT4E2M1"),
        *("BOOL", "UINT8", "INT4", "INT8", "INT32", "INT64"),
    }
)
"""Types that the parser takes for inputs and outputs (that of TensorRT for RTX 1.7, asked for each)."""

_ROUNDS = 64
_SECONDS = 120.0
"""How often, and how long, a graph is parsed again for what else is refused."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What the worker is asked to do; see :mod:`edgekit.backends.nvidia.worker`."""

    module: str
    onnx: Path
    engine: Path | None = None
    compute_capabilities: tuple[str, ...] = ()
    profiles: Profiles
    tf32: bool = False


def run_worker(job: Job, target: Target, modules: Mapping[str, str]) -> worker.Answer:
    """Parse and build in a fresh process.

    Raises :class:`UnsupportedOperatorsError` with all nodes that the parser or the rules refuse,
    :class:`RuntimeCrashError` when the library ended the process, :class:`BackendError` otherwise.
    """
    problems = static_problems(job.onnx, modules)
    answer = _call(job, target, modules)
    if problems or answer["errors"]:
        raise UnsupportedOperatorsError(target.name, _all_refused(job, target, modules, problems, answer))
    if answer["failure"]:
        failure = readable(answer["failure"])
        if job.engine is not None and not job.compute_capabilities:
            refused = _builder_refuses(job, target, modules)
            if refused:
                raise UnsupportedOperatorsError(target.name, refused)
        raise BackendError(
            f"{job.module} {answer['version']} cannot build {target.name}: " + _located(failure, modules),
            hint="try other compute capabilities (--set compute_capabilities=SM86,SM89), or another target",
        )
    return answer


# --- by rules -----------------------------------------------------------------------------------------------


def static_problems(path: Path, modules: Mapping[str, str]) -> list[UnsupportedNode]:
    """What is known to be refused without a parser: types at the boundary, and what Q/DQ must not be."""
    graph = io.load(path).graph
    problems = [
        UnsupportedNode(op=kind, node=value.name or "?", reason=f"TensorRT has no {_type(value)} tensors")
        for kind, values in (("input", graph.inputs), ("output", graph.outputs))
        for value in values
        if value.dtype is None or value.dtype.name not in _TYPES
    ]
    for node in graph:
        reason = ""
        stored = node.inputs[0].dtype if node.inputs and node.inputs[0] is not None else None
        if node.op_type == "DequantizeLinear" and stored == ir.DataType.INT32:
            reason = "TensorRT takes no DequantizeLinear on INT32: keep the bias in float32"
        elif node.op_type in ("DequantizeLinear", "QuantizeLinear") and _shifted(node):
            reason = "TensorRT takes symmetric quantization only: the zero point must be 0"
        else:
            reason = "; ".join(
                f"it reads {_type(v)} constants, and TensorRT has none" for v in _foreign(node)
            )
        if reason:
            problems.append(_named(node.op_type, node.name or "?", reason, modules))
    return problems


def _foreign(node: ir.Node) -> list[ir.Value]:
    """The constants that it reads of types that the parser reads no constant of: it stops before the first node."""
    read = [v for v in node.inputs if v is not None and v.is_initializer() and v.dtype is not None]
    return [v for v in read if v.dtype is not None and v.dtype.name not in _TYPES]


def _type(value: ir.Value) -> str:
    return str(value.type) if value.dtype is None else value.dtype.name.lower()


def _shifted(node: ir.Node) -> bool:
    zero_point = node.inputs[2] if len(node.inputs) > 2 else None
    constant = zero_point.const_value if zero_point is not None else None
    return constant is not None and bool(constant.numpy().astype("int64").any())


def _named(op: str, node: str, reason: str, modules: Mapping[str, str]) -> UnsupportedNode:
    return UnsupportedNode(op=op, node=node, reason=reason, module_path=modules.get(node, ""))


# --- by the parser ------------------------------------------------------------------------------------------


def _all_refused(
    job: Job,
    target: Target,
    modules: Mapping[str, str],
    problems: list[UnsupportedNode],
    answer: worker.Answer,
) -> list[UnsupportedNode]:
    """``problems``, what the parser said in ``answer``, and what it says of the rest of the graph."""
    found = list(problems)
    cut = _Cut(job.onnx)
    until = time.monotonic() + _SECONDS
    part = job.onnx.with_name(f".{job.onnx.name}.rest")
    whole = False
    try:
        for _ in range(_ROUNDS):
            known = {p.node for p in found}
            fresh = [e for e in answer["errors"] if e["node"] not in known]
            if problems:  # what it says of no node is what the rules say of one
                fresh = [e for e in fresh if e["node"]]
            ops = {p.op for p in found}
            found += [
                _named(e["op"] or "graph", e["node"] or "?", readable(e["message"]), modules)
                for e in fresh
                if not cut.may_mislead(e["node"], ops)
            ]
            names = {p.node for p in found} | {e["node"] for e in fresh}
            whole = not answer["errors"] and not answer["failure"]
            if whole or not cut.out(names) or time.monotonic() > until:
                break
            cut.write(part)
            answer = _call(replace(job, onnx=part, engine=None), target, modules)
    finally:
        part.unlink(missing_ok=True)
    places = {name: i for i, name in enumerate(modules, 1)}
    found.sort(key=lambda p: places.get(p.node, 0))
    if not whole:
        found[-1] = replace(found[-1], reason=found[-1].reason + _NOT_WHOLE)
    return found


_NOT_WHOLE = " (the rest of the graph could not be parsed without it: more may be refused)"


@dataclass
class _Cut:
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
            for n in self.proto.graph.node
        )

    def out(self, names: set[str]) -> bool:
        """Cut out the nodes called ``names``, or that hold such a one; whether there was one, and all could be."""
        graph = self.proto.graph
        kept = [v for v in graph.output if v.name not in names]
        dropped = len(kept) < len(graph.output)
        del graph.output[:]
        graph.output.extend(kept)
        refused = [n for n in graph.node if not names.isdisjoint(_names(n))]
        types = {v.name: v for v in (*graph.value_info, *graph.output)}
        for node in refused:  # grows: what reads a type that no input has goes with it
            readers = [n for n in graph.node if not _reads(n).isdisjoint(node.output) and n not in refused]
            for output in {o for n in readers for o in _reads(n)}.intersection(node.output):
                value = types.get(output)
                if value is None or not value.type.HasField("tensor_type"):
                    return False
                kind = onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type)
                if kind not in _TYPES:
                    refused += [n for n in readers if output in _reads(n) and n not in refused]
                    continue
                if kind in ("INT32", "INT64", "BOOL"):
                    self._integers.add(output)
                graph.input.append(value)
        for node in refused:
            graph.node.remove(node)
        return dropped or bool(refused)

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


def _builder_refuses(job: Job, target: Target, modules: Mapping[str, str]) -> list[UnsupportedNode]:
    """The nodes that no engine can be built of alone: the builder often says of none that it was it."""
    assert job.engine is not None
    graph, until = _Cut(job.onnx).proto, time.monotonic() + _SECONDS
    engine, part = job.engine.with_name(".alone.engine"), job.onnx.with_name(f".{job.onnx.name}.alone")
    reasons: dict[bytes, str] = {}
    found = []
    try:
        for node in graph.graph.node:
            model = _alone(graph, node)
            if model is None or time.monotonic() > until:
                continue
            like = onnx.GraphProto()
            like.CopyFrom(model.graph)
            _forget_names(like)
            key = like.SerializeToString(deterministic=True)
            if key not in reasons:
                part.write_bytes(model.SerializeToString())
                answer = _call(replace(job, onnx=part, engine=engine, profiles={}), target, modules)
                reasons[key] = answer["failure"]
            if reasons[key]:
                found.append(_named(node.op_type, node.name or "?", readable(reasons[key]), modules))
    finally:
        part.unlink(missing_ok=True)
        engine.unlink(missing_ok=True)
    return found


def _alone(model: onnx.ModelProto, node: onnx.NodeProto) -> onnx.ModelProto | None:
    """A graph of one node; ``None`` where shapes are not known or weights lie in another file."""
    graph = model.graph
    types = {v.name: v for v in (*graph.value_info, *graph.input, *graph.output)}
    weights = {t.name: t for t in graph.initializer}
    reads = [name for name in dict.fromkeys(node.input) if name]
    values = [types.get(name) for name in reads if name not in weights]
    results = [types.get(name) for name in node.output if name]
    if any(a.HasField("g") for a in node.attribute) or not all(map(_is_static, (*values, *results))):
        return None
    made = onnx.helper.make_graph(
        [node],
        "alone",
        [v for v in values if v is not None],
        [v for v in results if v is not None],
        [weights[n] for n in reads if n in weights],
    )
    return onnx.helper.make_model(made, opset_imports=model.opset_import, ir_version=model.ir_version)


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


def _call(job: Job, target: Target, modules: Mapping[str, str]) -> worker.Answer:
    request: worker.Job = {
        "module": job.module,
        "onnx": str(job.onnx),
        "engine": str(job.engine) if job.engine else None,
        "compute_capabilities": list(job.compute_capabilities),
        "profiles": {name: [list(s) for s in shapes] for name, shapes in job.profiles.items()},
        "tf32": job.tf32,
    }
    argv = [sys.executable, "-I", str(Path(worker.__file__))]
    process = subprocess.run(
        argv, input=json.dumps(request), capture_output=True, text=True, errors="replace", check=False
    )
    try:
        answer: worker.Answer = json.loads(process.stdout)
    except json.JSONDecodeError as e:
        lines = process.stderr.splitlines()
        at = next((line[3:] for line in reversed(lines) if line.startswith("AT ")), "")
        said = " ".join(line for line in lines if not line.startswith("AT ")).strip()[-400:]
        raise RuntimeCrashError(
            f"{job.module} ended its process while it built {target.name} (exit status {process.returncode})"
            + (f", the last node that it parsed being {_located(at, modules)}" if at else "")
            + (f": {said}" if said else ""),
            hint="the other targets are not affected; report the model to edgekit",
        ) from e
    return answer


# --- in words -----------------------------------------------------------------------------------------------

_WORDS = (
    r"MyelinCheckException: \S+ CHECK\([^)]*\) failed\. (.+?)(?: In \S+ at \S+)?\)?$",  # of its compiler
    r'&& "(.+)"$',  # a condition, and what it means
    r"^\S+: Error Code \d+: [\w ]+ \((.*?)(?: In \S+ at \S+)?\)?$",  # of the network's own checks
    r"^\[\S+\] Error Code \d+: [\w ]+ \((.*?)(?: In \S+ at \S+)?\)?$",
    r"^Assertion failed: .*?[^:]: (.+)$",
    r"^Assertion failed: (.+)$",
)


def readable(message: str) -> str:
    """The library's assertions as the sentence in them, or in words where they say too little."""
    if message == "false":
        return "TensorRT's parser has no conversion for it"
    if message == "Unsupported reduction type":
        return "it scatters without a reduction only"
    if "Plugin not found" in message:
        return "neither a TensorRT operator nor a plugin of that name"
    message = message.removeprefix("the builder made no engine: ")
    found = next(filter(None, (re.search(pattern, message) for pattern in _WORDS)), None)
    return found.group(1).strip() if found else message


def _located(text: str, modules: Mapping[str, str]) -> str:
    """``text`` with the modules of the nodes that are named in it."""
    words = set(re.findall(r"[^\s\[\](){}+,;]+", text))
    where = sorted({modules[w] for w in words if modules.get(w)})
    return f"{text} (module {', '.join(where)})" if where else text
