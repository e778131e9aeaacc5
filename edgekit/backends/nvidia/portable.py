"""The ONNX that TensorRT takes: strongly typed, so that every precision is spelled in the graph."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from edgekit.backends.base import beyond_float16, kept_float32
from edgekit.backends.nvidia.plain import write_plainly
from edgekit.graph import io
from edgekit.graph.passes.half import BFLOAT16, FLOAT16, HalfType, to_half
from edgekit.types import OnnxModel, Option, Precision, Target


@dataclass(frozen=True, kw_only=True)
class Portable:
    """The ONNX file beside the engine, and what was noted while it was made."""

    model: OnnxModel
    modules: Mapping[str, str]
    notes: tuple[str, ...]


def write_portable(model: OnnxModel, target: Target, path: Path, options: Mapping[str, Option]) -> Portable:
    """Write the ONNX in the target's precision, float32 at the boundary, without metadata."""
    source = io.load(model.path)
    _name_all(source)
    notes = [*write_plainly(source)]
    if target.precision in _HALVES:
        notes += _to_half(source, _HALVES[target.precision], kept_float32(options))
    modules = {node.name: io.module_path(node) for node in source.graph.all_nodes() if node.name}
    io.strip_metadata(source, keep=())
    return Portable(model=io.save(source, path), modules=modules, notes=tuple(notes))


def _name_all(model: ir.Model) -> None:
    """A refusal names its node: what has no name, or that of another, gets one after its operator."""
    taken: set[str] = set()
    for node in model.graph.all_nodes():
        name = node.name or node.op_type
        count = 0
        while not node.name or node.name in taken:
            node.name, count = f"{name}_{count}", count + 1
        taken.add(node.name)


_HALVES = {Precision.FP16: FLOAT16, Precision.BF16: BFLOAT16}


def _to_half(model: ir.Model, half: HalfType, wide: Collection[str]) -> Iterator[str]:
    uneven = [n.name for n in model.graph if n.name and _has_lengths(n)]
    mixed = [n.name for n in model.graph if n.name and half is BFLOAT16 and n.op_type == "GRU"]
    report = to_half(model, half, keep={*wide, *uneven, *mixed})
    name = half.dtype.name.lower()
    yield f"{len(report.converted)} nodes in {name}, {len(report.kept)} kept in float32"
    yield from beyond_float16(wide)
    if uneven:
        yield f"recurrent layers with sequence lengths, kept in float32: {', '.join(uneven)}"
    if mixed:  # the parser takes one of its gates from a 1 that is float32
        yield f"GRU layers, of which the parser takes none in {name}, kept in float32: {', '.join(mixed)}"
    for what, names in (
        (f"clamped to {name}'s range", report.clamped),
        (f"raised to {half.tiny:.1e}", report.flushed),
    ):
        if names:
            yield f"constants {what}: {', '.join(names)}"


def _has_lengths(node: ir.Node) -> bool:
    """A recurrent layer whose sequences end apart: the parser fills their ends with zeros of float32, whatever the
    layer's type, and then refuses the mixture."""
    recurrent = node.op_type in ("LSTM", "GRU", "RNN")
    return recurrent and len(node.inputs) > _LENGTHS and node.inputs[_LENGTHS] is not None


_LENGTHS = 4
"""The place of ``sequence_lens`` among a recurrent operator's inputs."""
