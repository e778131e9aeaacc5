"""Rounding weights with regard to the inputs they meet: layer-wise reconstruction.

Weights are rounded one input after the other; what one rounding does to the layer's output is made up for
in the weights not yet rounded. After Frantar et al., "GPTQ" (ICLR 2023), on Hassibi and Stork's "Optimal
Brain Surgeon" (1993): for the error E = |W X - Wq X|² the compensation follows from the inverse of
H = X Xᵀ. Nagel et al., "Up or Down? Adaptive Rounding" (ICML 2020), state the same objective.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edgekit.quantize.blocks import Block, attribute, constant
from edgekit.quantize.inputs import LayerInputs
from edgekit.quantize.params import Floats, Stored, quantize_weight, weight_scale
from edgekit.quantize.plan import Plan

_POSITIONS = 1024  # columns of X a layer and sample
_WIDEST = 4608  # inputs of a layer: H is float32 [K, K]
_DAMPING = 0.01


class Rounding:
    """Second moments of the inputs of a model's weighted layers, gathered as they are asked for."""

    def __init__(self, inputs: LayerInputs) -> None:
        self.inputs = inputs
        self._moments: dict[str, npt.NDArray[np.float64]] = {}

    def weights(self, plan: Plan, bits: int) -> dict[str, Stored]:
        """Integer weights by name for the quantized layers of a plan; shared weights are left to nearest."""
        blocks = [b for b in plan.blocks if plan.quantized(b) and _fits(b)]
        self._gather([b for b in blocks if b.name not in self._moments])
        found = {}
        for block in blocks:
            assert block.weight is not None
            found[block.weight.name or ""] = _round(block, self._moments[block.name], bits)
        return found

    def _gather(self, blocks: Sequence[Block]) -> None:
        tensors = list(dict.fromkeys(b.activations[0].name or "" for b in blocks))
        for values in self.inputs.values(tensors):
            for block in blocks:
                moment = _second_moment(block, values[block.activations[0].name or ""])
                total = self._moments.get(block.name)
                self._moments[block.name] = moment if total is None else total + moment


def _fits(block: Block) -> bool:
    weight = block.weight
    if weight is None or block.op not in ("Conv", "Gemm", "MatMul") or len(weight.uses()) != 1:
        return False
    array = constant(weight)
    if array is None or array.dtype != np.float32 or block.weight_axis is None:
        return False
    if block.op == "Conv":
        plain = array.ndim == 4 and attribute(block.core, "auto_pad", "NOTSET") == "NOTSET"
        return plain and bool(np.prod(array.shape[1:]) <= _WIDEST)
    return bool(_matrix(block, array).shape[1] <= _WIDEST)


def _matrix(block: Block, array: Floats) -> Floats:
    """The weight as ``[outputs, inputs]``."""
    if block.op == "Conv":
        return array.reshape(array.shape[0], -1)
    return array if block.op == "Gemm" and attribute(block.core, "transB", 0) else array.T


def _second_moment(block: Block, x: Floats) -> npt.NDArray[np.float64]:
    """X Xᵀ by group, ``[groups, K, K]``, over at most :data:`_POSITIONS` positions."""
    columns = _columns(block, x) if block.op == "Conv" else x.reshape(-1, x.shape[-1])[None]
    step = max(1, columns.shape[1] // _POSITIONS)
    thin = columns[:, ::step].astype(np.float32)
    moment: npt.NDArray[np.float64] = np.matmul(thin.transpose(0, 2, 1), thin).astype(np.float64)
    return moment


def _columns(block: Block, x: Floats) -> Floats:
    """The patches that a convolution multiplies, ``[groups, positions, K]``."""
    weight = constant(block.weight) if block.weight is not None else None
    assert weight is not None
    groups = int(attribute(block.core, "group", 1))
    pads = attribute(block.core, "pads", [0, 0, 0, 0])
    strides, dilations = (attribute(block.core, n, [1, 1]) for n in ("strides", "dilations"))
    x = np.pad(x, ((0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])))
    height, width = ((k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilations, strict=True))
    windows = np.lib.stride_tricks.sliding_window_view(x, (height, width), axis=(2, 3))
    windows = windows[:, :, :: strides[0], :: strides[1], :: dilations[0], :: dilations[1]]
    step = max(1, windows.shape[2] * windows.shape[3] * windows.shape[0] // _POSITIONS)
    n, c, rows, across, kh, kw = windows.shape
    places = np.arange(0, n * rows * across, step)
    i, rest = np.divmod(places, rows * across)
    picked = windows[i, :, rest // across, rest % across]  # [positions, C, kh, kw]
    grouped = picked.reshape(len(places), groups, (c // groups) * kh * kw)
    return np.ascontiguousarray(grouped.transpose(1, 0, 2))


def _round(block: Block, moment: npt.NDArray[np.float64], bits: int) -> Stored:
    assert block.weight is not None
    array = constant(block.weight)
    assert array is not None
    axis = block.weight_axis
    scale = weight_scale(array, axis, bits)
    rows = _matrix(block, array)
    groups, outputs = moment.shape[0], rows.shape[0]
    size = outputs // groups
    integers = np.concatenate(
        [
            compensated(rows[g * size : (g + 1) * size], moment[g], scale[g * size : (g + 1) * size], bits)
            for g in range(groups)
        ]
    )
    nearest = quantize_weight(array, axis, bits, scale)
    if block.op == "Conv" or (block.op == "Gemm" and attribute(block.core, "transB", 0)):
        values = integers.reshape(array.shape)
    else:
        values = np.ascontiguousarray(integers.T)
    return Stored(values=values.astype(np.int8), scale=nearest.scale, axis=axis)


def compensated(
    weight: Floats, moment: npt.NDArray[np.float64], scale: Floats, bits: int
) -> npt.NDArray[np.float64]:
    """Integers ``[outputs, K]`` for ``weight`` on ``scale`` ``[outputs]``, given X Xᵀ ``[K, K]``."""
    top = (1 << (bits - 1)) - 1
    left = weight.astype(np.float64).copy()
    step = scale.astype(np.float64)
    damp = _DAMPING * float(np.mean(np.diag(moment))) + 1e-12
    inverse = np.linalg.inv(moment + damp * np.eye(len(moment)))
    upper = np.linalg.cholesky(inverse).T  # row k: how an error at k spreads over the inputs after it
    integers = np.zeros_like(left)
    for k in range(left.shape[1]):
        integers[:, k] = np.clip(np.rint(left[:, k] / step), -top, top)
        error = (left[:, k] - integers[:, k] * step) / upper[k, k]
        left[:, k + 1 :] -= np.outer(error, upper[k, k + 1 :])
    return integers
