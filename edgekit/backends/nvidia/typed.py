"""What runs in which precision: asked for by the strongly typed network, told by the engine inspector.

Without a run there is the network alone: its types are the precisions that TensorRT may execute. With one
there are the inspector's layers (see ``targets/tensorrt/runner.py``): TensorRT 10 writes a tensor's type as
``"Format/Datatype": "Int8 NC/32HW32"``, TensorRT 11 splits the two.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from edgekit.graph.macs import Kernel, MacNode, assign, count_macs, summarize
from edgekit.types import OnnxModel, Placement, Precision, Target

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
"""How the inspector spells types, in the order of looking."""


def spelled(model: OnnxModel, target: Target) -> Placement:
    """The placement without a run: no share, but the nodes that the graph itself leaves in another precision."""
    nodes = count_macs(model.path)
    kernels = {
        node.name: Kernel(names=(node.name,), op=node.op, precision=_spelled_in(node, target))
        for node in nodes
    }
    share, fallbacks = summarize(nodes, kernels, str(target.precision), _why_spelled)
    asked = f"the graph asks for {target.precision} in {share:.1%} of the MACs" if share is not None else ""
    return Placement(
        precision=str(target.precision),
        share=None,
        operators=len(nodes),
        fallbacks=fallbacks,
        notes=tuple(filter(None, (asked, _NOT_KNOWN))),
    )


def executed(model: OnnxModel, target: Target, raw: Mapping[str, Any]) -> Placement:
    """The placement of an engine that ran, from the inspector's layers; :func:`spelled` where there are none."""
    layers = raw.get("layers")
    if not layers:
        return spelled(model, target)
    told = [layer for layer in layers if isinstance(layer, Mapping)]
    if not told:
        return Placement(
            precision=str(target.precision), share=None, operators=len(layers), notes=(_NAMES_ONLY,)
        )
    nodes = count_macs(model.path)
    found = assign(nodes, tuple(_kernels(told, {node.name for node in nodes})))
    share, fallbacks = summarize(nodes, found, str(target.precision), _why_executed)
    return Placement(
        precision=str(target.precision),
        share=share,
        operators=len(layers),
        kernels=dict(sorted(Counter(str(layer.get("LayerType", "?")) for layer in told).items())),
        fallbacks=fallbacks,
        notes=(f"on {raw.get('gpu', 'an NVIDIA GPU')}",),
    )


def _spelled_in(node: MacNode, target: Target) -> str:
    if target.precision is Precision.INT8:
        return "int8" if node.quantized else "fp32"
    return str(target.precision)


def _why_spelled(node: MacNode, kernel: Kernel | None) -> str:
    return f"not quantized in the graph: {kernel.precision if kernel else node.op}"


def _why_executed(node: MacNode, kernel: Kernel | None) -> str:
    if kernel is None:
        return "the engine inspector names no layer for it"
    between = " between Q/DQ" if node.quantized else ""
    return f"{kernel.op} executes in {kernel.precision}{between}"


def _kernels(layers: Sequence[Mapping[str, Any]], own: set[str]) -> Iterator[Kernel]:
    for layer in layers:
        names = _onnx_names(layer)
        if own.intersection(names):
            yield Kernel(names=names, op=str(layer.get("LayerType", "?")), precision=_precision(layer))


def _onnx_names(layer: Mapping[str, Any]) -> tuple[str, ...]:
    """ONNX nodes that were fused into a layer: its metadata (``[ONNX Layer: conv1]…``), else its name."""
    marks = str(layer.get("Metadata", "")).split("[ONNX Layer: ")[1:]
    names = [mark.partition("]")[0] for mark in marks] or str(layer.get("Name", "")).split(" + ")
    return tuple(dict.fromkeys(name.strip() for name in names))


def _precision(layer: Mapping[str, Any]) -> str:
    first: Mapping[str, Any] = next(iter(layer.get("Inputs") or ()), {})
    text = str(first.get("Datatype") or first.get("DataType") or first.get("Format/Datatype") or "").lower()
    return next((precision for spelling, precision in _PRECISIONS if spelling in text), text or "unknown")
