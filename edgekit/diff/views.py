"""One tensor in two layouts: axes of size 1 come and go, the others may be permuted, and channels rescaled; or in
integers."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgekit.artifact.energy import decibels

if TYPE_CHECKING:
    from edgekit.quantize.params import Affine
    from edgekit.types import Array

_MOST_AXES = 5


@dataclass(frozen=True)
class View:
    """How a tensor of the earlier form lies in the later one; ``perm`` is over axes larger than 1.

    ``None``: the elements are in the same order whatever the shapes are.
    """

    perm: tuple[int, ...] | None = None

    def forward(self, value: Array, shape: tuple[int, ...]) -> Array:
        """The earlier form's ``value`` as the later form's, of ``shape``."""
        moved = value if self.perm is None else np.squeeze(value).transpose(self.perm)
        return np.ascontiguousarray(moved).reshape(shape)

    def back(self, value: Array, shape: tuple[int, ...]) -> Array:
        """The later form's ``value`` as the earlier form's, of ``shape``."""
        if self.perm is None:
            return value.reshape(shape)
        inner = [d for d in shape if d != 1]
        lying = value.reshape([inner[p] for p in self.perm])
        return lying.transpose(np.argsort(self.perm)).reshape(shape)

    def spread(self, shape: tuple[int, ...]) -> Array:
        """What 1 in the later form is in the earlier one, to be broadcast to ``shape``."""
        return np.ones([1] * len(shape))


@dataclass(frozen=True)
class Rescaled(View):
    """A view of a tensor whose channels the later form holds ``factors`` times as large.

    Equalization and smoothing move scales between neighbouring layers: the reader divides by what the writer
    multiplied with. ``axis`` is one of the earlier form's.
    """

    axis: int = 0
    factors: tuple[float, ...] = ()

    def forward(self, value: Array, shape: tuple[int, ...]) -> Array:
        """The earlier form's ``value`` as the later form's, of ``shape``."""
        return super().forward((value * self._along(value.shape)).astype(value.dtype), shape)

    def back(self, value: Array, shape: tuple[int, ...]) -> Array:
        """The later form's ``value`` as the earlier form's, of ``shape``."""
        return np.asarray((super().back(value, shape) / self._along(shape)).astype(value.dtype))

    def spread(self, shape: tuple[int, ...]) -> Array:
        """What 1 in the later form is in the earlier one, to be broadcast to ``shape``."""
        return 1.0 / self._along(shape)

    def _along(self, shape: tuple[int, ...]) -> Array:
        axis = self.axis % len(shape)
        if shape[axis] != len(self.factors):
            return np.ones([1] * len(shape))
        return np.asarray(self.factors).reshape([-1 if i == axis else 1 for i in range(len(shape))])


def views(before: tuple[int, ...], after: tuple[int, ...]) -> list[View]:
    """Every way in which a tensor of shape ``before`` can lie in ``after``; the plain one first."""
    a, b = [d for d in before if d != 1], [d for d in after if d != 1]  # axes of size 1 hold nothing
    ways = [View()] if a == b else []
    if sorted(a) == sorted(b) and 1 < len(a) <= _MOST_AXES:
        for perm in itertools.permutations(range(len(a))):
            if [a[p] for p in perm] == b and list(perm) != sorted(perm):
                ways.append(View(perm))
    return ways


def alike(one: Array, two: Array) -> float:
    """Signal to noise in dB where both are finite; -200 where one is not and the other is."""
    a, b = one.astype(np.float64).ravel(), two.astype(np.float64).ravel()
    good = np.isfinite(a) & np.isfinite(b)
    # A value that is finite in one of them only has no distance.
    if bool((good != (np.isfinite(a) | np.isfinite(b))).any()):
        return -200.0
    a, b = a[good], b[good]
    return decibels(float(a @ a), float((a - b) @ (a - b)))


def stored(value: Array, affine: Affine) -> Array:
    """Real values as the integers of an affine mapping; NaN becomes zero, infinities the limits."""
    limits = np.iinfo(affine.dtype)
    steps = np.rint(np.nan_to_num(value.astype(np.float64) / affine.scale, posinf=1e9, neginf=-1e9))
    return np.ascontiguousarray(
        np.clip(steps + affine.zero_point, limits.min, limits.max).astype(affine.dtype)
    )


def real(integers: Array, affine: Affine) -> Array:
    """The real values of integers, float32."""
    return ((integers.astype(np.float32) - affine.zero_point) * np.float32(affine.scale)).astype(np.float32)


def likeliest(candidates: list[View], value: Array, other: Array) -> View:
    """The candidate in whose layout ``value`` resembles ``other`` most, whatever its sign and scale."""
    if len(candidates) == 1:
        return candidates[0]
    b = _without_mean(other)
    return max(candidates, key=lambda v: abs(float(_without_mean(v.forward(value, other.shape)) @ b)))


def _without_mean(value: Array) -> Array:
    flat = np.nan_to_num(value.astype(np.float64).ravel(), posinf=0.0, neginf=0.0)
    return np.asarray(flat - flat.mean())
