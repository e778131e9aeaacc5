"""The ONNX that TensorRT takes: strongly typed, so that every precision is spelled in the graph."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import onnx_ir as ir

from edgekit.backends.base import beyond_float16, kept_float32
from edgekit.backends.nvidia import worker
from edgekit.backends.nvidia.plain import write_plainly
from edgekit.errors import (
    BackendError,
    ConfigError,
    RuntimeCrashError,
    UnknownNameError,
    UnsupportedNode,
    UnsupportedOperatorsError,
)
from edgekit.graph import io
from edgekit.graph.passes.half import BFLOAT16, FLOAT16, HalfType, to_half
from edgekit.types import OnnxModel, Option, Precision, Target, TensorSpec

Profiles: TypeAlias = Mapping[str, tuple[tuple[int, ...], ...]]
"""Smallest, usual and largest shape by the input's name."""

BATCH = (1, 1, 8)
OTHER = (1, 128, 512)
"""Smallest, usual and largest size of a dynamic dimension that no option names: the first dimension, the others."""


@dataclass(frozen=True, kw_only=True)
class Portable:
    """The ONNX file beside the engine, and what was noted while it was made."""

    model: OnnxModel
    modules: Mapping[str, str]
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Job:
    """What the worker is asked to do; see :mod:`edgekit.backends.nvidia.worker`."""

    module: str
    onnx: Path
    engine: Path | None = None
    compute_capabilities: tuple[str, ...] = ()
    profiles: Profiles
    tf32: bool = False


def write_portable(model: OnnxModel, target: Target, path: Path, options: Mapping[str, Option]) -> Portable:
    """Write the ONNX in the target's precision, float32 at the boundary, without metadata."""
    source = io.load(model.path)
    modules = {node.name: io.module_path(node) for node in source.graph if node.name}
    notes = [*write_plainly(source)]
    if target.precision in _HALVES:
        notes += _to_half(source, _HALVES[target.precision], kept_float32(options))
    io.strip_metadata(source, keep=())
    return Portable(model=io.save(source, path), modules=modules, notes=tuple(notes))


_HALVES = {Precision.FP16: FLOAT16, Precision.BF16: BFLOAT16}


def _to_half(model: ir.Model, half: HalfType, wide: Collection[str]) -> Iterator[str]:
    report = to_half(model, half, keep=wide)
    name = half.dtype.name.lower()
    yield f"{len(report.converted)} nodes in {name}, {len(report.kept)} kept in float32"
    yield from beyond_float16(wide)
    for what, names in (
        (f"clamped to {name}'s range", report.clamped),
        (f"raised to {half.tiny:.1e}", report.flushed),
    ):
        if names:
            yield f"constants {what}: {', '.join(names)}"


def profiles(inputs: Sequence[TensorSpec], text: str) -> Profiles:
    """Smallest, usual and largest shape of every input with dynamic dimensions.

    ``text`` is the option ``axes``: ``"batch=1:1:8,sequence=1:128:512"``. Raises for a dimension that the
    model does not have and for sizes out of order.
    """
    sizes = dict(_axis(part) for part in text.split(",") if part.strip())
    names = {d for spec in inputs for d in spec.shape if isinstance(d, str)}
    for name in sizes:
        if name not in names:
            raise UnknownNameError("dynamic dimension", name, names, where="--set axes")
    shapes = {}
    for spec in inputs:
        if not spec.is_static:
            triples = [
                (d, d, d) if isinstance(d, int) else sizes.get(d, BATCH if i == 0 else OTHER)
                for i, d in enumerate(spec.shape)
            ]
            shapes[spec.name] = tuple(zip(*triples, strict=True))
    return shapes


def _axis(part: str) -> tuple[str, tuple[int, int, int]]:
    name, _, numbers = part.strip().partition("=")
    try:
        low, usual, high = (int(n) for n in numbers.split(":"))
    except ValueError as e:
        raise ConfigError(f"--set axes: {part.strip()!r}", hint="write name=smallest:usual:largest") from e
    if not 0 < low <= usual <= high:
        raise ConfigError(
            f"--set axes: {part.strip()!r} is out of order", hint="smallest ≤ usual ≤ largest, all above 0"
        )
    return name, (low, usual, high)


def static_problems(path: Path, modules: Mapping[str, str]) -> list[UnsupportedNode]:
    """What TensorRT's parser refuses in Q/DQ graphs: all of it, where the parser stops at the first."""
    problems = []
    for node in io.load(path).graph:
        reason = ""
        stored = node.inputs[0].dtype if node.inputs and node.inputs[0] is not None else None
        if node.op_type == "DequantizeLinear" and stored == ir.DataType.INT32:
            reason = "TensorRT takes no DequantizeLinear on INT32: keep the bias in float32"
        elif node.op_type in ("DequantizeLinear", "QuantizeLinear") and _shifted(node):
            reason = "TensorRT takes symmetric quantization only: the zero point must be 0"
        if reason:
            name = node.name or "?"
            problems.append(
                UnsupportedNode(op=node.op_type, node=name, reason=reason, module_path=modules.get(name, ""))
            )
    return problems


def _shifted(node: ir.Node) -> bool:
    zero_point = node.inputs[2] if len(node.inputs) > 2 else None
    constant = zero_point.const_value if zero_point is not None else None
    return constant is not None and bool(constant.numpy().astype("int64").any())


def run_worker(job: Job, target: Target, modules: Mapping[str, str]) -> worker.Answer:
    """Parse and build in a fresh process.

    Raises :class:`UnsupportedOperatorsError` with all nodes that the parser or the rules refuse,
    :class:`RuntimeCrashError` when the library ended the process, :class:`BackendError` otherwise.
    """
    problems = static_problems(job.onnx, modules)
    answer = _call(job, target)
    reported = {p.node for p in problems}
    problems += [
        UnsupportedNode(
            op=e["op"] or "graph",
            node=e["node"] or "input or output",
            reason=_readable(e["message"]),
            module_path=modules.get(e["node"], ""),
        )
        for e in answer["errors"]
        if e["node"] not in reported
    ]
    if problems:
        raise UnsupportedOperatorsError(target.name, problems)
    if answer["failure"]:
        raise BackendError(
            f"{job.module} {answer['version']} cannot build {target.name}: {answer['failure']}",
            hint="try other compute capabilities (--set compute_capabilities=SM86,SM89), or another target",
        )
    return answer


def _readable(message: str) -> str:
    """The parser's assertions, in words where they say too little."""
    if message == "false":
        return "TensorRT's parser has no conversion for it"
    if "Plugin not found" in message:
        return "neither a TensorRT operator nor a plugin of that name"
    return message.removeprefix("Assertion failed: ")


def _call(job: Job, target: Target) -> worker.Answer:
    request: worker.Job = {
        "module": job.module,
        "onnx": str(job.onnx),
        "engine": str(job.engine) if job.engine else None,
        "compute_capabilities": list(job.compute_capabilities),
        "profiles": {name: [list(s) for s in shapes] for name, shapes in job.profiles.items()},
        "tf32": job.tf32,
    }
    argv = [sys.executable, "-I", str(Path(worker.__file__))]
    process = subprocess.run(argv, input=json.dumps(request), capture_output=True, text=True, check=False)
    try:
        answer: worker.Answer = json.loads(process.stdout)
    except json.JSONDecodeError as e:
        raise RuntimeCrashError(
            f"{job.module} ended its process while it built {target.name} (exit status {process.returncode}): "
            + process.stderr.strip()[-400:],
            hint="the other targets are not affected; report the model to edgekit",
        ) from e
    return answer


def compute_capabilities(text: Option) -> tuple[str, ...]:
    """``"SM86,8.9"`` → ``("SM86", "SM89")``."""
    names = tuple(
        p.strip().upper().removeprefix("SM").replace(".", "") for p in str(text).split(",") if p.strip()
    )
    for name in names:
        if not re.fullmatch(r"[1-9]\d{1,2}", name, re.ASCII):
            raise ConfigError(f"compute capability {name[:20]!r}", hint="for example SM86,SM89 or 8.6,8.9")
    return tuple(dict.fromkeys(f"SM{name}" for name in names))
