"""How sure a drop is: a metric with its value on parts of the data, and the standard error of a difference.

The data falls into some parts of equal size; the metric is taken over all of it and without each part in turn. The
delete-a-group jackknife (Kott, "The delete-a-group jackknife", 2001) of the *difference* between two models on the
same parts gives its standard error, for a metric of any form: what both models get right or wrong cancels out.

Where each sample is right or wrong, the bound comes from the pairs that differ: ``lost`` that the first model alone has
right, ``gained`` that the other alone has. The share that is lost is at most its exact bound (Clopper & Pearson 1934),
whatever was gained; many gains are credited by the score test of paired shares (Tango, "Equivalence test and confidence
interval for the difference in proportions for the paired-sample design", 1998), with a continuity correction.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import torch

from edgekit.errors import DataError

_HALVINGS = 50
PARTS = 32
"""So many parts give a standard error within about an eighth of itself."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """A metric over some data of ``count`` samples, and over the data without each part; no parts and no count where
    only one number is known. ``right``: for each sample whether it is right, where the metric is their share."""

    value: float
    without: tuple[float, ...] = ()
    count: int = 0
    right: tuple[bool, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Drop:
    """What was lost, over ``count`` samples, and the standard error of that; 0 where it is not known. ``pairs``: how
    many samples were lost and how many gained, where each is right or wrong."""

    value: float
    error: float = 0.0
    count: int = 0
    pairs: tuple[int, int] | None = None


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
    shares = bool(((each == 0) | (each == 1)).all())
    right = tuple(bool(v) for v in each) if shares else ()
    return Score(value=float(each.mean()), without=without, count=len(each), right=right)


def drop(base: Score, other: Score) -> Drop:
    """By how much ``other`` is below ``base`` on the same samples."""
    count = len(base.without)
    if count < 2 or count != len(other.without):
        return Drop(value=base.value - other.value)
    each = [b - g for b, g in zip(base.without, other.without, strict=True)]
    mean = math.fsum(each) / count
    variance = (count - 1) / count * math.fsum((d - mean) ** 2 for d in each)
    return Drop(
        value=base.value - other.value,
        error=math.sqrt(variance),
        count=other.count,
        pairs=_pairs(base, other),
    )


def _pairs(base: Score, other: Score) -> tuple[int, int] | None:
    if not base.right or len(base.right) != len(other.right):
        return None
    both = list(zip(base.right, other.right, strict=True))
    return both.count((True, False)), both.count((False, True))


def factor(confidence: float) -> float:
    """So many standard errors above the measured drop is the bound that holds with ``confidence`` (one-sided)."""
    return max(0.0, NormalDist().inv_cdf(confidence))


def spent(confidence: float, number: int) -> float:
    """How sure the confirmation of this ``number``, from 1, has to be so that all of them together err with at most
    ``1 - confidence``, however many there are and however they hang together: the error is spent as ``1 / k(k + 1)``,
    whose sum is 1 (alpha spending: Foster & Stine, "α-investing", 2008, without what would be earned back). At 50 %,
    which is no margin, nothing is spent."""
    if not factor(confidence):
        return confidence
    return 1 - (1 - confidence) / (number * (number + 1))


def margin(drop: Drop, confidence: float) -> float:
    """What is added to a drop so that the sum is a bound with ``confidence``.

    Where only the parts are known, and no sample, or hardly one, was lost, the spread says nothing: the bound is then
    what none lost of so many says, ``-ln(1 - confidence) / count`` ("rule of three"; Hanley & Lippman-Hand 1983).
    """
    times = factor(confidence)
    if not times:
        return 0.0
    if drop.pairs is not None and drop.count:
        return paired_bound(*drop.pairs, drop.count, confidence) - drop.value
    none_lost = -math.log(1 - confidence) / drop.count if drop.count else -math.inf
    return max(times * drop.error, none_lost - drop.value)


def least(base: Score, confidence: float) -> float:
    """What the true drop does not exceed where not one of ``base``'s samples is lost: no candidate's bound is lower,
    but of those that gain. 0 where the count is not known."""
    unlost = Drop(value=0.0, count=base.count, pairs=(0, 0) if base.right else None)
    return margin(unlost, confidence) if base.count else 0.0


def enough(drop: float, confidence: float) -> int:
    """How many samples, none of them lost, bound the drop by ``drop``, above 0 (Hanley & Lippman-Hand 1983)."""
    return math.ceil(math.log(1 - confidence) / math.log1p(-drop))


def paired_bound(lost: int, gained: int, count: int, confidence: float) -> float:
    """What the true drop does not exceed, with ``confidence`` (above a half), where ``lost`` of ``count`` samples
    turned wrong and ``gained`` turned right."""
    low, high = (lost - gained) / count, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if plausible(middle, lost, gained, count, confidence) else (low, middle)
    return high


def plausible(drop: float, lost: int, gained: int, count: int, confidence: float) -> bool:
    """Whether a true ``drop`` is below :func:`paired_bound`: neither are so few losses too rare with it, nor so small a
    difference."""
    least = NormalDist().inv_cdf(1 - confidence)
    return _score(lost, gained, count, drop) > least and _at_most(lost, count, drop) > 1 - confidence


def _at_most(most: int, count: int, share: float) -> float:
    """The probability of ``most`` or fewer of ``count`` where each comes with probability ``share``."""
    if most >= count or share <= 0:
        return 1.0
    k = torch.arange(most + 1, dtype=torch.float64)
    ways = math.lgamma(count + 1) - torch.lgamma(k + 1) - torch.lgamma(count - k + 1)
    return float((ways + k * math.log(share) + (count - k) * math.log1p(-share)).exp().sum())


def _score(lost: int, gained: int, count: int, drop: float) -> float:
    """Tango's statistic of a true ``drop``: how many standard errors fewer were lost, the share of gains being the
    likeliest with this drop."""
    linear = (2 * count - lost + gained) * drop - lost - gained
    root = math.sqrt(max(0.0, linear * linear + 8 * count * gained * drop * (1 - drop)))
    share = (root - linear) / (4 * count)
    variance = count * (2 * share + drop * (1 - drop))
    return (lost - gained + 1 - count * drop) / math.sqrt(max(variance, 1e-300))


def checked(score: Score, name: str) -> Score:
    """``score``. Raises ``DataError`` where it is no number."""
    if not math.isfinite(score.value):
        raise DataError(
            f"the {name or 'metric'} is {score.value}",
            hint="look for bad values in the evaluation data and in what the model gives for them",
        )
    return score
