"""Matrices as integers in blocks along the inputs, as runtimes of language models read them.

``weight[n, k] = scale[n, b] * (integer[n, k] - zero[n, b])`` with ``b = k // block``. Rounding is by GPTQ (Frantar et
al., 2022, https://arxiv.org/abs/2210.17323): the error of each column is made good in those that are still to come,
weighted with the second moment of the layer's inputs; scales are searched for the least such error, block by block.
"""

from __future__ import annotations

from collections.abc import Iterator
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

_FEWEST = 16
"""Weights of a block, at least, unless it is a whole row."""

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

        integers, scales = (
            np.concatenate([p.integers for p in parts]),
            np.concatenate([p.scales for p in parts]),
        )
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


def whole_block(columns: int, most: int) -> int:
    """The largest block of at most ``most`` that ``columns`` inputs are whole blocks of: ``most`` halved until it fits;
    all inputs where none does."""
    while most >= _FEWEST:
        if columns % most == 0:
            return most
        most //= 2
    return columns


def rounded(
    weight: torch.Tensor,
    bits: int,
    moment: torch.Tensor | None = None,
    *,
    form: str = "zeros",
    block: int = BLOCK,
) -> BlockWeights:
    """``weight`` ``[outputs, inputs]`` in blocks.

    Args:
        weight: float32.
        bits: 4 or 8.
        moment: ``[inputs, inputs]``, the sum of the outer products of the layer's inputs; without it each weight goes
            to its nearest integer.
        form: ``"symmetric"``; ``"zeros"``, an integer of its own for each block; or ``"offsets"``, a real number for
            each, which costs half a bit a weight more and a sum over the inputs of each block at run time.
        block: how many weights share a scale.
    """
    rows, columns = weight.shape
    padding = -columns % block
    wide = torch.nn.functional.pad(weight.float(), (0, padding))
    importance = torch.ones(columns + padding)
    if moment is not None:
        importance[:columns] = moment.diagonal().float().clamp_min(1e-12)
        importance[:columns] /= importance[:columns].mean()
    scales, zeros = _grid(wide.reshape(rows, -1, block), importance.reshape(-1, block), bits, form)
    if moment is None:
        integers = _nearest_all(wide.reshape(rows, -1, block), scales, zeros, bits)
        integers = integers.reshape(rows, -1)[:, :columns]
    else:
        integers = _compensated(weight.float(), moment, scales, zeros, bits, block)
    # The value of the integer 0 is a number of float16, as it was when the grid was chosen.
    first = (-zeros * scales).half().float()
    offsets = first + (1 << (bits - 1)) * scales if form == "offsets" else None
    return BlockWeights(
        bits=bits,
        block=block,
        integers=integers.numpy(),
        scales=scales.numpy().astype(np.float32),
        zeros=zeros.numpy().astype(np.uint8) if form == "zeros" else None,
        offsets=None if offsets is None else offsets.numpy().astype(np.float32),
    )


def _nearest(x: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, bits: int) -> torch.Tensor:
    return torch.clamp(torch.round(x / scale + zero), 0, (1 << bits) - 1)


def _nearest_all(blocks: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, bits: int) -> torch.Tensor:
    """The nearest integers of all blocks, uint8."""
    found = torch.empty(blocks.shape, dtype=torch.uint8)
    for rows in _few(blocks):
        found[rows] = _nearest(blocks[rows], scales[rows][..., None], zeros[rows][..., None], bits).byte()
    return found


_AT_ONCE = 1 << 16
"""Numbers that are worked on at once: what stays in a processor's cache."""


def _few(blocks: torch.Tensor) -> Iterator[slice]:
    """The rows of a matrix, a few at a time: intermediate results of all would go through memory dozens of times."""
    step = max(1, _AT_ONCE // max(1, blocks[0].numel()))
    for start in range(0, blocks.shape[0], step):
        yield slice(start, start + step)


def _grid(
    blocks: torch.Tensor, importance: torch.Tensor, bits: int, form: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and zero of each block ``[outputs, blocks]``: of some ranges the one with the least weighted error.

    Scales are numbers of float16, as files keep them so; with offsets, so is the value of the integer 0.
    """
    found = [_grid_of(blocks[rows], importance, bits, form) for rows in _few(blocks)]
    return torch.cat([scale for scale, _ in found]), torch.cat([zero for _, zero in found])


def _grid_of(
    blocks: torch.Tensor, importance: torch.Tensor, bits: int, form: str
) -> tuple[torch.Tensor, torch.Tensor]:
    best = torch.full_like(blocks[..., 0], torch.inf)
    scales, zeros = torch.ones_like(best), torch.zeros_like(best)
    for scale, zero in _candidates(blocks, bits, form):
        back = (_nearest(blocks, scale[..., None], zero[..., None], bits) - zero[..., None]) * scale[
            ..., None
        ]
        error = ((back - blocks).square() * importance).sum(-1)
        better = error < best
        best, scales = torch.where(better, error, best), torch.where(better, scale, scales)
        zeros = torch.where(better, zero, zeros)
    return scales, zeros


_SMALLEST = 2.0**-24
"""The smallest scale: float16's."""


def _half(scale: torch.Tensor) -> torch.Tensor:
    return scale.half().float().clamp_min(_SMALLEST)


def _candidates(blocks: torch.Tensor, bits: int, form: str) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    levels, middle = (1 << bits) - 1, 1 << (bits - 1)
    low, high = blocks.amin(-1), blocks.amax(-1)
    for shrink in _SHRINKS:
        if form == "symmetric":
            largest = torch.maximum(high, -low) * shrink
            for steps in (middle - 1, middle):  # the negative side has one integer more
                yield _half(largest / steps), torch.full_like(low, float(middle))
        elif form == "offsets":
            centre, reach = (high + low) / 2, (high - low) / 2 * shrink
            scale, first = _half(2 * reach / levels), (centre - reach).half().float()
            yield scale, -first / scale
        else:
            bottom, top = low.clamp_max(0.0) * shrink, high.clamp_min(0.0) * shrink
            scale = _half((top - bottom) / levels)
            for zero in (torch.round(-bottom / scale), torch.floor(-bottom / scale)):
                yield scale, zero.clamp(0, levels)


def _compensated(
    weight: torch.Tensor,
    moment: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor,
    bits: int,
    block: int,
) -> torch.Tensor:
    """GPTQ in the order of the columns, in groups of ``block`` columns with one update of the rest each. The steps of a
    column are numpy's: they are so small that what torch adds to each would be most of it."""
    columns, rows = int(weight.shape[1]), int(weight.shape[0])
    upper = _inverse_root(moment)
    left = weight.T.contiguous()  # a column of the matrix is a row here: the loop reads and writes rows
    left[moment.diagonal() <= 0] = 0.0
    integers = np.empty((columns, rows), np.uint8)
    factors, highest = upper.numpy(), (1 << bits) - 1
    for start in range(0, columns, block):
        end = min(start + block, columns)
        scale, zero = (a[:, start // block].contiguous().numpy() for a in (scales, zeros))
        errors, group = torch.empty(end - start, rows), left[start:end].numpy()
        for column, values in enumerate(group):
            nearest = np.clip(np.rint(values / scale + zero), 0, highest)
            integers[start + column] = nearest
            factor = factors[start + column, start + column : end]
            error = (values - (nearest - zero) * scale) / factor[0]
            group[column + 1 :] -= np.multiply.outer(factor[1:], error)
            errors[column] = torch.from_numpy(error)
        left[end:].addmm_(upper[start:end, end:].T, errors, alpha=-1.0)
    return torch.from_numpy(np.ascontiguousarray(integers.T))


def _inverse_root(moment: torch.Tensor) -> torch.Tensor:
    """The upper triangle ``R`` with ``R.T @ R`` the inverse of the damped moment, float32: of the moment with its order
    reversed, the Cholesky factor is, reversed again, the inverse of ``R``. Where float32 is not enough, float64 is."""
    for dtype in (torch.float32, torch.float64):
        hessian = moment.to(dtype, copy=True)
        diagonal = hessian.diagonal()
        diagonal[diagonal <= 0] = 1.0
        diagonal.add_(_DAMPING * float(diagonal.double().mean()))
        lower, failed = torch.linalg.cholesky_ex(hessian.flip(0, 1))
        if not failed:
            break
    one = torch.eye(lower.shape[0], dtype=lower.dtype)
    found: torch.Tensor = torch.linalg.solve_triangular(lower.flip(0, 1), one, upper=True)
    return found.float()
