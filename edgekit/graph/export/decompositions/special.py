"""Functions of one number that ONNX lacks, each to about float32's precision."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from edgekit.graph.export.decompositions.table import decomposes

aten = torch.ops.aten

_SHIFT = 8
"""From here on the asymptotic series are exact to float32."""


def _reflect(x: Tensor) -> tuple[Tensor, Tensor]:
    """Whether ``x`` is below a half, and ``1 - x`` there: the functions are known there by those here."""
    low = x < 0.5
    return low, torch.where(low, 1.0 - x, x)


@decomposes(aten.lgamma.default)
def lgamma(x: Tensor) -> Tensor:
    """Stirling's series at least at 8, by recurrence below."""
    x = x if x.is_floating_point() else x.to(torch.get_default_dtype())
    low, y = _reflect(x)
    near = y < _SHIFT
    product = torch.ones_like(y)
    for k in range(_SHIFT):
        product = product * torch.where(near, y + k, 1.0)
    z = torch.where(near, y + _SHIFT, y)
    inverse = 1.0 / z
    square = inverse * inverse
    series = inverse * (1 / 12 - square * (1 / 360 - square / 1260))
    value = (z - 0.5) * z.log() - z + 0.5 * math.log(2 * math.pi) + series - product.log()
    turned = x - x.floor()  # the sine has the period of two, its size one
    mirrored = math.log(math.pi) - torch.sin(math.pi * turned).abs().log() - value
    return torch.where(low, mirrored, value)


@decomposes(aten.digamma.default, aten.special_digamma.default, aten.special_psi.default)
def digamma(x: Tensor) -> Tensor:
    """The logarithm's derivative: the same shift, the same mirror."""
    x = x if x.is_floating_point() else x.to(torch.get_default_dtype())
    low, y = _reflect(x)
    near = y < _SHIFT
    total = torch.zeros_like(y)
    for k in range(_SHIFT):
        total = total + torch.where(near, 1.0 / (y + k), 0.0)
    z = torch.where(near, y + _SHIFT, y)
    square = 1.0 / (z * z)
    value = z.log() - 0.5 / z - square * (1 / 12 - square * (1 / 120 - square / 252)) - total
    turned = math.pi * (x - x.floor())
    return torch.where(low, value - math.pi / torch.tan(turned), value)


_NEAR = (1.0, 3.5156229, 3.0899424, 1.2067492, 0.2659732, 0.0360768, 0.0045813)
_FAR = (
    0.39894228, 0.01328592, 0.00225319, -0.00157565, 0.00916281, -0.02057706, 0.02635537, -0.01647633, 0.00392377,
)  # fmt: skip
"""Abramowitz and Stegun, 9.8.1 and 9.8.2."""


def _polynomial(x: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    value = torch.full_like(x, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        value = value * x + c
    return value


def _bessel(x: Tensor, *, scaled: bool) -> Tensor:
    size = x.abs()
    ratio = size / 3.75
    near = _polynomial(ratio.clamp(max=1.0).square(), _NEAR)
    far = _polynomial(1.0 / ratio.clamp(min=1.0), _FAR) / size.clamp(min=1.0).sqrt()
    if scaled:
        return torch.where(ratio < 1, near * torch.exp(-size), far)
    return torch.where(ratio < 1, near, far * torch.exp(size))


@decomposes(aten.i0.default, aten.special_i0.default)
def i0(x: Tensor) -> Tensor:
    """The modified Bessel function of order 0."""
    return _bessel(x, scaled=False)


@decomposes(aten.special_i0e.default)
def i0e(x: Tensor) -> Tensor:
    """The same, less its growth."""
    return _bessel(x, scaled=True)


@decomposes(aten.hypot.default)
def hypot(x: Tensor, y: Tensor) -> Tensor:
    """The longer side times the root of one and the ratio's square: it does not overflow."""
    longer, shorter = torch.maximum(x.abs(), y.abs()), torch.minimum(x.abs(), y.abs())
    ratio = shorter / torch.where(longer == 0, 1.0, longer)
    return longer * torch.sqrt(1.0 + ratio * ratio)


@decomposes(aten.signbit.default)
def signbit(x: Tensor) -> Tensor:
    """Below zero, or the zero whose reciprocal is."""
    if not x.is_floating_point():
        return x < 0
    return torch.where(x == 0, 1.0 / x, x) < 0


@decomposes(aten.copysign.Tensor, aten.copysign.Scalar)
def copysign(x: Tensor, y: Any) -> Tensor:
    """The size of one, the sign of the other."""
    wide = x if x.is_floating_point() else x.to(torch.get_default_dtype())
    if not isinstance(y, Tensor):
        return wide.abs() * math.copysign(1.0, y)
    return torch.where(signbit(y), -wide.abs(), wide.abs())


_MIDDLE = (
    1.50140941, 0.246640727, -0.00417768164, -0.00125372503, 0.00021858087, -4.39150654e-06, -3.5233877e-06,
    3.43273939e-07, 2.81022636e-08,
)  # fmt: skip
_TAIL = (
    2.83297682, 1.00167406, 0.00943887047, -0.0076224613, 0.00573950773, -0.00367342844, 0.00134934322, 0.000100950558,
    -0.000200214257,
)  # fmt: skip
"""Giles, Approximating the erfinv function (2010), single precision."""


@decomposes(aten.erfinv.default, aten.special_erfinv.default)
def erfinv(x: Tensor) -> Tensor:
    """The inverse error function; infinite at one."""
    w = -torch.log((1.0 - x) * (1.0 + x))
    middle = _polynomial(torch.where(w < 5, w, 0.0) - 2.5, _MIDDLE)
    tail = _polynomial(torch.where(w < 5, 5.0, w).sqrt() - 3.0, _TAIL)
    value = torch.where(w < 5, middle, tail) * x
    return torch.where(x.abs() == 1, x * torch.inf, value)
