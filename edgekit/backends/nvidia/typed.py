"""What a strongly typed network asks for: its types are the precisions that TensorRT may execute."""

from __future__ import annotations

from edgekit.macs import Kernel, MacNode, count_macs, summarize
from edgekit.types import OnnxModel, Placement, Precision, Target

_NOT_KNOWN = "which kernels run is known on the GPU only: this artifact was not run here"


def spelled(model: OnnxModel, target: Target) -> Placement:
    """The placement without a run: no share, but the nodes that the graph itself leaves in another precision."""
    nodes = count_macs(model.path)
    quantized = target.precision is Precision.INT8
    kernels = {
        node.name: Kernel(names=(node.name,), op=node.op, precision=_precision(node, target))
        for node in nodes
    }
    share, fallbacks = summarize(nodes, kernels, str(target.precision), lambda n, k: _reason(n, k, quantized))
    asked = f"the graph asks for {target.precision} in {share:.1%} of the MACs" if share is not None else ""
    return Placement(
        precision=str(target.precision),
        share=None,
        operators=len(nodes),
        fallbacks=fallbacks,
        notes=tuple(filter(None, (asked, _NOT_KNOWN))),
    )


def _precision(node: MacNode, target: Target) -> str:
    if target.precision is Precision.INT8:
        return "int8" if node.quantized else "fp32"
    return str(target.precision)


def _reason(node: MacNode, kernel: Kernel | None, quantized: bool) -> str:
    return (
        f"not quantized in the graph: {kernel.precision if kernel else node.op}"
        if quantized
        else "kept in float32"
    )
