"""What runs in which precision: requested by the strongly typed network, executed by the engine inspector's word.

Without a run there is the network alone: its types are the precisions that TensorRT may execute. With one
there are the inspector's layers (see ``targets/nvidia/runner.py``): TensorRT 10 writes a tensor's type as
``"Format/Datatype": "Int8 NC/32HW32"``, TensorRT 11 splits the two.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import onnx

from edgekit.backends.base import reported
from edgekit.backends.nvidia.cut import graphs
from edgekit.graph import io
from edgekit.graph.macs import Kernel, MacNode, assign, count_macs, summarize
from edgekit.types import ASKED, Fallback, Json, OnnxModel, Placement, Precision, Target

_Layer: TypeAlias = Mapping[str, Json]

_NOT_KNOWN = "which kernels run is known on the GPU only: this artifact was not run here"
_NAMES_ONLY = "the engine tells its layers' names only: build it with --profilingVerbosity=detailed"

_PRECISIONS = (
    ("int8", "int8"),
    ("fp8", "fp8"),
    ("bf16", "bf16"),
    ("bfloat16", "bf16"),
    ("half", "fp16"),
    ("fp16", "fp16"),
    ("float", "fp32"),
    ("fp32", "fp32"),
)
"""How the inspector writes types; the first that is part of its text counts."""


@dataclass(frozen=True, kw_only=True)
class Requested:
    """What a graph asks for: the ``share`` of its MACs in the target's precision (``None`` where it has none), and the
    nodes that it leaves in another."""

    share: float | None
    operators: int
    fallbacks: tuple[Fallback, ...]

    @property
    def details(self) -> dict[str, Json]:
        """For :attr:`edgekit.types.Lowered.details`."""
        return {} if self.share is None else {ASKED: self.share}


def requested(model: OnnxModel, target: Target) -> Requested:
    """What stands in for the placement without a run. ``model`` is the graph that ships: each node counts by its own
    types, those in bodies of If, Loop and Scan, too."""
    nodes, types = count_macs(model.path), _computed_in(model)
    kernels = {
        node.name: Kernel(
            names=(node.name,), op=node.op, precision=_requested_in(node, types.get(node.name, ""), target)
        )
        for node in nodes
    }
    share, fallbacks = summarize(nodes, kernels, str(target.precision), _why_requested)
    return Requested(share=share, operators=len(nodes), fallbacks=fallbacks)


def executed(model: OnnxModel, target: Target, raw: Mapping[str, Json]) -> Placement:
    """The placement of an engine that ran, from the inspector's layers; no share where there are none."""
    layers = reported(raw, "layers", list[dict[str, Any] | str])
    if not layers:
        return Placement(
            precision=str(target.precision),
            share=None,
            operators=len(count_macs(model.path)),
            notes=(_NOT_KNOWN,),
        )
    detailed = [layer for layer in layers if isinstance(layer, Mapping)]
    if not detailed:
        return Placement(
            precision=str(target.precision), share=None, operators=len(layers), notes=(_NAMES_ONLY,)
        )
    nodes = count_macs(model.path)
    kernels = assign(nodes, tuple(_kernels(detailed, {node.name for node in nodes})))
    share, fallbacks = summarize(nodes, kernels, str(target.precision), _why_executed)
    return Placement(
        precision=str(target.precision),
        share=share,
        operators=len(layers),
        kernels=dict(sorted(Counter(str(layer.get("LayerType", "?")) for layer in detailed).items())),
        fallbacks=fallbacks,
        notes=(f"on {raw.get('gpu', 'an NVIDIA GPU')}",),
    )


def _requested_in(node: MacNode, computed: str, target: Target) -> str:
    if target.precision in (Precision.INT8, Precision.FP8) and node.quantized:
        return str(target.precision)
    return computed or "unknown"


_TYPES: dict[int, str] = {
    onnx.TensorProto.FLOAT: "fp32",
    onnx.TensorProto.FLOAT16: "fp16",
    onnx.TensorProto.BFLOAT16: "bf16",
    onnx.TensorProto.DOUBLE: "fp64",
}


def _computed_in(model: OnnxModel) -> dict[str, str]:
    """The type of floats that each node gives, by its name."""
    proto = io.read_proto(model.path)
    with contextlib.suppress(onnx.shape_inference.InferenceError):  # then what is written must do
        proto = onnx.shape_inference.infer_shapes(proto)
    kinds: dict[str, int] = {}
    for graph in graphs(proto.graph):
        kinds |= {t.name: t.data_type for t in graph.initializer}
        for value in (*graph.input, *graph.output, *graph.value_info):
            kinds[value.name] = value.type.tensor_type.elem_type
    found: dict[str, str] = {}
    for graph in graphs(proto.graph):
        for node in graph.node:
            of_it = [_TYPES[kinds[v]] for v in (*node.output, *node.input) if kinds.get(v) in _TYPES]
            if of_it:
                found[node.name] = of_it[0]
    return found


def _why_requested(node: MacNode, kernel: Kernel | None) -> str:
    where = "in a body of If, Loop or Scan, which stays as it is" if node.nested else "in the graph"
    return f"{kernel.precision if kernel else node.op} {where}"


def _why_executed(node: MacNode, kernel: Kernel | None) -> str:
    if kernel is None:
        return "the engine inspector names no layer for it"
    between = " between Q/DQ" if node.quantized else ""
    return f"{kernel.op} executes in {kernel.precision}{between}"


def _kernels(layers: Sequence[_Layer], own: set[str]) -> Iterator[Kernel]:
    for layer in layers:
        names = _onnx_names(layer)
        if own.intersection(names):
            yield Kernel(names=names, op=str(layer.get("LayerType", "?")), precision=_precision(layer))


def _onnx_names(layer: _Layer) -> tuple[str, ...]:
    """ONNX nodes that were fused into a layer: its metadata (``[ONNX Layer: conv1]…``), else its name."""
    marks = str(layer.get("Metadata", "")).split("[ONNX Layer: ")[1:]
    names = [mark.partition("]")[0] for mark in marks] or str(layer.get("Name", "")).split(" + ")
    return tuple(dict.fromkeys(name.strip() for name in names))


def _precision(layer: _Layer) -> str:
    inputs = layer.get("Inputs")
    first = inputs[0] if isinstance(inputs, list) and inputs and isinstance(inputs[0], dict) else {}
    text = str(first.get("Datatype") or first.get("DataType") or first.get("Format/Datatype") or "").lower()
    return next((precision for name, precision in _PRECISIONS if name in text), text or "unknown")
