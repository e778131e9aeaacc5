"""Data that are read again: the same on each pass, or said; and data that do not end."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from edgekit.core.store import Store
from edgekit.errors import DataError
from edgekit.load.data import Endless, user_samples
from edgekit.types import TensorSpec

X = TensorSpec(name="x", dtype="float32", shape=("batch", 3))
SMALL = Endless(bound=40, kept=10)

SOURCE = """
import itertools, random
import numpy as np

def row(value):
    return np.full((1, 3), value, np.float32)

def fixed():
    return [row(i) for i in range(6)]

def globally():
    for _ in range(6):
        yield row(np.random.normal() + random.random())

def unseeded():
    generator = np.random.default_rng()
    for _ in range(6):
        yield row(generator.normal())

calls = itertools.count(1)

def late():
    call = next(calls)
    for i in range(6):
        yield row(i * call if i == 5 else i)

once = iter([row(i) for i in range(6)])

def exhausted():
    return once

def shrinking():
    for i in range(30 - 3 * next(calls)):
        yield row(1)

def endless():
    for i in itertools.count():
        yield row(i), i % 2
"""


@pytest.fixture
def opened(tmp_path):
    def open_(name, endless=SMALL):
        (tmp_path / "data.py").write_text(SOURCE)
        text = f"{tmp_path}/data.py:{name}"
        return user_samples(
            Store(tmp_path / "cache"), text, (X,), origin="calibration", preprocessing={}, endless=endless
        )

    return open_


def values(samples):
    return [float(s.inputs["x"][0, 0]) for s in samples]


@pytest.mark.parametrize("name", ["fixed", "globally"])
def test_what_is_the_same_on_each_pass_is_taken(opened, name):
    samples = opened(name)
    first = values(samples)
    np.random.normal()
    random.random()
    assert values(samples) == first
    assert len(set(first)) == 6
    again = opened(name)
    assert (values(again), again.fingerprint) == (first, samples.fingerprint)


def test_what_draws_meanwhile_does_not_change_the_samples(opened):
    samples = opened("globally")
    drawn = [(v.inputs["x"][0, 0], random.random(), np.random.normal()) for v in samples]
    assert [float(v) for v, *_ in drawn] == values(samples)


@pytest.mark.parametrize("name", ["unseeded", "late", "exhausted", "shrinking"])
def test_other_samples_on_another_pass_are_said(opened, name):
    samples = opened(name)
    with pytest.raises(DataError, match="gives other samples each time") as error:
        list(map(values, [samples, samples]))
    assert "seed" in error.value.hint
    assert error.value.exit_code == 2


def test_a_later_run_sees_it_too(opened):
    opened("unseeded")
    with pytest.raises(DataError, match="sample 0 is another than before"):
        values(opened("unseeded"))


def test_data_that_do_not_end_are_cut(opened):
    samples = opened("endless")
    assert (len(samples), samples.endless, samples.labelled) == (10, True, True)
    assert values(samples) == list(range(10))
    again = opened("endless")
    assert (len(again), again.endless, values(again)) == (10, True, values(samples))
    assert values(samples.spread(5)) == [0, 2, 4, 6, 8]
    assert samples.spread(5).endless
    whole = opened("fixed", Endless(bound=6, kept=2))
    assert (len(whole), whole.endless) == (6, False)


def python(data, tmp_path):
    return user_samples(Store(tmp_path), data, (X,), origin="calibration", preprocessing={}, endless=SMALL)


def test_iterators_and_lists_in_python(tmp_path):
    endless = (np.full((1, 3), i, np.float32) for i in itertools.count())
    assert len(python(endless, tmp_path)) == SMALL.bound
    rows = [np.full((1, 3), i, np.float32) for i in range(100)]
    assert len(python(rows, tmp_path)) == 100  # what has a length ends
    cut = python(lambda: (np.full((1, 3), i, np.float32) for i in itertools.count()), tmp_path)
    assert (len(cut), cut.endless) == (10, True)


def test_labels_that_are_written_with_their_address_are_no_change(tmp_path):
    data = lambda: ((np.full((1, 3), i, np.float32), object()) for i in range(3))  # noqa: E731
    samples = python(data, tmp_path)
    assert values(samples) == values(samples) == [0, 1, 2]


class Shuffled:
    """As a data loader does it: another order on each pass, out of a global generator."""

    def __len__(self):
        return 8

    def __iter__(self):
        return iter([np.full((1, 3), i, np.float32) for i in np.random.permutation(8)])


def test_a_loader_that_shuffles_gives_one_order_and_leaves_the_callers_chance_alone(tmp_path):
    np.random.seed(7)
    expected = np.random.RandomState(7).permutation(100)
    samples = python(Shuffled(), tmp_path)
    assert values(samples) == values(samples)
    assert sorted(values(samples)) == list(range(8))
    assert np.array_equal(np.random.permutation(100), expected)
