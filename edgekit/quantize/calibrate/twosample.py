"""Do two sets of points come from one distribution? The energy distance, with its chance by permutation."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

PERMUTATIONS = 399
_SEED = 7


def chance_of(a: Floats, b: Floats) -> float:
    """How often sets drawn at random from both, ``[n, d]`` and ``[m, d]``, lie as far apart as these do (0 to 1).

    Szekely and Rizzo's energy distance (2013, "Energy statistics"): 0 for one distribution, positive else; it sees
    places, spreads and shapes alike. The chance is exact for any distribution (a permutation test) as long as samples
    are independent within their set.
    """
    apart, points = _apart(a, b), len(a) + len(b)
    member = np.zeros((PERMUTATIONS + 1, points))
    random = np.random.default_rng(_SEED)
    member[0, : len(a)] = 1
    for row in member[1:]:
        row[random.permutation(points)[: len(a)]] = 1
    distances = _energy(member, apart, len(a), len(b))
    return float((distances >= distances[0] - 1e-12).mean())


def energy_distance(a: Floats, b: Floats) -> float:
    """The distance itself, in the points' own unit."""
    first = np.concatenate([np.ones(len(a)), np.zeros(len(b))])[None]
    return float(_energy(first, _apart(a, b), len(a), len(b))[0])


def _apart(a: Floats, b: Floats) -> Floats:
    points = np.concatenate([a, b])
    apart: Floats = np.sqrt(np.square(points[:, None] - points[None]).sum(axis=2))
    return apart


def _energy(member: Floats, apart: Floats, n: int, m: int) -> Floats:
    """The energy distance of each split, ``[splits]``; ``member`` is 1 for those in the first set."""
    other = 1 - member
    to_first = member @ apart
    within = (to_first * member).sum(axis=1) / n**2
    between = (to_first * other).sum(axis=1) / (n * m)
    beyond = ((other @ apart) * other).sum(axis=1) / m**2
    distance: Floats = 2 * between - within - beyond
    return distance
