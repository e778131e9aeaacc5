"""Ratios of energies in decibels."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgekit.types import Array

SNR_CAP = 200.0


def decibels(signal: float, noise: float) -> float:
    """10 log10(signal / noise) of two energies, between -200 and 200."""
    if noise == 0:
        return SNR_CAP
    # Energies overflow from values of 1e154 on. inf - inf is NaN, which min() would let pass as the best figure.
    if signal == 0 or not math.isfinite(signal) or not math.isfinite(noise):
        return -SNR_CAP
    return max(-SNR_CAP, min(SNR_CAP, 10 * (math.log10(signal) - math.log10(noise))))


def row_snr(reference: Array, output: Array) -> list[float]:
    """The SNR of each row in dB, ``[rows, values]``; rows of zeros, where the reference says nothing, are left out."""
    signal, noise = (reference * reference).sum(axis=1), ((output - reference) ** 2).sum(axis=1)
    return [decibels(float(s), float(n)) for s, n in zip(signal, noise, strict=True) if s > 0]
