"""A part of a sample set stands for all of it."""

import numpy as np
import pytest

from edgekit.load.data import SampleSet
from edgekit.types import Sample


def numbered(count: int) -> SampleSet:
    rows = [Sample(inputs={"x": np.array([i])}) for i in range(count)]
    return SampleSet(
        origin="calibration", text="rows", fingerprint="f", count=count, labelled=False, open=lambda: rows
    )


@pytest.mark.parametrize(("count", "wanted"), [(1000, 512), (1000, 10), (7, 3), (512, 511), (3, 1)])
def test_samples_are_taken_from_all_of_the_set(count: int, wanted: int) -> None:
    taken = [int(s.inputs["x"][0]) for s in numbered(count).spread(wanted)]
    assert len(taken) == wanted
    assert taken[0] == 0
    gaps = np.diff([*taken, count])
    assert gaps.max() - gaps.min() <= 1


def test_classes_in_order_are_all_seen() -> None:
    taken = numbered(5000).spread(20)
    assert {int(s.inputs["x"][0]) // 500 for s in taken} == set(range(10))
    assert len(taken) == 20


def test_a_set_that_is_small_enough_is_taken_whole() -> None:
    whole = numbered(5)
    assert whole.spread(5) is whole
    assert whole.spread(9) is whole
    assert whole.spread(4).fingerprint != whole.fingerprint
