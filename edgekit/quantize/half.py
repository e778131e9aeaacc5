"""Which layers must not become float16: the largest activations that real data give, against its range.

A processor that computes in float16 turns what is beyond 65,504 into infinity; one that widens float16 weights and
computes in float32, as x86 does, never shows it. So it is not the artifact's outputs that tell, but the activations.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx
from onnx import numpy_helper

from edgekit.graph import io as graphs
from edgekit.graph import ops
from edgekit.graph.ops import Trait
from edgekit.graph.passes.half import beyond_range
from edgekit.quantize.calibrate.calibration import Calibration
from edgekit.types import HALF_LARGEST, HalfRange, OnnxModel

HEADROOM = 2.0
"""What other data may exceed those that were measured by."""


def half_range(model: OnnxModel, calibration: Calibration) -> HalfRange:
    """The nodes that write or read activations beyond float16's range (with :data:`HEADROOM`), and the largest others.

    ``calibration`` is of ``model`` itself. What masks hold ("never": below -1e30) is no activation. A node with a
    constant beyond the range is kept, too, however small what it writes is.
    """
    graph = graphs.read_proto(model.path).graph
    magnitudes = _magnitudes(graph, calibration)
    beyond = {name for name, size in magnitudes.items() if size * HEADROOM > HALF_LARGEST}
    beyond |= _behind_clips(graph, beyond, magnitudes)
    folder = str(model.path.parent)
    wide = beyond | {i.name for i in graph.initializer if beyond_range(numpy_helper.to_array(i, folder))}
    kept = [n for n in graph.node if wide.intersection((*n.input, *n.output))]
    left = {name: size for name, size in magnitudes.items() if name not in beyond}
    first, second = (max(m, key=lambda name: m[name], default="") for m in (magnitudes, left))
    return HalfRange(
        samples=calibration.samples,
        largest=magnitudes.get(first, 0.0),
        tensor=first,
        left=left.get(second, 0.0),
        left_tensor=second,
        kept=tuple(n.name or n.output[0] for n in kept),
    )


def _magnitudes(graph: onnx.GraphProto, calibration: Calibration) -> dict[str, float]:
    """The largest absolute value of each activation that was calibrated, in graph order."""
    names = [*(i.name for i in graph.input), *(name for node in graph.node for name in node.output)]
    found = {}
    for name in names:
        if name in calibration:
            statistics = calibration.statistics(name)
            found[name] = max(abs(statistics.low), abs(statistics.high))
    return found


def _behind_clips(graph: onnx.GraphProto, beyond: set[str], known: Mapping[str, float]) -> set[str]:
    """What a Relu or a Clip reads that writes such a value: it was not measured apart, and is as large."""
    return {
        node.input[0]
        for node in graph.node
        if ops.has(node, Trait.CLIPS) and node.output[0] in beyond and node.input[0] not in known
    }
