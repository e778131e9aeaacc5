"""A few golden vectors vary: what they cannot tell is unproven, what they can is a failure."""

from __future__ import annotations

import numpy as np
import pytest

from edgekit.artifact.golden import _as_sure
from edgekit.types import Gate, Verdict


def vectors(errors: list[float]) -> tuple[list[dict[str, np.ndarray]], list[dict[str, np.ndarray]]]:
    generator = np.random.default_rng(0)
    expected = [{"y": generator.normal(size=(1, 64)).astype(np.float32)} for _ in errors]
    outputs = [
        {"y": (e["y"] + size * generator.normal(size=(1, 64))).astype(np.float32)}
        for e, size in zip(expected, errors, strict=True)
    ]
    return expected, outputs


def failed(limit: float) -> Gate:
    return Gate(
        name="snr", verdict=Verdict.FAIL, limit=limit, value=11.2, message="11.2 dB, at least 12 wanted"
    )


def test_one_loud_error_of_eight_does_not_tell():
    expected, outputs = vectors([0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.9])
    assert _as_sure(failed(12.0), expected, outputs).verdict is Verdict.UNPROVEN


@pytest.mark.parametrize("count", [2, 8])
def test_the_same_error_everywhere_does(count):
    expected, outputs = vectors([0.5] * count)
    assert _as_sure(failed(12.0), expected, outputs).verdict is Verdict.FAIL


def test_one_output_that_is_surely_wrong_is_enough():
    expected, outputs = vectors([0.1, 0.1, 0.1, 0.9])
    for wanted, got in zip(expected, outputs, strict=True):
        wanted["z"], got["z"] = np.ones((1, 4), np.float32), np.zeros((1, 4), np.float32)
    assert _as_sure(failed(12.0), expected, outputs).verdict is Verdict.FAIL
