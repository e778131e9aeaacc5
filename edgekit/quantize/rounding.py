"""Rounding weights with regard to the inputs they meet: layer-wise reconstruction.

Weights are rounded one input after the other; what one rounding does to the layer's output is made up for in the
weights not yet rounded. After Frantar et al., "GPTQ" (ICLR 2023, arXiv 2210.17323), on Hassibi
and Stork's "Optimal Brain Surgeon" (1993): for the error E = |W X - Wq X|² the compensation follows from the inverse
of H = X Xᵀ, by way of its Cholesky factor. Nagel et al., "Up or Down? Adaptive Rounding" (ICML 2020), state the same
objective. Scales are settled before, a channel's or a block's each, so that the order of the inputs is free.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from math import prod
from typing import TypeAlias

import ml_dtypes
import numpy as np
import numpy.typing as npt

from edgekit.quantize.blocks import Block, attribute, constant, matrix
from edgekit.quantize.inputs import LayerInputs
from edgekit.quantize.params import Floats, Stored, quantize_blocks, quantize_weight, weight_scale

_POSITIONS = 1024  # columns of X a layer and sample
_WIDEST = 4608  # inputs of a layer: H is [K, K]
_ROOM = 1 << 26  # elements of all H that are gathered at once (512 MiB)
_DAMPING = 0.01  # of the mean of H's diagonal
_LAZY = 128  # inputs whose compensation is carried to the rest together

Doubles = npt.NDArray[np.float64]
Form: TypeAlias = tuple[int | str, int]
"""What kind of integers: bits and whether there is a scale a channel, or ``("blocks", size)``."""


class Rounding:
    """Integer weights of a model's layers, each rounded once however often it is asked for."""

    def __init__(self, inputs: LayerInputs) -> None:
        self.inputs = inputs
        self._lock = threading.Lock()
        self._integers: dict[tuple[str, Form], Stored] = {}

    def weights(self, blocks: Iterable[Block], bits: int, *, per_channel: bool) -> dict[str, Stored]:
        """Integers of ``bits`` by the weight's name, with a scale a channel or one; shared weights are left to
        nearest."""

        def rounded(block: Block, moment: Doubles) -> Stored:
            return _round(block, moment, bits, block.weight_axis if per_channel else None)

        return self._all([b for b in blocks if fits(b)], (bits, per_channel), rounded)

    def blockwise(self, blocks: Iterable[Block], size: int) -> dict[str, Stored]:
        """INT4 by the weight's name, with a scale for ``size`` inputs, on those of :func:`quantize_blocks`."""

        def rounded(block: Block, moment: Doubles) -> Stored:
            weight = matrix(block)
            nearest = quantize_blocks(weight, size)
            steps = np.repeat(nearest.scale, size, axis=0)
            values = compensated(weight.T, moment[0], steps.T, (-8, 7)).T
            return Stored(values=values.astype(ml_dtypes.int4), scale=nearest.scale, axis=0)

        return self._all([b for b in blocks if fits(b)], ("blocks", size), rounded)

    def _all(
        self, blocks: Sequence[Block], form: Form, rounded: Callable[[Block, Doubles], Stored]
    ) -> dict[str, Stored]:
        with self._lock:  # whoever asks at the same time asks for the same
            new = [b for b in blocks if (b.name, form) not in self._integers]
            for block, moment in moments(self.inputs, new):
                self._integers[block.name, form] = rounded(block, moment)
            return {b.weight.name or "": self._integers[b.name, form] for b in blocks if b.weight is not None}


def fits(block: Block) -> bool:
    """Whether a block's weight can be rounded so: constant, its own, not too wide, and it meets activations."""
    weight = block.weight
    if weight is None or block.op not in ("Conv", "Gemm", "MatMul") or len(weight.uses()) != 1:
        return False
    if not block.activations:
        return False
    array = constant(weight)
    if array is None or array.dtype != np.float32 or block.weight_axis is None:
        return False
    if block.op == "Conv":
        plain = array.ndim == 4 and attribute(block.core, "auto_pad", "NOTSET") == "NOTSET"
        return plain and bool(prod(array.shape[1:]) <= _WIDEST)
    return bool(_matrix(block, array).shape[1] <= _WIDEST)


def moments(inputs: LayerInputs, blocks: Sequence[Block]) -> Iterator[tuple[Block, Doubles]]:
    """H = X Xᵀ over the calibration inputs of each block, ``[groups, K, K]``; as many at a time as memory allows."""
    waiting = list(blocks)
    while waiting:
        room, batch = _ROOM, list[Block]()
        while waiting and (not batch or _elements(waiting[0]) <= room):
            room -= _elements(waiting[0])
            batch.append(waiting.pop(0))
        sums: dict[Block, Doubles] = {}
        for values in inputs.values(list(dict.fromkeys(b.activations[0].name or "" for b in batch))):
            for block in batch:
                moment = _second_moment(block, values[block.activations[0].name or ""])
                sums[block] = sums[block] + moment if block in sums else moment
        yield from sums.items()


def _elements(block: Block) -> int:
    array = constant(block.weight) if block.weight is not None else None
    assert array is not None
    groups = int(attribute(block.core, "group", 1)) if block.op == "Conv" else 1
    return groups * int(_matrix(block, array).shape[1]) ** 2


def _matrix(block: Block, array: Floats) -> Floats:
    """The weight as ``[outputs, inputs]``."""
    if block.op == "Conv":
        return array.reshape(array.shape[0], -1)
    return array if block.op == "Gemm" and attribute(block.core, "transB", 0) else array.T


def _second_moment(block: Block, x: Floats) -> Doubles:
    """X Xᵀ by group, ``[groups, K, K]``, over at most :data:`_POSITIONS` positions."""
    columns = _columns(block, x) if block.op == "Conv" else x.reshape(-1, x.shape[-1])[None]
    step = max(1, columns.shape[1] // _POSITIONS)
    thin = columns[:, ::step].astype(np.float32)
    moment: Doubles = np.matmul(thin.transpose(0, 2, 1), thin).astype(np.float64)
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


def _round(block: Block, moment: Doubles, bits: int, axis: int | None) -> Stored:
    assert block.weight is not None
    array = constant(block.weight)
    assert array is not None
    scale = weight_scale(array, axis, bits)
    rows = _matrix(block, array)
    groups, outputs = moment.shape[0], rows.shape[0]
    size = outputs // groups
    top = (1 << (bits - 1)) - 1
    parts = (slice(g * size, (g + 1) * size) for g in range(groups))
    steps = np.broadcast_to(scale, outputs)[:, None]
    integers = np.concatenate(
        [compensated(rows[p], moment[g], steps[p], (-top, top)) for g, p in enumerate(parts)]
    )
    nearest = quantize_weight(array, axis, bits, scale)
    if block.op == "Conv" or (block.op == "Gemm" and attribute(block.core, "transB", 0)):
        values = integers.reshape(array.shape)
    else:
        values = np.ascontiguousarray(integers.T)
    return Stored(values=values.astype(np.int8), scale=nearest.scale, axis=axis)


def compensated(
    weight: Floats, moment: Doubles, scale: Floats, limits: tuple[int, int]
) -> npt.NDArray[np.int8]:
    """Integers ``[outputs, K]`` between ``limits`` for ``weight`` on ``scale`` ``[outputs, K or 1]``, given
    X Xᵀ ``[K, K]``.

    An output takes the better of two orders of its inputs: the largest first, which trained layers mostly favour, and
    as they come, which keeps neighbours together.
    """
    steps = np.broadcast_to(scale, weight.shape).astype(np.float64)
    best, least = np.zeros(weight.shape, np.int8), np.full(len(weight), np.inf)
    for order in (np.argsort(-np.diag(moment), kind="stable"), np.arange(len(moment))):
        integers = np.empty(weight.shape, np.int8)
        upper = _spread(moment[np.ix_(order, order)])
        integers[:, order] = _in_turn(weight[:, order].astype(np.float64), steps[:, order], upper, limits)
        error = integers * steps - weight
        squares = np.einsum("ok,ok->o", error @ moment, error)
        better = squares < least
        best[better], least[better] = integers[better], squares[better]
    return best


def _in_turn(left: Doubles, steps: Doubles, upper: Doubles, limits: tuple[int, int]) -> Doubles:
    """Integers for ``left`` ``[outputs, K]``, which is used up, one input after the other."""
    integers = np.zeros_like(left)
    for start in range(0, left.shape[1], _LAZY):
        end = min(start + _LAZY, left.shape[1])
        errors = np.zeros((len(left), end - start))
        for k in range(start, end):
            integers[:, k] = np.clip(np.rint(left[:, k] / steps[:, k]), *limits)
            error = (left[:, k] - integers[:, k] * steps[:, k]) / upper[k, k]
            left[:, k + 1 : end] -= np.outer(error, upper[k, k + 1 : end])
            errors[:, k - start] = error
        left[:, end:] -= errors @ upper[start:end, end:]
    return integers


def _spread(moment: Doubles) -> Doubles:
    """The upper Cholesky factor of H⁻¹: row k tells how an error at k is made up for by the inputs after it."""
    damping = _DAMPING * float(np.mean(np.diag(moment))) + 1e-12
    while True:
        damped = moment + damping * np.eye(len(moment))
        try:
            factor: Doubles = np.linalg.cholesky(np.linalg.inv(damped)).T
        except np.linalg.LinAlgError:  # float32 sums of inputs of very different size
            damping *= 10.0
        else:
            return factor
