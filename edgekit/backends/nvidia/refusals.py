"""What the parser and the builder refuse of a graph: every node at once, in words.

The parser goes on behind an operator that it has no conversion for, and stops at a node whose attributes or types it
does not take. So what it refused is cut out of the graph (what the node gave becomes an input) and the rest is parsed
again, until nothing more is refused.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from edgekit.backends.nvidia import worker
from edgekit.backends.nvidia.alone import builder_refuses, layers_named
from edgekit.backends.nvidia.call import Job, call, located, named, readable
from edgekit.backends.nvidia.cut import TYPES, Cut
from edgekit.errors import BackendError, UnsupportedNode, UnsupportedOperatorsError
from edgekit.graph import io
from edgekit.graph.edit import integers
from edgekit.types import Target

_ROUNDS = 64
_SECONDS = 120.0
"""How often, and how long, a graph is parsed again for what else is refused."""


@dataclass(frozen=True, kw_only=True)
class Taken:
    """A graph that was not refused, by which version and in how many layers; ``unchecked``: nodes that TensorRT has a
    plugin for, and the parser that was asked has not. The device decides on them."""

    version: str
    layers: int
    unchecked: tuple[UnsupportedNode, ...] = ()


def run_worker(job: Job, target: Target, modules: Mapping[str, str]) -> Taken:
    """Parse and build in a fresh process.

    Raises :class:`UnsupportedOperatorsError` with all nodes that the parser or the rules refuse,
    :class:`RuntimeCrashError` when the library ended the process, :class:`BackendError` otherwise.
    """
    problems = static_problems(job.onnx, modules, built=job.engine is not None)
    answer = call(job, target, modules)
    unchecked: list[UnsupportedNode] = []
    if problems or answer["errors"]:
        found = _all_refused(job, target, modules, problems, answer)
        if found.refused:
            raise UnsupportedOperatorsError(target.name, found.refused)
        answer, unchecked = found.answer, found.unchecked
    if answer["failure"] and not unchecked:
        _refuse_to_build(job, target, modules, answer)
    return Taken(version=answer["version"], layers=answer["layers"], unchecked=tuple(unchecked))


def _refuse_to_build(job: Job, target: Target, modules: Mapping[str, str], answer: worker.Answer) -> None:
    """Raise for a graph that is parsed, and that no engine is made of: by node where it is one's fault on every GPU."""
    failure = readable(answer["failure"])
    here = failure
    if job.engine is not None:
        refused = builder_refuses(replace(job, compute_capabilities=()), target, modules)
        if not refused and not job.compute_capabilities:
            refused = layers_named(job.onnx, failure, modules)
        if refused:
            raise UnsupportedOperatorsError(target.name, refused)
        guilty = builder_refuses(job, target, modules) if job.compute_capabilities else []
        if guilty:
            here += "; it is " + ", ".join(f"{n.op} at {n.node}" for n in guilty[:5])
            here += f" and {len(guilty) - 5} more" if len(guilty) > 5 else ""
    raise BackendError(
        f"{job.module} {answer['version']} cannot build {target.name}: " + located(here, modules),
        hint="try other compute capabilities (--set compute_capabilities=SM86,SM89), or another target",
    )


# --- by rules -----------------------------------------------------------------------------------------------


def static_problems(path: Path, modules: Mapping[str, str], *, built: bool = False) -> list[UnsupportedNode]:
    """What is known to be refused without a parser: types at the boundary, what Q/DQ must not be, and, where no engine
    is ``built`` here, what parsers take and no builder."""
    graph = io.load(path).graph
    problems = [
        UnsupportedNode(op=kind, node=value.name or "?", reason=f"TensorRT has no {_type(value)} tensors")
        for kind, values in (("input", graph.inputs), ("output", graph.outputs))
        for value in values
        if value.dtype is None or value.dtype.name not in TYPES
    ]
    for node in graph.all_nodes():
        reason = ""
        stored = node.inputs[0].dtype if node.inputs and node.inputs[0] is not None else None
        if node.op_type == "DequantizeLinear" and stored == ir.DataType.INT32:
            reason = "TensorRT takes no DequantizeLinear on INT32: keep the bias in float32"
        elif node.op_type in ("DequantizeLinear", "QuantizeLinear") and _shifted(node):
            reason = "TensorRT takes symmetric quantization only: the zero point must be 0"
        elif node.op_type == "ConvTranspose" and not built and _spread(node):
            reason = "TensorRT builds no transposed convolution with both strides and dilations"
        else:
            reason = "; ".join(
                f"it reads {_type(v)} constants, and TensorRT has none" for v in _foreign(node)
            )
        if reason:
            problems.append(named(node.op_type, node.name or "?", reason, modules))
    return problems


def _foreign(node: ir.Node) -> list[ir.Value]:
    """The constants that it reads of types that the parser reads no constant of: it stops before the first node."""
    read = [v for v in node.inputs if v is not None and v.is_initializer() and v.dtype is not None]
    return [v for v in read if v.dtype is not None and v.dtype.name not in TYPES]


def _type(value: ir.Value) -> str:
    return str(value.type) if value.dtype is None else value.dtype.name.lower()


def _spread(node: ir.Node) -> bool:
    return all(max(integers(node, name) or [1]) > 1 for name in ("strides", "dilations"))


def _shifted(node: ir.Node) -> bool:
    zero_point = node.inputs[2] if len(node.inputs) > 2 else None
    constant = zero_point.const_value if zero_point is not None else None
    return constant is not None and bool(constant.numpy().astype("int64").any())


# --- by the parser ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Found:
    """What is refused; what only the device can tell; and the answer to the rest of the graph."""

    refused: list[UnsupportedNode]
    unchecked: list[UnsupportedNode]
    answer: worker.Answer


_BROUGHT = frozenset({"DeformConv", "NonZero", "RoiAlign"})
"""ONNX operators that TensorRT's parser makes a plugin of that TensorRT brings and TensorRT for RTX does not (the table
of operators of onnx-tensorrt, against what the parser of TensorRT for RTX 1.7 says)."""


def _all_refused(
    job: Job,
    target: Target,
    modules: Mapping[str, str],
    problems: list[UnsupportedNode],
    answer: worker.Answer,
) -> _Found:
    """``problems``, what the parser said in ``answer``, and what it says of the rest of the graph."""
    found = list(problems)
    cut = Cut(job.onnx)
    until = time.monotonic() + _SECONDS
    part = job.onnx.with_name(f".{job.onnx.name}.rest")
    elsewhere = target.backend == "tensorrt" and job.module != "tensorrt"
    brought: set[str] = set()
    whole = False
    try:
        for number in range(_ROUNDS):
            known = {p.node for p in found}
            fresh = [e for e in answer["errors"] if e["node"] not in known]
            if (
                problems or number
            ):  # what it says of no node the rules say of one, or it is of an input of the cut
                fresh = [e for e in fresh if e["node"]]
            if elsewhere:
                brought |= {e["node"] for e in fresh if e["plugin"] and e["op"] in _BROUGHT}
            ops = {p.op for p in found}
            found += [
                named(e["op"] or "graph", e["node"] or "?", readable(e["message"]), modules)
                for e in fresh
                if not cut.may_mislead(e["node"], ops)
            ]
            names = {p.node for p in found} | {e["node"] for e in fresh}
            whole = not answer["errors"] and not answer["failure"]
            if whole or not cut.out(names) or time.monotonic() > until:
                break
            cut.write(part)
            answer = call(replace(job, onnx=part, engine=None), target, modules)
    finally:
        part.unlink(missing_ok=True)
    places = {name: i for i, name in enumerate(modules, 1)}
    found.sort(key=lambda p: places.get(p.node, 0))
    if not whole:
        found[-1] = replace(found[-1], reason=found[-1].reason + _NOT_WHOLE)
    return _Found(
        refused=[p for p in found if p.node not in brought],
        unchecked=[p for p in found if p.node in brought],
        answer=answer,
    )


_NOT_WHOLE = " (the rest of the graph could not be parsed without it: more may be refused)"
