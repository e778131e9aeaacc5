"""Matrices as integers in blocks along the inputs, as runtimes of language models read them.

``weight[n, k] = scale[n, b] * (integer[n, k] - zero[n, b])`` with ``b = k // block``. Rounding is by GPTQ (Frantar et
al., 2022, https://arxiv.org/abs/2210.17323): the error of each column is made good in those that are still to come,
weighted with the second moment of the layer's inputs; scales are searched for the least such error, block by block.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from edgekit.types import Array

BLOCK = 32
"""Weights that share a scale: what GGUF has, and what MatMulNBits is quick with."""

_DAMPING = 0.01
"""Of the mean of the moment's diagonal, added to it: inputs that were never seen must not decide."""

_SHRINKS = tuple(1.0 - 0.05 * i for i in range(8))
"""Ranges that are tried of each block, as parts of its whole range."""


@dataclass(frozen=True, kw_only=True, eq=False)
class BlockWeights:
    """One matrix ``[outputs, inputs]``.

    ``integers``: uint8, from 0 to ``2**bits - 1``; ``scales`` float32 ``[outputs, blocks]``; ``zeros`` uint8
    ``[outputs, blocks]``, or ``None`` for the middle, ``2**(bits - 1)``. ``offsets`` float32 ``[outputs, blocks]`` is
    added to every weight of a block, where the form that it came in is not of integers around a zero.
    """

    bits: int
    integers: Array
    scales: Array
    block: int = BLOCK
    zeros: Array | None = None
    offsets: Array | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs."""
        rows, columns = self.integers.shape
        return int(rows), int(columns)

    @property
    def middle(self) -> int:
        """The integer that is zero where ``zeros`` does not say."""
        return 1 << (self.bits - 1)

    def widened(self) -> Array:
        """The matrix as float32."""
        rows, columns = self.shape
        zeros = self.middle if self.zeros is None else self.zeros.astype(np.float32)[..., None]
        blocks = _blocks(self.integers, self.block).astype(np.float32)
        real = (blocks - zeros) * self.scales[..., None]
        if self.offsets is not None:
            real += self.offsets[..., None]
        return np.ascontiguousarray(real.reshape(rows, -1)[:, :columns])

    def packed(self) -> Array:
        """``[outputs, blocks, block * bits / 8]``, the first of two 4-bit integers in the low half of a byte."""
        return pack(_blocks(self.integers, self.block, fill=self.middle), self.bits)

    def packed_zeros(self) -> Array | None:
        """``[outputs, bytes]``: a row's zeros, one after the other."""
        if self.zeros is None:
            return None
        odd = self.zeros.shape[1] % (8 // self.bits)
        padded = np.pad(self.zeros, ((0, 0), (0, odd)))
        return pack(padded, self.bits)

    def selected(self, rows: slice | Array) -> BlockWeights:
        """Some of the outputs, or all in another order."""
        zeros, offsets = (None if a is None else a[rows] for a in (self.zeros, self.offsets))
        return replace(
            self, integers=self.integers[rows], scales=self.scales[rows], zeros=zeros, offsets=offsets
        )

    @classmethod
    def joined(cls, parts: list[BlockWeights]) -> BlockWeights:
        """Matrices with the same inputs as one, outputs one after the other. They must be of one form."""
        first = parts[0]

        def all_of(name: str) -> Array | None:
            arrays = [getattr(p, name) for p in parts]
            return None if arrays[0] is None else np.concatenate(arrays)

        integers, scales = np.concatenate([p.integers for p in parts]), np.concatenate([p.scales for p in parts])
        return replace(
            first, integers=integers, scales=scales, zeros=all_of("zeros"), offsets=all_of("offsets")
        )

    def like(self, other: BlockWeights) -> bool:
        """Whether the two can be joined."""
        return (self.bits, self.block, self.zeros is None, self.offsets is None) == (
            other.bits,
            other.block,
            other.zeros is None,
            other.offsets is None,
        )


def pack(integers: Array, bits: int) -> Array:
    """The last axis in bytes; 4-bit integers two a byte, the first in the low half."""
    if bits == 8:
        return np.ascontiguousarray(integers, dtype=np.uint8)
    low, high = integers[..., 0::2], integers[..., 1::2]
    return np.ascontiguousarray(low | (high << 4), dtype=np.uint8)


def _blocks(integers: Array, block: int, fill: int = 0) -> Array:
    rows, columns = integers.shape
    padded = np.pad(integers, ((0, 0), (0, -columns % block)), constant_values=fill)
    return padded.reshape(rows, -1, block)


def rounded(
    weight: torch.Tensor,
    bits: int,
    moment: torch.Tensor | None = None,
    *,
    symmetric: bool = False,
    block: int = BLOCK,
) -> BlockWeights:
    """``weight`` ``[outputs, inputs]`` in blocks.

    Args:
        weight: float32.
        bits: 4 or 8.
        moment: ``[inputs, inputs]``, the sum of the outer products of the layer's inputs; without it each weight goes to
            its nearest integer.
        symmetric: no zeros of their own for the blocks.
        block: how many weights share a scale.
    """
    rows, columns = weight.shape
    padding = -columns % block
    wide = torch.nn.functional.pad(weight.float(), (0, padding))
    importance = torch.ones(columns + padding)
    if moment is not None:
        importance[:columns] = moment.diagonal().float().clamp_min(1e-12)
        importance[:columns] /= importance[:columns].mean()
    scales, zeros = _grid(wide.reshape(rows, -1, block), importance.reshape(-1, block), bits, symmetric)
    if moment is None:
        integers = _nearest(wide.reshape(rows, -1, block), scales[..., None], zeros[..., None], bits)
        integers = integers.reshape(rows, -1)[:, :columns]
    else:
        integers = _compensated(weight.float(), moment, scales, zeros, bits, block)
    return BlockWeights(
        bits=bits,
        block=block,
        integers=integers.numpy().astype(np.uint8),
        scales=scales.numpy().astype(np.float32),
        zeros=None if symmetric else zeros.numpy().astype(np.uint8),
    )


def _nearest(x: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, bits: int) -> torch.Tensor:
    return torch.clamp(torch.round(x / scale) + zero, 0, (1 << bits) - 1)


def _grid(
    blocks: torch.Tensor, importance: torch.Tensor, bits: int, symmetric: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and zero of each block ``[outputs, blocks]``: of some ranges the one with the least weighted error.

    Scales are numbers of float16, as files keep them so.
    """
    levels = (1 << bits) - 1
    low, high = blocks.amin(-1).clamp_max(0.0), blocks.amax(-1).clamp_min(0.0)
    best = torch.full_like(low, torch.inf)
    scales, zeros = torch.ones_like(low), torch.zeros_like(low)
    for scale, zero in _candidates(low, high, blocks, levels, symmetric):
        steps = scale.half().float().clamp_min(2.0**-24)
        back = (_nearest(blocks, steps[..., None], zero[..., None], bits) - zero[..., None]) * steps[..., None]
        error = ((back - blocks).square() * importance).sum(-1)
        better = error < best
        best, scales = torch.where(better, error, best), torch.where(better, steps, scales)
        zeros = torch.where(better, zero, zeros)
    return scales, zeros


def _candidates(
    low: torch.Tensor, high: torch.Tensor, blocks: torch.Tensor, levels: int, symmetric: bool
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    middle = (levels + 1) // 2
    if symmetric:
        # The largest value sits on the end of the integers that has one more: its sign decides which way they point.
        largest = torch.where(high >= -low, high, low)
        whole = torch.full_like(low, float(middle))
        turned = [(-largest / middle * shrink, whole) for shrink in _SHRINKS]
        plain = [(torch.maximum(high, -low) / (middle - 1) * shrink, whole) for shrink in _SHRINKS]
        del blocks
        return [(s.abs(), z) for s, z in plain] + [(s.abs(), z) for s, z in turned]
    found = []
    for shrink in _SHRINKS:
        scale = ((high - low) * shrink / levels).clamp_min(2.0**-24)
        for zero in (torch.round(-low * shrink / scale), torch.floor(-low * shrink / scale)):
            found.append((scale, zero.clamp(0, levels)))
    return found


def _compensated(
    weight: torch.Tensor,
    moment: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor,
    bits: int,
    block: int,
) -> torch.Tensor:
    """GPTQ in the order of the columns, in groups of ``block`` columns with one update of the rest each."""
    left = weight.double().clone()
    rows, columns = left.shape
    hessian = moment.double().clone()
    unseen = hessian.diagonal() <= 0
    hessian.diagonal()[unseen] = 1.0
    left[:, unseen] = 0.0
    hessian.diagonal().add_(_DAMPING * float(hessian.diagonal().mean()))
    upper = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(hessian)), upper=True)
    integers = torch.zeros(rows, columns)
    for start in range(0, columns, block):
        end = min(start + block, columns)
        scale, zero = scales[:, start // block].double(), zeros[:, start // block].double()
        errors = torch.zeros(rows, end - start, dtype=torch.double)
        for column in range(start, end):
            rounded_to = _nearest(left[:, column], scale, zero, bits)
            integers[:, column] = rounded_to.float()
            error = (left[:, column] - (rounded_to - zero) * scale) / upper[column, column]
            left[:, column:end] -= error[:, None] * upper[column, column:end]
            errors[:, column - start] = error
        left[:, end:] -= errors @ upper[start:end, end:]
    return integers
