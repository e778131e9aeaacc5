"""Offsets of blocks as columns of the matrix: a product with integers then needs nothing beside it.

A block with a real offset is ``(integer - zero) * scale + rest``: an integer zero, and a rest of half a step at most.
What the rests add is their product with the sums of the inputs over each block. So they are columns of their own, in
blocks of integers as the matrix is, and the sums are inputs of their own. They come twice: the sum of two integers of
four bits has twice as many values as one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from edgekit.quantize.block_weights import BlockWeights

if TYPE_CHECKING:
    from edgekit.types import Array

COPIES = 2
"""How often the sums follow the inputs."""

_MOST_LOST = 1 / 24
"""Of a row's largest step: an offset that would be further off is not written so."""


def as_columns(stored: BlockWeights) -> BlockWeights | None:
    """``[outputs, inputs + COPIES * blocks]`` without offsets, or ``None`` where integers are too coarse for them: in
    a row of which a block's weights are all alike, or all far from zero."""
    if stored.offsets is None or stored.zeros is not None or stored.shape[1] % stored.block:
        return None
    steps = np.where(stored.scales > 0, stored.scales, 1.0)
    zeros = np.clip(np.rint(stored.middle - stored.offsets / steps), 0, 2 * stored.middle - 1)
    rest = stored.offsets - (stored.middle - zeros) * stored.scales
    scale = _scale(rest, stored.middle)
    whole = np.clip(np.rint(rest / scale), -COPIES * stored.middle, COPIES * (stored.middle - 1))
    if (np.abs(whole * scale - rest).max(1) > _MOST_LOST * stored.scales.max(1)).any():
        return None
    columns = np.concatenate([(whole + i) // COPIES for i in range(COPIES)], 1) + stored.middle
    blocks = -(-columns.shape[1] // stored.block)
    return replace(
        stored,
        integers=np.concatenate([stored.integers, columns.astype(np.uint8)], 1),
        scales=np.concatenate([stored.scales, np.repeat(scale, blocks, 1)], 1),
        zeros=np.pad(zeros.astype(np.uint8), ((0, 0), (0, blocks)), constant_values=stored.middle),
        offsets=None,
    )


def _scale(rest: Array, middle: int) -> Array:
    """One of each row, a number of float16: that with which its rests fit."""
    most = np.maximum(rest.max(1) / (middle - 1), -rest.min(1) / middle) / COPIES
    scale: Array = np.maximum(most, 2.0**-24).astype(np.float16).astype(np.float32)[:, None]
    return scale
