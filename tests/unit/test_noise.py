"""Which samples are noise: drawn at random, or white from place to place."""

import numpy as np
import pytest

from edgekit.load.data import SampleSet, random_samples
from edgekit.types import Sample


def of(arrays):
    rows = [Sample(inputs={"x": a}) for a in arrays]
    return SampleSet(
        origin="evaluation",
        text="t",
        fingerprint="0" * 64,
        count=len(rows),
        labelled=False,
        open=lambda: rows,
    )


def drawn(shape, kind="normal", count=6):
    random = np.random.default_rng(3)
    return [getattr(random, kind)(size=shape).astype(np.float32) for _ in range(count)]


@pytest.mark.parametrize("kind", ["normal", "uniform"])
@pytest.mark.parametrize("shape", [(1, 3, 32, 32), (1, 1, 4000), (1, 50, 80), (1, 3, 8, 8)])
def test_white_noise_is_known_by_its_looks(shape, kind):
    assert of(drawn(shape, kind)).noise


def test_what_has_neighbours_is_no_noise():
    smooth = [np.cumsum(x, axis=-1) for x in drawn((1, 1, 4000))]
    assert not of(smooth).noise
    assert not of([x + np.roll(x, 1, axis=3) for x in drawn((1, 3, 32, 32))]).noise
    assert not of([np.zeros((1, 3, 32, 32), np.float32)]).noise


def test_rows_without_places_and_tokens_are_not_judged():
    assert not of(drawn((1, 2000))).noise
    assert not of([x.astype(np.int64) for x in drawn((1, 3, 32, 32))]).noise


def test_one_real_sample_makes_the_set_real():
    assert not of([*drawn((1, 3, 32, 32))[:2], np.ones((1, 3, 32, 32), np.float32)]).noise


def test_random_samples_are_noise_whatever_they_look_like():
    assert random_samples({"x": np.zeros((1, 2), np.float32)}, 4).noise


def test_the_first_samples_are_another_set():
    samples = of(drawn((1, 2)))
    first = samples.first(2)
    assert len(list(first)) == len(first) == 2
    assert first.fingerprint != samples.fingerprint
