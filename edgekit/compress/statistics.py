"""The distributions of a layer's weights and activations, in numbers.

Weights: mean, standard deviation, excess kurtosis, density (the share that is not zero), the share that is small
(below a tenth of the root mean square), the bits of their entropy at 8 bits, effective rank. Activations, over some
batches: mean, standard deviation, kurtosis, sparsity, dead channels, peak over root mean square.

The effective rank is exp of the entropy of the normalised squared singular values (Roy & Vetterli, "The effective
rank", EUSIPCO 2007), over the smaller side of the weight as a matrix ``[out, in × kernel]``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

_SAMPLE = 1 << 20
"""So many values of a tensor are looked at, evenly spaced: statistics of a million do not move with more."""
_LARGEST = 2048
"""Matrices with a smaller side above this are projected before their spectrum is taken."""
FAINT = 0.3
"""Output channels whose norm is below this share of the usual one carry little."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Statistics of one layer's weight. Shares from 0 to 1."""

    mean: float
    std: float
    kurtosis: float
    density: float
    small: float
    bits: float
    rank: float
    dead_outputs: int
    faint: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Activations:
    """Statistics of one layer's output over the samples that were run."""

    mean: float
    std: float
    kurtosis: float
    sparsity: float
    dead: int
    channels: int
    peak: float


def of_weight(weight: torch.Tensor) -> Weights:
    """Statistics of one weight ``[out, …]``."""
    matrix = weight.detach().float().flatten(1)
    values = _sampled(matrix.flatten())
    rms = float(values.square().mean().sqrt())
    levels = torch.round(values / max(float(values.abs().max()), 1e-30) * 127).to(torch.int64) + 128
    p = torch.bincount(levels, minlength=257).double() / len(values)
    mean, std, kurtosis = _moments(values)
    return Weights(
        mean=mean,
        std=std,
        kurtosis=kurtosis,
        density=float((values != 0).float().mean()),
        small=float((values.abs() < 0.1 * rms).float().mean()),
        bits=float(-(p[p > 0] * p[p > 0].log2()).sum()),
        rank=_rank(matrix),
        dead_outputs=int((matrix == 0).all(1).sum()),
        faint=_faint(matrix),
    )


def _rank(matrix: torch.Tensor) -> float:
    """Effective rank over the smaller side."""
    side = min(matrix.shape)
    if side < 2 or not matrix.any():
        return 0.0 if not matrix.any() else 1.0
    if matrix.shape[0] < matrix.shape[1]:
        matrix = matrix.T
    gram = matrix.T.double() @ matrix.double()
    if side > _LARGEST:
        generator = torch.Generator().manual_seed(0)
        basis = torch.linalg.qr(torch.randn(side, _LARGEST, generator=generator, dtype=torch.float64)).Q
        gram = basis.T @ gram @ basis
    energy = torch.linalg.eigvalsh(gram).clamp_min(0)
    p = energy / energy.sum()
    p = p[p > 0]
    return float(torch.exp(-(p * p.log()).sum())) / len(energy)


def _faint(matrix: torch.Tensor) -> float:
    """The share of rows whose norm is far below the usual one."""
    norms = matrix.norm(dim=1)
    return float((norms < FAINT * norms.median()).float().mean())


def _sampled(values: torch.Tensor) -> torch.Tensor:
    return values[:: max(1, len(values) // _SAMPLE)]


def _moments(values: torch.Tensor) -> tuple[float, float, float]:
    wide = values.double()
    mean = wide.mean()
    variance = (wide - mean).square().mean()
    if float(variance) < 1e-30:
        return float(mean), 0.0, 0.0
    return float(mean), float(variance.sqrt()), float(((wide - mean) ** 4).mean() / variance.square() - 3)


class Tally:
    """Sums over the outputs of one layer; the channel axis is 1 for maps, the last for everything else."""

    def __init__(self) -> None:
        self.sums = torch.zeros(4, dtype=torch.float64)
        self.count = 0
        self.zeros = 0
        self.peak = 0.0
        self.range: torch.Tensor | None = None

    def look(self, module: nn.Module, _: object, output: object) -> None:
        """A forward hook."""
        value = output[0] if isinstance(output, tuple) else output
        if isinstance(value, torch.Tensor) and value.is_floating_point() and value.dim():
            self._add(module, value)

    def _add(self, module: nn.Module, output: torch.Tensor) -> None:
        values = output.detach().float()
        wide = _sampled(values.flatten()).double()
        self.sums += torch.stack([wide.pow(k).sum() for k in range(1, 5)]).cpu()
        self.count += len(wide)
        self.zeros += int((wide == 0).sum())
        self.peak = max(self.peak, float(values.abs().max()) if values.numel() else 0.0)
        axis = 1 if isinstance(module, nn.modules.conv._ConvNd) and values.dim() > 2 else values.dim() - 1
        # A channel that gives the same value for every input carries nothing.
        columns = values.movedim(axis, 0).flatten(1)
        low, high = columns.amin(1), columns.amax(1)
        if self.range is None:
            self.range = torch.stack([low, high])
        elif self.range.shape[1] == len(low):
            self.range = torch.stack([torch.minimum(self.range[0], low), torch.maximum(self.range[1], high)])

    def result(self) -> Activations | None:
        """The statistics; ``None`` when the layer was not run."""
        if not self.count or self.range is None:
            return None
        m1, m2, m3, m4 = (float(s) / self.count for s in self.sums)
        variance = max(m2 - m1 * m1, 0.0)
        fourth = m4 - 4 * m1 * m3 + 6 * m1 * m1 * m2 - 3 * m1**4
        low, high = self.range
        same = (high - low).abs() <= 1e-6 * max(self.peak, 1e-30)
        rms = m2**0.5
        return Activations(
            mean=m1,
            std=variance**0.5,
            kurtosis=fourth / variance**2 - 3 if variance > 1e-30 else 0.0,
            sparsity=self.zeros / self.count,
            dead=int((same | (high <= 0)).sum()) if bool((low >= 0).all()) else int(same.sum()),
            channels=len(low),
            peak=self.peak / rms if rms else 0.0,
        )
