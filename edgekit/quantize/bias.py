"""Bias correction: rounding weights shifts a layer's mean output; the bias takes the shift back.

After Nagel et al., "Data-Free Quantization through Weight Equalization and Bias Correction" (ICCV 2019),
with the input means measured in calibration: E[(Wq - W) x] = (Wq - W) E[x]. Borders padded with zeros are
treated like the interior.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgekit.quantize.blocks import Block, attribute
from edgekit.quantize.calibrate.calibration import Calibration
from edgekit.quantize.params import Floats


def input_mean(block: Block, calibration: Calibration) -> Floats | None:
    """E[x] by input channel of a weighted block; ``None`` where calibration did not see it by channel."""
    name = block.activations[0].name or ""
    statistics = calibration.tensors.get(name)  # not through aliases: moving values moves channels
    weight = block.weight
    if statistics is None or statistics.masked or weight is None or weight.const_value is None:
        return None
    shape = weight.const_value.shape.numpy()
    if block.op == "Conv":
        channels, axis = shape[1] * attribute(block.core, "group", 1), 1 - len(shape)
    elif block.op == "Gemm":
        channels, axis = shape[1] if attribute(block.core, "transB", 0) else shape[0], -1
    elif block.op == "MatMul" and len(shape) == 2:
        channels, axis = shape[0], -1
    else:
        return None
    fits = statistics.channel_axis == axis and statistics.channel_mean.size == channels
    return statistics.channel_mean if fits else None


def mean_error(block: Block, error: Floats, mean: Floats) -> npt.NDArray[np.float64]:
    """E[(Wq - W) x] by output channel, from ``error`` = Wq - W in the weight's own shape."""
    if block.op == "Conv":
        groups = attribute(block.core, "group", 1)
        per_input = error.astype(np.float64).sum(axis=tuple(range(2, error.ndim)))
        inputs = mean.astype(np.float64).reshape(groups, -1)
        per_group = per_input.reshape(groups, -1, per_input.shape[1])
        summed: npt.NDArray[np.float64] = np.einsum("goi,gi->go", per_group, inputs).reshape(-1)
        return summed
    transposed = block.op == "Gemm" and attribute(block.core, "transB", 0)
    matrix = error.astype(np.float64) if transposed else error.astype(np.float64).T
    shift: npt.NDArray[np.float64] = matrix @ mean.astype(np.float64)
    return shift
