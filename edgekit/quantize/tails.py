"""What lies between the last weighted layers and the model's float outputs stays float.

Eight bits are enough for what a layer reads, not for what an app reads: an average is finer than its terms, boxes in
pixels and scores from 0 to 1 in one concatenation share a scale, an output far from zero has steps wider than it
varies. These operators hold no weights: integers gain nothing but their own arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from edgekit.graph import ops
from edgekit.graph.ops import Trait
from edgekit.quantize.blocks import Block
from edgekit.quantize.options import Cause, InFloat

_TAIL = (
    ops.named(Trait.AVERAGES) - {"AveragePool"}  # of windows: not what a classifier ends with
    | ops.named(Trait.CARRIES)
    | {
        "Concat",
        "Add",
        "Sub",
        "Mul",
        "Sigmoid",
        "Tanh",
        "Softmax",
        "Relu",
        "Clip",
        "LeakyRelu",
        "PRelu",
        "Min",
        "Max",
    }
)
"""Operators without weights that may stand between the last layer and a float output."""
_FLOAT_OUTPUT = InFloat(Cause.NEIGHBOURS, "its result leaves the model as float")
_STATE_SIZE = 1 << 14
"""Elements of a recurrent state, at most; feature maps that are outputs between layers have more."""


def float_tails(
    blocks: Sequence[Block], readers: Mapping[ir.Value, Sequence[Block]], in_float: dict[Block, InFloat]
) -> None:
    """Put back to float, in ``in_float``, what nothing but float outputs and what is float already reads.

    A recurrent state is an output that layers read as well: what makes it is put back too, as each step would round
    what the one before rounded.
    """
    for block in reversed(blocks):
        if block in in_float or block.weight is not None or block.op not in _TAIL:
            continue
        reading = [r for o in block.outputs for r in readers.get(o, ())]
        ends = any(o.is_graph_output() for o in block.outputs)
        alone = (reading or ends) and all(r in in_float for r in reading)
        if alone or (ends and all(_is_small(o) for o in block.outputs)):
            in_float[block] = _FLOAT_OUTPUT


def _is_small(value: ir.Value) -> bool:
    sizes = [d for d in value.shape or () if isinstance(d, int)]  # a free axis is the batch
    return value.shape is not None and math.prod(sizes) <= _STATE_SIZE
