"""Fourier transforms of windows, and phases."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from edgekit.graph.export.decompositions.complex import of_complex
from edgekit.graph.export.decompositions.table import decomposes, static

aten = torch.ops.aten


def _waves(n: int, count: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """``cos`` and ``sin`` of ``2π k t / n``, ``[count, n]``. The product is reduced before it becomes a float: so the
    sines that are zero are exactly zero, and the phase of a real spectrum has the right sign."""
    k = torch.arange(count, device=like.device).unsqueeze(1)
    turns = (k * torch.arange(n, device=like.device)).remainder(n)
    angle = turns.to(torch.float32) * (2 * math.pi / n)
    zero = (turns * 2).remainder(n) == 0
    return torch.cos(angle), torch.where(zero, 0.0, torch.sin(angle))


def _padded_window(window: Tensor | None, win_length: int | None, n_fft: int, like: Tensor) -> Tensor:
    if window is None:
        window = torch.ones(win_length or n_fft, dtype=torch.float32, device=like.device)
    before = (n_fft - window.shape[0]) // 2
    return torch.nn.functional.pad(window, (before, n_fft - window.shape[0] - before))


@decomposes(aten.angle.default, where=of_complex, misread=True)
def angle(z: Tensor) -> Tensor:
    """The quadrant's arc tangent; of real numbers 0 or π."""
    if not z.is_complex():
        phase = torch.where(z < 0, math.pi, 0.0)
        return torch.where(torch.isnan(z), z, phase) if z.is_floating_point() else phase
    x, y = torch.view_as_real(z).unbind(-1)
    safe = torch.where(x == 0, torch.ones_like(x), x)
    slope = torch.atan(y / safe)
    turned = torch.where(x < 0, torch.where(y < 0, slope - math.pi, slope + math.pi), slope)
    upright = torch.where(y > 0, math.pi / 2, torch.where(y < 0, -math.pi / 2, 0.0))
    return torch.where(x == 0, upright, turned)


@decomposes(aten._fft_r2c.default)
def fft_of_reals(x: Tensor, dim: list[int], normalization: int, onesided: bool) -> Any:
    """One axis: a product with cosines and one with sines."""
    n = x.shape[dim[0]]
    if len(dim) != 1 or not static(n):
        return NotImplemented
    cos, sin = _waves(n, n // 2 + 1 if onesided else n, x)
    scale = (1.0, n**-0.5, 1.0 / n)[normalization]
    last = x.transpose(dim[0], -1)
    real, imaginary = (last @ (wave.T * factor) for wave, factor in ((cos, scale), (sin, -scale)))
    return torch.complex(real.transpose(dim[0], -1), imaginary.transpose(dim[0], -1))


@decomposes(aten.fft_rfft.default)
def rfft(x: Tensor, n: int | None = None, dim: int = -1, norm: str | None = None) -> Any:
    """:func:`fft_of_reals` of what fits into ``n``."""
    size = x.shape[dim]
    if not static(size, n or 0):
        return NotImplemented
    want = n or size
    if want < size:
        x = x.narrow(dim, 0, want)
    elif want > size:
        behind = [0, 0] * (x.dim() - 1 - dim % x.dim())
        x = torch.nn.functional.pad(x, [*behind, 0, want - size])
    return fft_of_reals(x, [dim], {None: 0, "backward": 0, "ortho": 1, "forward": 2}[norm], True)


@decomposes(aten.stft.default)
def stft(
    x: Tensor,
    n_fft: int,
    hop_length: int | None = None,
    win_length: int | None = None,
    window: Tensor | None = None,
    normalized: bool = False,
    onesided: bool | None = None,
    return_complex: bool | None = None,
    align_to_window: bool | None = None,
) -> Any:
    """A convolution with the windowed cosines and sines."""
    if x.is_complex() or align_to_window:
        return NotImplemented
    weight = _padded_window(window, win_length, n_fft, x)
    cos, sin = _waves(n_fft, n_fft // 2 + 1 if onesided in (None, True) else n_fft, x)
    scale = n_fft**-0.5 if normalized else 1.0
    kernel = (torch.cat([cos, -sin]) * (weight * scale)).unsqueeze(1)
    signal = x.reshape(-1, 1, x.shape[-1])
    spectrum = torch.nn.functional.conv1d(signal, kernel, stride=hop_length or n_fft // 4)
    real, imaginary = spectrum.chunk(2, 1)
    if x.dim() == 1:
        real, imaginary = real.squeeze(0), imaginary.squeeze(0)
    return torch.complex(real, imaginary) if return_complex else torch.stack([real, imaginary], -1)


@decomposes(aten.istft.default)
def istft(
    z: Tensor,
    n_fft: int,
    hop_length: int | None = None,
    win_length: int | None = None,
    window: Tensor | None = None,
    center: bool = True,
    normalized: bool = False,
    onesided: bool | None = None,
    length: int | None = None,
    return_complex: bool = False,
) -> Any:
    """A transposed convolution: every frame is a sum of windowed cosines and sines, and overlaps the next ones. It is
    divided by the overlapping windows' squares."""
    del onesided
    frames, count = z.shape[-1], n_fft // 2 + 1
    if return_complex or not static(frames, length or 0):
        return NotImplemented
    hop = hop_length or n_fft // 4
    weight = _padded_window(window, win_length, n_fft, z)
    parts = torch.view_as_real(z).narrow(-3, 0, count).reshape(-1, count, frames, 2)
    cos, sin = _waves(n_fft, count, z)
    # Frequencies but the first and the last stand for their mirror images, too.
    k = torch.arange(count, device=z.device).unsqueeze(1)
    twice = torch.where((k == 0) | (2 * k == n_fft), 1.0, 2.0) * (n_fft**-0.5 if normalized else 1.0 / n_fft)
    kernel = (torch.cat([cos * twice, -sin * twice]) * weight).unsqueeze(1)
    stacked = torch.cat([parts[..., 0], parts[..., 1]], 1)
    signal = torch.nn.functional.conv_transpose1d(stacked, kernel, stride=hop).squeeze(1)
    squares = (weight * weight).reshape(1, 1, -1)
    ones = torch.ones((1, 1, frames), dtype=torch.float32, device=z.device)
    envelope = torch.nn.functional.conv_transpose1d(ones, squares, stride=hop).reshape(1, -1)
    whole = n_fft + hop * (frames - 1)
    start = n_fft // 2 if center else 0
    end = start + length if length else whole - start
    reached = min(end, whole)
    result = signal[:, start:reached] / envelope[:, start:reached]
    if end > reached:
        result = torch.nn.functional.pad(result, (0, end - reached))
    return result.reshape(*z.shape[:-2], end - start)


@decomposes(aten.fft_ihfft.default)
def ihfft(x: Tensor, n: int | None = None, dim: int = -1, norm: str | None = None) -> Any:
    """The conjugate of what the way forward gives, the norm turned round."""
    turned = {None: "forward", "backward": "forward", "forward": "backward", "ortho": "ortho"}[norm]
    made = torch.view_as_real(rfft(x, n, dim, turned))
    return torch.complex(made[..., 0], -made[..., 1])
