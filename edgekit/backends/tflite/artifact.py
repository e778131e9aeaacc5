"""Between the compiler and edgekit's stages: the file on disk, and what the manifest says of it."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from edgekit.backends.base import beyond_float16, kept_float32
from edgekit.backends.tflite.compiler import Compiled, CompileOptions, check_onnx, compile_onnx
from edgekit.core import files
from edgekit.core.store import canonical_json
from edgekit.core.structure import structure, to_builtins
from edgekit.errors import ConfigError
from edgekit.types import Lowered, OnnxModel, Option, Precision, Target, sha256_bytes

FILE = "model.tflite"
ORIGIN = "edgekit.origin"
"""Name of the metadata entry, and of the manifest's detail, that ties the file to what it was made from."""

MINIMUM_RUNTIME = "LiteRT 2.1 (TensorFlow Lite 2.17)"
_FOR_BLOCKS = "LiteRT 2.1"
"""Older runtimes compute INT4 weights in blocks wrongly; the file's operator versions make them refuse it."""


def lower(model: OnnxModel, target: Target, options: Mapping[str, Option], out: Path) -> Lowered:
    """See :func:`edgekit.backends.tflite.lower`."""
    # Before the file exists: the digest is stored in the file, so it cannot be over the file.
    origin = sha256_bytes(canonical_json([model.sha256, target, dict(options)]))
    choices = _options(model, target, {**options, f"metadata.{ORIGIN}": origin})
    compiled = compile_onnx(read_model(model.path), options=choices)
    files.write(out / FILE, compiled.data)
    written = _as_declared(_lowered(compiled), model)
    if choices.wide:
        advice = "; a GPU delegate must not lower its precision (isPrecisionLossAllowed = false)"
        notes = (*written.notes, *(f"{note}{advice}" for note in beyond_float16(choices.wide)))
        written = replace(written, notes=notes)
    return replace(written, details={**written.details, ORIGIN: origin})


def check(model: OnnxModel, target: Target, options: Mapping[str, Option]) -> None:
    """See :func:`edgekit.backends.tflite.check`."""
    check_onnx(read_model(model.path), options=_options(model, target, options))


def _as_declared(written: Lowered, model: OnnxModel) -> Lowered:
    """Say what was moved, and let tensors that were not keep the layout that their source declares."""
    moved = tuple(s.name for s in (*written.inputs, *written.outputs) if s.layout in ("NHWC", "NDHWC"))
    declared = {s.name: s.layout for s in (*model.inputs, *model.outputs) if s.layout and s.name not in moved}
    inputs, outputs = (
        tuple(replace(s, layout=declared.get(s.name, s.layout)) for s in side)
        for side in (written.inputs, written.outputs)
    )
    return replace(written, inputs=inputs, outputs=outputs, channels_moved=moved)


def _options(model: OnnxModel, target: Target, options: Mapping[str, Option]) -> CompileOptions:
    """The compiler's options out of a target's; those that are not the compiler's are left alone."""
    if any(spec.layout == "NHWC" for spec in model.inputs):  # channels are last already: TensorFlow's models
        options = {**options, "io_layout": "nchw"}
    fields: dict[str, object] = {"io_dtype": target.io_dtype, "target": target.name}
    if target.precision is Precision.FP16:
        fields["weights"] = "float16"
    if target.precision is Precision.INT8_WEIGHTS:
        fields["quantized_weights"] = "float"
    choices = {"fuse": (True, False)} | {
        name: typing.get_args(hint)
        for name, hint in typing.get_type_hints(CompileOptions).items()
        if typing.get_origin(hint) is typing.Literal
    }
    for name, value in options.items():
        if name in choices:
            if value not in choices[name]:
                raise ConfigError(
                    f"{name} = {value!r} is not possible for {target.name}",
                    hint=f"use one of {', '.join(map(str, choices[name]))}",
                )
            fields[name] = value
    prefix = "metadata."
    texts = {n.removeprefix(prefix): str(v) for n, v in options.items() if n.startswith(prefix)}
    fields["wide"] = kept_float32(options)
    return structure(CompileOptions, {**fields, "metadata": texts}, where=f"options of {target.name}")


def read_model(path: Path) -> ir.Model:
    """Load an ONNX file; weights outside of it stay on disk until they are read.

    Weights inside it are taken out of the parsed message, which would else keep a second copy of all of
    them alive for as long as one is referenced.
    """
    model = ir.load(path)
    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.TensorProtoTensor):
                value.const_value = ir.Tensor(value.const_value.numpy(), name=value.name)
        for node in graph:
            for name, attribute in list(node.attributes.items()):
                if attribute.type == ir.AttributeType.TENSOR and isinstance(
                    attribute.value, ir.TensorProtoTensor
                ):
                    node.attributes[name] = ir.AttrTensor(name, ir.Tensor(attribute.value.numpy()))
    return model


def _lowered(compiled: Compiled) -> Lowered:
    """The compiled model as the manifest records it."""
    report = compiled.report
    notes = [f"{sum(report.operators.values())} operators, {report.transposes} transpositions"]
    notes += [f"{f.op} ×{f.count} in float: {f.reason}" for f in report.left_in_float]
    return Lowered(
        files=(FILE,),
        inputs=compiled.inputs,
        outputs=compiled.outputs,
        minimum_runtime=_FOR_BLOCKS if "int4" in report.weights else MINIMUM_RUNTIME,
        notes=tuple(notes),
        integer_weights=report.integer_weights,
        details={
            "operators": dict(report.operators),
            "transposes": report.transposes,
            "fusions": dict(report.fusions),
            "codes": list(report.codes),
            "macs": list(report.macs),
            "types": list(report.types),
            "weights": list(report.weights),
            "nested": to_builtins(report.nested),
            "left_in_float": [
                {"op": f.op, "count": f.count, "reason": f.reason, "nodes": list(f.nodes)}
                for f in report.left_in_float
            ],
            "origins": {
                name: {"node": o.node, "op": o.op, "module": o.module} for name, o in report.origins.items()
            },
        },
    )
