"""ONNX → the ONNX that ships: checked against the runtime's kernels, stripped, in the oldest format it allows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import onnx
import onnx_ir as ir

from edgekit.backends.base import beyond_float16, kept_float32
from edgekit.backends.onnxruntime.fusions import keep_normalizations_apart
from edgekit.backends.onnxruntime.kernels import refuse_unsupported
from edgekit.backends.onnxruntime.ortformat import write_ort
from edgekit.graph import io
from edgekit.graph.edit import attribute, integers, static_shape
from edgekit.graph.passes.half import to_half
from edgekit.graph.weights import integer_share
from edgekit.types import Lowered, OnnxModel, Option, Precision, Target

_FIRST_RELEASE = {
    17: "1.12",
    18: "1.14",
    19: "1.15",
    20: "1.17",
    21: "1.18",
    22: "1.21",
    23: "1.23",
    24: "1.24",
}
"""Opset → the first ONNX Runtime that loads it; 21 to 24 tried on releases 1.19 to 1.24, the others by their notes."""


def lower(model: OnnxModel, target: Target, options: Mapping[str, Option], out: Path) -> Lowered:
    """Write ``model.onnx`` (and ``model.ort``) into ``out``.

    Raises :class:`UnsupportedOperatorsError` with every node for which the installed runtime has no kernel.
    """
    onnx_model = io.load(model.path)
    refuse_unsupported(onnx_model, target)
    notes = list(_to_half(onnx_model, options)) if target.precision is Precision.FP16 else []
    keep_normalizations_apart(onnx_model.graph)
    _round_down(onnx_model)
    _strip(onnx_model)
    written = io.save(onnx_model, out / target.file)
    files = [target.file, *(f.name for f in io.external_files(written.path))]
    if options.get("ort_format"):
        files.append(write_ort(written.path, out / "model.ort"))
        notes.append(
            "model.ort: the graph after ONNX Runtime's extended optimizations, for its mobile builds"
        )
    return Lowered(
        files=tuple(files),
        inputs=written.inputs,
        outputs=written.outputs,
        runtime=dict(target.runtime),
        minimum_runtime=minimum_runtime(written.opset),
        notes=tuple(notes),
        integer_weights=integer_share(io.constants(written.path)),
    )


def minimum_runtime(opset: int) -> str:
    """The oldest ONNX Runtime release that implements ``opset``."""
    return _FIRST_RELEASE[min(max(opset, min(_FIRST_RELEASE)), max(_FIRST_RELEASE))]


def _to_half(model: ir.Model, options: Mapping[str, Option]) -> Iterator[str]:
    wide = kept_float32(options)
    report = to_half(model, keep=wide)
    yield f"{len(report.converted)} nodes in float16, {len(report.kept)} kept in float32"
    yield from beyond_float16(wide)
    if report.clamped:
        yield f"constants clamped to float16's range: {', '.join(report.clamped)}"
    if report.flushed:
        yield f"constants raised to the smallest positive float16: {', '.join(report.flushed)}"


def _round_down(model: ir.Model) -> None:
    """Pools that round up to what rounding down gives: ONNX Runtime's kernels leave out a window that begins in the
    margin, its inference of shapes counts it, and then refuses to load what reads the result."""
    for node in model.graph:
        if not node.op_type.endswith("Pool") or not attribute(node, "ceil_mode", 0):
            continue
        before, after = static_shape(node.inputs[0]), static_shape(node.outputs[0])
        kernel = integers(node, "kernel_shape")
        if before is None or after is None or not kernel:
            continue
        rank = len(kernel)
        strides, dilations = (integers(node, n) or [1] * rank for n in ("strides", "dilations"))
        pads = integers(node, "pads") or [0] * 2 * rank
        down = [
            (n + pads[i] + pads[i + rank] - dilations[i] * (kernel[i] - 1) - 1) // strides[i] + 1
            for i, n in enumerate(before[2:])
        ]
        if down == list(after[2:]):
            node.attributes["ceil_mode"] = ir.AttrInt64("ceil_mode", 0)


def _strip(model: ir.Model) -> None:
    """Names stay (placement is told by them); documentation, metadata and inferred shapes go."""
    io.strip_metadata(model, keep=())
    for node in model.graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.type = value.shape = None
    versions = [onnx.helper.make_opsetid(domain, version) for domain, version in model.opset_imports.items()]
    model.ir_version = onnx.helper.find_min_ir_version_for(versions, ignore_unknown=True)
    model.producer_name, model.producer_version = "edgekit", ""
    model.graph.name = "model"
