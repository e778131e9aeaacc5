"""The permutation test of the energy distance: sizes and power."""

import numpy as np

from edgekit.quantize.calibrate.twosample import chance_of, energy_distance


def points(count, seed, shift=0.0, scale=1.0):
    return np.random.default_rng(seed).normal(size=(count, 3)) * scale + shift


def test_one_distribution_is_called_two_as_often_as_the_level_says():
    chances = [chance_of(points(12, s), points(20, 1000 + s)) for s in range(100)]
    assert sum(c <= 0.05 for c in chances) <= 12
    assert 0.3 < float(np.mean(chances)) < 0.7


def test_places_and_spreads_are_seen():
    assert chance_of(points(24, 1), points(24, 2, shift=1.5)) < 0.005
    assert chance_of(points(48, 1), points(48, 2, scale=3.0)) < 0.005


def test_the_distance_is_zero_for_equal_sets():
    a = points(10, 3)
    assert abs(energy_distance(a, a)) < 1e-12
    assert energy_distance(a, a + 2) > 0.5
