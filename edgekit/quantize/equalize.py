"""Move scale from activations into weights, channel by channel, so that one scale for a tensor fits better.

:func:`equalize` folds the factors into the layer before (cross-layer equalization: Nagel et al., "Data-Free
Quantization", ICCV 2019). It takes the ranges of the activations from calibration instead of guessing them
from the weights: weights have a scale a channel here anyway. The float function stays the same.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgekit.quantize import rescaled
from edgekit.quantize.blocks import Block, attribute, constant, find_blocks
from edgekit.quantize.calibrate.calibration import Calibration
from edgekit.quantize.params import Floats

_FURTHEST = 32.0
"""No channel moves by more than this from the geometric mean: float32 biases and INT32 sums keep headroom."""


def equalize(graph: ir.Graph, calibration: Calibration) -> int:
    """Rescale in place wherever a layer writes a tensor that only weighted layers read; how many tensors."""
    done = 0
    blocks = find_blocks(graph)
    readers = core_blocks(blocks)
    for block in blocks:
        if not takes_factors(block):
            continue
        output = block.outputs[0]
        users = [readers.get(u.node) for u in output.uses()]
        if (
            output.is_graph_output()
            or not users
            or not all(b is not None and takes_input_factors(b, output) for b in users)
        ):
            continue
        factors = _factors(output, [b for b in users if b is not None], calibration)
        if factors is None or factors.size != _width(block):
            continue
        scale_outputs(block, 1.0 / factors)
        for user in users:
            if user is not None:
                scale_inputs(user, factors)
        done += 1
    return done


def core_blocks(blocks: list[Block]) -> dict[ir.Node, Block]:
    """The blocks by their core."""
    return {b.core: b for b in blocks}


def takes_factors(block: Block) -> bool:
    """Whether a block's output channels can be rescaled through its weights: what it clips to is 0 or nothing."""
    if block.op not in ("Conv", "Gemm", "MatMul") or not _own_weight(block) or block.weight_axis is None:
        return False
    if block.op == "Gemm" and (
        attribute(block.core, "alpha", 1.0) != 1.0 or attribute(block.core, "transA", 0)
    ):
        return False
    has_bias = block.bias is not None or (block.op != "MatMul" and len(block.core.inputs) > 2)
    if has_bias and (block.bias_value is None or len(block.bias_value.uses()) != 1):
        return False
    return block.clip is None or block.limits == (0.0, np.inf)


def takes_input_factors(block: Block, value: ir.Value) -> bool:
    """Whether a block's weights can be multiplied by input channel, ``value`` being what it multiplies."""
    plain = block.op != "Gemm" or not attribute(block.core, "transA", 0)
    matrix = block.op == "Conv" or block.weight_axis is not None
    return (
        block.op in ("Conv", "Gemm", "MatMul")
        and block.core.inputs[0] is value
        and plain
        and matrix
        and _own_weight(block)
    )


def _own_weight(block: Block) -> bool:
    weight = block.weight
    if weight is None or len(weight.uses()) != 1 or weight.is_graph_output():
        return False
    array = constant(weight)
    return array is not None and array.dtype == np.float32


def _width(block: Block) -> int:
    assert block.weight is not None
    assert block.weight.const_value is not None
    assert block.weight_axis is not None
    return int(block.weight.const_value.shape[block.weight_axis])  # type: ignore[arg-type]


def reach_of(value: ir.Value, calibration: Calibration) -> Floats | None:
    """Largest magnitude of each channel over the calibration samples."""
    statistics = calibration.tensors.get(value.name or "")
    if statistics is None or statistics.masked or statistics.channel_axis == 0:
        return None
    return np.maximum(np.abs(statistics.channel_low), np.abs(statistics.channel_high))


def _factors(value: ir.Value, users: list[Block], calibration: Calibration) -> Floats | None:
    """What each channel is divided by: sqrt(activation / weight), the activation alone before depthwise layers."""
    reach = reach_of(value, calibration)
    if reach is None:
        return None
    factors = np.sqrt(np.maximum(reach, 1e-12))
    weights = [w for u in users if (w := _input_reach(u)) is not None]
    if any(w.size != reach.size for w in weights) or any(_inputs(u) != reach.size for u in users):
        return None
    strength = np.sqrt(np.maximum(np.max(weights, axis=0), 1e-12)) if weights else 1.0 / factors
    factors = factors / strength
    return settled(np.asarray(factors, np.float32), reach)


def settled(factors: Floats, reach: Floats) -> Floats | None:
    """Factors around 1, within limits; channels that are always zero keep theirs. ``None``: all are zero."""
    alive = reach > reach.max(initial=0.0) * 1e-6
    if not alive.any():
        return None
    factors = factors / np.exp(np.log(factors[alive]).mean())
    # Powers of two keep every product exact: the float model computes the same bits.
    rounded: Floats = np.exp2(np.rint(np.log2(np.clip(factors, 1 / _FURTHEST, _FURTHEST)))).astype(np.float32)
    return np.where(alive, rounded, np.float32(1.0)).astype(np.float32)


def _inputs(block: Block) -> int:
    array = weight_of(block)
    if block.op == "Conv":
        return int(array.shape[1]) * int(attribute(block.core, "group", 1))
    return int(array.shape[1 if block.op == "Gemm" and attribute(block.core, "transB", 0) else 0])


def _input_reach(block: Block) -> Floats | None:
    """Largest weight by input channel; ``None`` for depthwise convolutions, whose weights scale freely."""
    array = np.abs(weight_of(block))
    if block.op == "Conv":
        groups = int(attribute(block.core, "group", 1))
        if array.shape[1] == 1 and groups > 1:
            return None
        by_group = array.reshape(groups, -1, *array.shape[1:])
        reach: Floats = by_group.max(axis=(1, *range(3, by_group.ndim))).reshape(-1)
        return reach
    transposed = block.op == "Gemm" and attribute(block.core, "transB", 0)
    rows: Floats = array.max(axis=0 if transposed else 1)
    return rows


def scale_inputs(block: Block, factors: Floats) -> None:
    """Multiply the weights that read each input channel."""
    array = weight_of(block)
    if block.op == "Conv":
        groups = int(attribute(block.core, "group", 1))
        shaped = array.reshape(groups, -1, *array.shape[1:])
        by_group = factors.reshape(groups, 1, array.shape[1], *([1] * (array.ndim - 2)))
        store(block.weight, (shaped * by_group).reshape(array.shape))
        return
    transposed = block.op == "Gemm" and attribute(block.core, "transB", 0)
    store(block.weight, array * (factors[None, :] if transposed else factors[:, None]))


def scale_outputs(block: Block, factors: Floats) -> None:
    """Multiply the weights and the bias that write each output channel; noted on the block's nodes."""
    array = weight_of(block)
    shape = [1] * array.ndim
    assert block.weight_axis is not None
    shape[block.weight_axis] = -1
    store(block.weight, array * factors.reshape(shape))
    bias = block.bias_value
    if bias is not None:
        old = constant(bias)
        assert old is not None
        wide = old if old.size == factors.size else np.broadcast_to(old, (*old.shape[:-1], factors.size))
        store(bias, wide * factors.reshape((1,) * (wide.ndim - 1) + (-1,)))
    for node in block.nodes:
        rescaled.note(node, factors, 1 if block.op == "Conv" else -1)


def weight_of(block: Block) -> Floats:
    """The constant weight of a block that has one."""
    assert block.weight is not None
    array = constant(block.weight)
    assert array is not None
    return array


def store(value: ir.Value | None, array: Floats) -> None:
    """Give an initializer another value."""
    assert value is not None
    value.const_value = ir.tensor(np.ascontiguousarray(array, np.float32), name=value.name)
    value.shape = ir.Shape(array.shape)
