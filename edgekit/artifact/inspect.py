"""What is in a model file: inputs, outputs, operators, weights. Nothing is executed."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgekit.backends.tflite import flatbuffer_schema
from edgekit.errors import SourceError
from edgekit.load.foreign import translated
from edgekit.types import Json, TensorSpec


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """``operators`` counts nodes by type, ``weights`` bytes by storage type; ``facts`` are the format's own."""

    path: Path
    format: str
    size: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    operators: Mapping[str, int]
    weights: Mapping[str, int]
    macs: int | None = None
    facts: Mapping[str, Json] = field(default_factory=dict)


def inspect_file(path: Path) -> Inspection:
    """Read a ``.onnx`` or ``.tflite`` file.

    Raises :class:`SourceError` when it is neither or damaged.
    """
    if not path.is_file():
        raise SourceError(
            f"there is no file {path}", hint="name an artifact's directory, a .onnx or a .tflite file"
        )
    with path.open("rb") as file:
        head = file.read(8)
    if head[4:8] == b"TFL3":
        return _tflite(path)
    if path.suffix == ".onnx":
        return _onnx(path)
    raise SourceError(
        f"{path} is neither ONNX nor TFLite", hint="edgekit inspect reads artifacts, .onnx and .tflite"
    )


def _onnx(path: Path) -> Inspection:
    from edgekit.graph import io, macs

    described, model = io.describe(path), io.load(path)
    weights: Counter[str] = Counter()
    for scope in model.graphs():
        for value in scope.initializers.values():
            if value.const_value is not None:
                weights[value.const_value.dtype.name.lower()] += value.const_value.nbytes
    # Nodes were not checked: their attributes and shapes need not fit one another.
    with translated(f"{path} is not a valid ONNX model", hint="export it again"):
        counted = macs.count_macs(path) if all(s.is_static for s in described.inputs) else None
    return Inspection(
        path=path,
        format="ONNX",
        size=path.stat().st_size,
        inputs=described.inputs,
        outputs=described.outputs,
        operators=dict(Counter(n.op_type for n in model.graph.all_nodes()).most_common()),
        weights=dict(weights.most_common()),
        macs=None if counted is None else sum(node.macs or 0 for node in counted),
        facts={"opset": described.opset, "producer": model.producer_name or ""},
    )


def _tflite(path: Path) -> Inspection:
    schema = flatbuffer_schema()
    data = path.read_bytes()
    try:
        model = schema.Model.GetRootAs(data, 0)
        subgraph = model.Subgraphs(0)
        codes = _names(schema.BuiltinOperator)
        kinds = {v: k.lower() for k, v in vars(schema.TensorType).items() if not k.startswith("_")}
        operators: Counter[str] = Counter()
        for i in range(subgraph.OperatorsLength()):
            code = model.OperatorCodes(subgraph.Operators(i).OpcodeIndex())
            builtin = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
            custom = code.CustomCode()
            operators[custom.decode() if custom and codes.get(builtin) == "CUSTOM" else codes[builtin]] += 1
        weights: Counter[str] = Counter()
        for i in range(subgraph.TensorsLength()):
            tensor = subgraph.Tensors(i)
            length = model.Buffers(tensor.Buffer()).DataLength()
            if length:
                weights[kinds[tensor.Type()]] += length
        inputs = tuple(_spec(subgraph.Tensors(int(i)), kinds) for i in subgraph.InputsAsNumpy())
        outputs = tuple(_spec(subgraph.Tensors(int(i)), kinds) for i in subgraph.OutputsAsNumpy())
        facts = {
            "schema": model.Version(),
            "description": (model.Description() or b"").decode(errors="replace"),
            "subgraphs": model.SubgraphsLength(),
            "signatures": [
                model.SignatureDefs(i).SignatureKey().decode() for i in range(model.SignatureDefsLength())
            ],
            "metadata": [model.Metadata(i).Name().decode() for i in range(model.MetadataLength())],
        }
    # What flatbuffers' accessors raise where an offset or a length leads out of the file, and a code means nothing.
    except (struct.error, LookupError, ValueError, TypeError, AttributeError) as e:
        raise SourceError(f"{path} is damaged: {e}", hint="build or copy it again") from e
    return Inspection(
        path=path,
        format="TFLite",
        size=len(data),
        inputs=inputs,
        outputs=outputs,
        operators=dict(operators.most_common()),
        weights=dict(weights.most_common()),
        facts=facts,
    )


def _names(enumeration: type) -> dict[int, str]:
    return {v: k for k, v in vars(enumeration).items() if not k.startswith("_")}


def _spec(tensor: Any, kinds: Mapping[int, str]) -> TensorSpec:
    quantization = tensor.Quantization()
    scale = zero = None
    if quantization is not None and quantization.ScaleLength() == 1:
        scale, zero = float(quantization.Scale(0)), int(quantization.ZeroPoint(0))
    return TensorSpec(
        name=(tensor.Name() or b"?").decode(errors="replace"),
        dtype=kinds[tensor.Type()],
        shape=tuple(int(tensor.Shape(i)) for i in range(tensor.ShapeLength())),
        scale=scale,
        zero_point=zero,
    )
