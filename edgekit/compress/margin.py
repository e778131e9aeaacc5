"""How sure a drop is: a metric with its value on parts of the data, and the standard error of a difference.

The data falls into some parts of equal size; the metric is taken over all of it and without each part in turn. The
delete-a-group jackknife (Kott, "The delete-a-group jackknife", 2001) of the *difference* between two models on the
same parts gives its standard error, for a metric of any form: what both models get right or wrong cancels out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import torch

from edgekit.errors import DataError

PARTS = 32
"""So many parts give a standard error within about an eighth of itself."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """A metric over some data of ``count`` samples, and over the data without each part; no parts and no count where
    only one number is known."""

    value: float
    without: tuple[float, ...] = ()
    count: int = 0


@dataclass(frozen=True, kw_only=True)
class Drop:
    """What was lost, over ``count`` samples, and the standard error of that; 0 where it is not known."""

    value: float
    error: float = 0.0
    count: int = 0


def members(count: int) -> list[int]:
    """The part of each of ``count`` samples: as many in each, drawn without regard to their order."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(count))
    part = torch.empty(count, dtype=torch.int64)
    part[order] = torch.arange(count) % min(PARTS, max(1, count))
    return [int(p) for p in part]


def of_values(values: torch.Tensor | Sequence[float]) -> Score:
    """The mean of a number for each sample. Raises ``DataError`` for none."""
    each = torch.as_tensor(values).detach().double().flatten().cpu()
    if not len(each):
        raise DataError("the metric gives no sample", hint="scores(model) gives one number for each sample")
    part = torch.tensor(members(len(each)))
    others = [each[part != p] for p in range(int(part.max()) + 1)]
    without = tuple(float(k.mean()) for k in others if len(k)) if len(others) > 1 else ()
    return Score(value=float(each.mean()), without=without, count=len(each))


def drop(base: Score, other: Score) -> Drop:
    """By how much ``other`` is below ``base`` on the same samples."""
    count = len(base.without)
    if count < 2 or count != len(other.without):
        return Drop(value=base.value - other.value)
    each = [b - g for b, g in zip(base.without, other.without, strict=True)]
    mean = math.fsum(each) / count
    variance = (count - 1) / count * math.fsum((d - mean) ** 2 for d in each)
    return Drop(value=base.value - other.value, error=math.sqrt(variance), count=other.count)


def both(one: Drop, other: Drop) -> Drop:
    """The drop over two equal halves of the data."""
    return Drop(
        value=(one.value + other.value) / 2,
        error=math.hypot(one.error, other.error) / 2,
        count=one.count + other.count,
    )


def factor(confidence: float) -> float:
    """So many standard errors above the measured drop is the bound that holds with ``confidence`` (one-sided)."""
    return max(0.0, NormalDist().inv_cdf(confidence))


def margin(drop: Drop, confidence: float) -> float:
    """What is added to a drop so that the sum is a bound with ``confidence``.

    Where no sample, or hardly one, was lost, the spread says nothing: the bound is then what none lost of so many
    says, ``-ln(1 - confidence) / count`` ("rule of three"; Hanley & Lippman-Hand 1983).
    """
    times = factor(confidence)
    if not times:
        return 0.0
    none_lost = -math.log(1 - confidence) / drop.count if drop.count else -math.inf
    return max(times * drop.error, none_lost - drop.value)


def checked(score: Score, name: str) -> Score:
    """``score``. Raises ``DataError`` where it is no number."""
    if not math.isfinite(score.value):
        raise DataError(
            f"the {name or 'metric'} is {score.value}",
            hint="look for bad values in the evaluation data and in what the model gives for them",
        )
    return score
