"""Between the compiler and edgekit's stages: the file on disk, and what the manifest says of it."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from edgekit.backends.tflite.compiler import Compiled
from edgekit.types import Lowered

MINIMUM_RUNTIME = "LiteRT 2.1 (TensorFlow Lite 2.17)"
_FOR_BLOCKS = "LiteRT 2.1"
"""Older runtimes compute INT4 weights in blocks wrongly; the file's operator versions make them refuse it."""


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


def lowered(compiled: Compiled, file: str) -> Lowered:
    """The compiled model as the manifest records it."""
    report = compiled.report
    notes = [f"{sum(report.operators.values())} operators, {report.transposes} transpositions"]
    notes += [f"{f.op} ×{f.count} in float: {f.reason}" for f in report.left_in_float]
    return Lowered(
        files=(file,),
        inputs=compiled.inputs,
        outputs=compiled.outputs,
        minimum_runtime=_FOR_BLOCKS if "int4" in report.weights else MINIMUM_RUNTIME,
        notes=tuple(notes),
        details={
            "operators": dict(report.operators),
            "transposes": report.transposes,
            "fusions": dict(report.fusions),
            "codes": list(report.codes),
            "macs": list(report.macs),
            "types": list(report.types),
            "weights": list(report.weights),
            "left_in_float": [
                {"op": f.op, "count": f.count, "reason": f.reason, "nodes": list(f.nodes)}
                for f in report.left_in_float
            ],
            "origins": {
                name: {"node": o.node, "op": o.op, "module": o.module} for name, o in report.origins.items()
            },
        },
    )
