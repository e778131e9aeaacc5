"""Between the compiler and edgekit's stages: the file on disk, what the manifest says, placement."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import onnx_ir as ir

from edgekit.backends.tflite.compiler import Compiled
from edgekit.types import Fallback, Lowered, Placement, Precision, Target

MINIMUM_RUNTIME = "LiteRT 2.1 (TensorFlow Lite 2.17)"


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


def write_file(path: Path, data: memoryview) -> None:
    """Write under a temporary name, then rename."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as f:
        part = Path(f.name)
        try:
            f.write(data)
            f.close()
            part.chmod(0o644)
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise


def lowered(compiled: Compiled, file: str) -> Lowered:
    """The compiled model as the manifest records it."""
    report = compiled.report
    notes = [f"{sum(report.operators.values())} operators, {report.transposes} transpositions"]
    notes += [f"{f.op} ×{f.count} in float: {f.reason}" for f in report.left_in_float]
    return Lowered(
        files=(file,),
        inputs=compiled.inputs,
        outputs=compiled.outputs,
        minimum_runtime=MINIMUM_RUNTIME,
        notes=tuple(notes),
        details={
            "operators": dict(report.operators),
            "transposes": report.transposes,
            "fusions": dict(report.fusions),
            "codes": list(report.codes),
            "macs": list(report.macs),
            "types": list(report.types),
            "left_in_float": [
                {"op": f.op, "count": f.count, "reason": f.reason, "nodes": list(f.nodes)}
                for f in report.left_in_float
            ],
            "origins": {
                name: {"node": o.node, "op": o.op, "module": o.module} for name, o in report.origins.items()
            },
        },
    )


def read_placement(target: Target, lowered: Lowered, raw: Mapping[str, Any]) -> Placement:
    """Share of MACs inside the delegate and in the target's type; see the package's docstring for ``raw``."""
    codes: Sequence[str] = lowered.details.get("codes", ())
    macs: Sequence[int] = lowered.details.get("macs", ())
    types: Sequence[str] = lowered.details.get("types", ())
    nodes = raw.get("nodes")
    floats = [Fallback(**f | {"nodes": tuple(f["nodes"])}) for f in lowered.details.get("left_in_float", ())]
    if nodes is None:
        note = "this runtime does not tell what the delegate took"
        return Placement(
            precision=str(target.precision),
            share=None,
            operators=len(codes),
            fallbacks=tuple(floats),
            notes=(note,),
        )
    taken = delegated(nodes)
    wanted = _compute_type(target)
    total = sum(macs)
    right = sum(m for i, m in enumerate(macs) if i in taken and types[i] in wanted)
    return Placement(
        precision=str(target.precision),
        share=right / total if total else None,
        operators=len(codes),
        partitions=raw.get("delegates"),
        kernels=dict(Counter(codes)),
        fallbacks=tuple(floats + _outside(codes, macs, taken)),
    )


def delegated(nodes: Sequence[Mapping[str, Any]]) -> set[int]:
    """Indices of the operators that a delegate replaced."""
    return {int(n["index"]) for n in nodes if n.get("delegate") is not None}


def _outside(codes: Sequence[str], macs: Sequence[int], taken: Set[int]) -> list[Fallback]:
    outside: dict[str, list[int]] = {}
    for i, code in enumerate(codes):
        if i not in taken:
            outside.setdefault(code, []).append(i)
    total = sum(macs)
    return [
        Fallback(
            op=code,
            count=len(where),
            reason="runs in LiteRT's builtin kernel, not in the delegate",
            share=sum(macs[i] for i in where) / total if total else 0.0,
        )
        for code, where in sorted(outside.items())
    ]


def _compute_type(target: Target) -> frozenset[str]:
    """The types of the activations with which the target's promise is kept. Float16 is a storage format on
    CPUs; weight-only and dynamic schemes have float activations."""
    kinds = {Precision.INT8: "int8", Precision.INT16X8: "int16"}
    return frozenset({kinds.get(target.precision, "float32")})
