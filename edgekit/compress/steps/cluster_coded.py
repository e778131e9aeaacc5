"""Tables and indices that cost the loss least at a given number of coded bits.

Three known ideas together. Entropy-constrained quantization (Chou, Lookabaugh & Gray 1989) with the curvature of the
loss as the weight of each error (Choi, El-Khamy & Lee, "Towards the limit of network quantization", ICLR 2017): one
Lagrange multiplier for all layers, so that bits go where they lower the loss most. Error feedback (Hassibi & Stork
1993; Frantar et al., "GPTQ", 2022): columns are quantized one after another, and what is left of a layer takes up the
error that was made; here each choice also pays for its bits. And the table that is best for the indices found, by
weighted least squares.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from edgekit.compress.curvature import Block, Curvature

_TRIES = 3  # error feedback moves the rate, so that the multiplier is sought again
_TOLERANCE = 0.02
_PASSES = 3
_ENTRY = 40
"""Bits of one entry of a table: a float, and what a coder takes to learn how often it comes."""
_SAMPLE = 1 << 13
_LLOYD = 12
_CHUNK = 1 << 16
_COLUMNS = 128
_REFIT_FLOPS = 2e10


@dataclass(frozen=True, kw_only=True)
class Shares:
    """One layer: ``table`` ``[≤ values + 1]`` with 0 first, ``index`` in the shape of the weight, and ``shift``, what
    the bias grows by, one number an output; ``None`` where it is not known."""

    table: torch.Tensor
    index: torch.Tensor
    shift: torch.Tensor | None


@dataclass(kw_only=True)
class Coded:
    """One layer: ``table`` with 0 first, and for each weight, as a matrix, its place in it."""

    table: torch.Tensor
    index: torch.Tensor

    def bits(self) -> torch.Tensor:
        """Bits of each table entry, from how often it is used."""
        counts = torch.bincount(self.index.flatten(), minlength=len(self.table)).double()
        return -torch.log2((counts + 0.5) / (counts + 0.5).sum())

    def total(self) -> float:
        """Bits of all indices, at their entropy, and of the table."""
        return float(self.bits()[self.index].sum()) + _ENTRY * len(self.table)


def share(
    weights: Mapping[str, torch.Tensor],
    curvatures: Mapping[str, Curvature],
    counts: Mapping[str, int],
    bits: float,
) -> dict[str, Shares]:
    """Each layer's table and indices, with ``bits`` a weight for all layers together, tables included.

    Weights that are zero stay zero.
    """
    matrices = {name: w.detach().reshape(w.shape[0], -1).double().cpu() for name, w in weights.items()}
    whole = sum(w.numel() for w in matrices.values())
    importance = {name: _importance(curvatures[name]) for name in matrices}
    aim, nearest = bits, math.inf
    for _ in range(_TRIES):
        multiplier = _multiplier(matrices, importance, counts, aim)
        layers = {
            name: _nearest(w, importance[name], multiplier, counts[name]) for name, w in matrices.items()
        }
        for _ in range(_PASSES):
            _pass(layers, matrices, curvatures, multiplier)
        rate = sum(layer.total() for layer in layers.values()) / whole
        if abs(rate / bits - 1) < nearest:
            nearest, coded = abs(rate / bits - 1), layers
        if nearest < _TOLERANCE:
            break
        aim *= (bits / rate) ** 0.5  # the feedback moves the rate; half-way: layers may drop out at once
    return {name: _shares(coded[name], w, weights[name], curvatures[name]) for name, w in matrices.items()}


def _pass(
    coded: Mapping[str, Coded],
    matrices: Mapping[str, torch.Tensor],
    curvatures: Mapping[str, Curvature],
    multiplier: float,
) -> None:
    for name, w in matrices.items():
        _feed_back(coded[name], w, curvatures[name], multiplier)
        _refit(coded[name], w, curvatures[name])


def _shares(coded: Coded, matrix: torch.Tensor, weight: torch.Tensor, curvature: Curvature) -> Shares:
    shift = matrix.new_zeros(len(matrix))
    error = matrix - coded.table[coded.index]
    for block in curvature.blocks:
        shift[block.rows] += error[block.rows, block.columns] @ block.mean
    return Shares(
        table=coded.table.to(weight.dtype),
        index=coded.index.view(weight.shape),
        shift=shift.to(weight.dtype) if curvature.blocks else None,
    )


def _importance(curvature: Curvature) -> torch.Tensor:
    """What an error in a weight costs when the columns after it make up for it as well as they can."""
    if not curvature.blocks:
        return curvature.diagonal
    out = torch.empty_like(curvature.diagonal)
    for block in curvature.blocks:
        order, upper = _factor(block)
        columns = torch.empty(len(order), dtype=torch.float64)
        columns[order] = upper.diagonal() ** -2
        out[block.rows, block.columns] = columns
    return out


def _factor(block: Block) -> tuple[torch.Tensor, torch.Tensor]:
    """The order of the columns, the most important first, and the upper Cholesky factor of the inverse moments."""
    order = torch.argsort(block.moments.diagonal(), descending=True, stable=True)
    moments = block.moments[order][:, order]
    damping = moments.diagonal().mean() * 1e-6
    while True:
        lower, failed = torch.linalg.cholesky_ex(moments)
        if not failed:
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
        if not failed:
            return order, upper
        moments.diagonal().add_(damping)  # what rounding left is not positive definite
        damping *= 10


def _multiplier(
    matrices: Mapping[str, torch.Tensor],
    importance: Mapping[str, torch.Tensor],
    counts: Mapping[str, int],
    bits: float,
) -> float:
    """The Lagrange multiplier, in loss a bit, at which a weight takes ``bits``: bisection over a sample."""
    whole = sum(w.numel() for w in matrices.values())
    samples = {}
    for name, w in matrices.items():
        step = -(-w.numel() // _SAMPLE)
        samples[name] = w.flatten()[::step, None], importance[name].flatten()[::step, None]

    def rate(multiplier: float) -> float:
        out = 0.0
        for name, (w, h) in samples.items():
            each = matrices[name].numel() / w.numel()
            coded = _nearest(w, h, multiplier, counts[name], each)
            entries = _ENTRY * len(coded.table)
            out += (coded.total() - entries) * each + entries
        return out / whole

    middle = max(float((h * w.square()).mean()) for w, h in samples.values())
    low, high = math.log(middle) - 40, math.log(middle) + 5  # far beyond both ends
    for _ in range(18):
        at = (low + high) / 2
        low, high = (at, high) if rate(math.exp(at)) > bits else (low, at)
    return math.exp(high)


def _nearest(
    weight: torch.Tensor, importance: torch.Tensor, multiplier: float, count: int, each: float = 1.0
) -> Coded:
    """Entropy-constrained k-means of single weights, from an even grid as fine as the multiplier allows. Entries that
    few weights share are dear: they pay for their place in the table. A weight stands for ``each``."""
    flat, h = weight.flatten(), importance.flatten()
    zero = flat == 0
    some, minds = flat[~zero], h[~zero]
    if not len(some):
        return Coded(table=flat.new_zeros(1), index=torch.zeros(weight.shape, dtype=torch.int64))
    step = -(-len(some) // (4 * _CHUNK))  # the table is found on a sample of the weights, the indices for all
    sample, weights = some[::step], minds[::step]
    pitch = math.sqrt(12 * multiplier / (float(weights.mean()) * math.log(2)))
    table = _grid(sample, pitch, count)
    bits = torch.zeros_like(table)
    dead = float(zero.sum()) / step
    for _ in range(_LLOYD):
        nearest = assign(sample, table, multiplier * bits, weights)
        members = torch.bincount(nearest, minlength=len(table)).double()
        mass = torch.bincount(nearest, weights=weights, minlength=len(table))
        sums = torch.bincount(nearest, weights=weights * sample, minlength=len(table))
        table = torch.where(mass > 0, sums / mass.clamp_min(1e-300), table)
        table[0] = 0
        members[0] += dead
        keep = members > 0
        keep[0] = True
        table, members = table[keep], members[keep]
        bits = -torch.log2((members + 0.5) / (members + 0.5).sum())
        bits += _ENTRY / ((members + 0.5) * step * each)
        bits[0] = -torch.log2((members[0] + 0.5) / (members + 0.5).sum())
    index = torch.zeros(flat.shape, dtype=torch.int64)
    index[~zero] = assign(some, table, multiplier * bits, minds)
    return Coded(table=table, index=index.view(weight.shape))


def _grid(values: torch.Tensor, pitch: float, count: int) -> torch.Tensor:
    """Zero, then multiples of the pitch over the range of the values: ``count`` at most, wider if need be."""
    low, high = float(values.min()), float(values.max())
    pitch = max(pitch, (high - min(low, 0.0)) / count, (max(high, 0.0) - low) / count)
    first, last = math.floor(min(low, 0.0) / pitch + 0.5), math.floor(max(high, 0.0) / pitch + 0.5)
    steps = [k for k in range(first, last + 1) if k]
    return torch.tensor([0.0, *(k * pitch for k in steps[:count])], dtype=torch.float64)


def assign(
    values: torch.Tensor, table: torch.Tensor, cost: torch.Tensor, importance: torch.Tensor | None = None
) -> torch.Tensor:
    """For each value ``[n]`` the entry of ``table`` ``[k]`` of the least squared error plus ``cost`` ``[k]``;
    half of each squared error times ``importance`` ``[n]`` where there is one."""
    out = torch.empty(len(values), dtype=torch.int64)
    for at in range(0, len(values), _CHUNK):  # all distances at once would take k times the layer's memory
        here = slice(at, at + _CHUNK)
        errors = (values[here, None] - table).square_()
        if importance is not None:
            errors.mul_(importance[here, None] / 2)
        out[here] = errors.add_(cost).argmin(dim=1)
    return out


def _feed_back(coded: Coded, weight: torch.Tensor, curvature: Curvature, multiplier: float) -> None:
    """Assign the weights anew, column by column; later columns make up for the errors of earlier ones."""
    cost = multiplier * coded.bits()
    if not curvature.blocks:
        some = weight != 0
        coded.index[some] = assign(weight[some], coded.table, cost, curvature.diagonal[some])
    for block in curvature.blocks:
        coded.index[block.rows, block.columns] = _walk(
            weight[block.rows, block.columns], block, coded.table, cost
        )


def _walk(weight: torch.Tensor, block: Block, table: torch.Tensor, cost: torch.Tensor) -> torch.Tensor:
    # As GPTQ does: within _COLUMNS columns an error reaches the next ones at once, those behind them in one product.
    order, upper = _factor(block)
    left = weight[:, order].clone()
    zero = left == 0
    index = torch.zeros(left.shape, dtype=torch.int64)
    for begin in range(0, left.shape[1], _COLUMNS):
        end = min(begin + _COLUMNS, left.shape[1])
        errors = left.new_zeros(len(left), end - begin)
        for j in range(begin, end):
            spread = upper[j, j]
            pay = (left[:, j, None] - table).square_().mul_(0.5 / spread**2)
            index[:, j] = pay.add_(cost).argmin(dim=1).masked_fill_(zero[:, j], 0)
            error = (left[:, j] - table[index[:, j]]) / spread
            left[:, j + 1 : end] -= error[:, None] * upper[j, j + 1 : end]
            errors[:, j - begin] = error
        left[:, end:] -= errors @ upper[begin:end, end:]
    out = torch.empty_like(index)
    out[:, order] = index
    return out


def _refit(coded: Coded, weight: torch.Tensor, curvature: Curvature) -> None:
    """The table of least loss for the indices. Entries that nobody uses go."""
    used, index = torch.unique(
        torch.cat([torch.zeros(1, dtype=torch.int64), coded.index.flatten()]), return_inverse=True
    )
    coded.table, coded.index = coded.table[used], index[1:].view(weight.shape)
    count = len(used)
    if count == 1:
        return
    products = torch.zeros(count, count, dtype=torch.float64)
    moments = torch.zeros(count, dtype=torch.float64)
    if not curvature.blocks:
        flat = coded.index.flatten()
        products += torch.diag(torch.bincount(flat, weights=curvature.diagonal.flatten(), minlength=count))
        moments += torch.bincount(flat, weights=(curvature.diagonal * weight).flatten(), minlength=count)
    for block in curvature.blocks:
        width = block.moments.shape[0]
        # A part of the rows where all of them would take more than _REFIT_FLOPS.
        step = max(1, math.ceil((block.rows.stop - block.rows.start) * count * width**2 / _REFIT_FLOPS))
        rows = torch.arange(block.rows.start, block.rows.stop, step)
        index, w = coded.index[rows][:, block.columns], weight[rows][:, block.columns]
        for k in range(1, count):
            pull = (index == k).double() @ block.moments
            products[k] += torch.bincount(index.flatten(), weights=pull.flatten(), minlength=count)
            moments[k] += (pull * w).sum()
    inner = products[1:, 1:]  # the entry 0 stays
    inner = inner + torch.eye(count - 1, dtype=torch.float64) * (1e-6 * inner.diagonal().mean() + 1e-300)
    moments[1:] += (inner.diagonal() - products[1:, 1:].diagonal()) * coded.table[1:]
    coded.table = torch.cat([coded.table[:1], torch.linalg.solve(inner, moments[1:])])
