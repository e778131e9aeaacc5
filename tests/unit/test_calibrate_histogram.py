"""Streaming histograms and the ranges estimated from them; no runtime needed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgekit.errors import DataError, UnknownNameError, UsageError
from edgekit.quantize.calibrate.calibration import Calibration, TensorStatistics
from edgekit.quantize.calibrate.histogram import SIDE, Histogram
from edgekit.quantize.options import METHODS

ARRAYS = hnp.arrays(
    np.float32, st.integers(1, 50), elements=st.floats(-(2.0**100), 2.0**100, width=32, allow_nan=False)
)


def histogram(values: np.ndarray) -> Histogram:
    h = Histogram()
    h.add(np.asarray(values, np.float32))
    return h


def equal(a: Histogram, b: Histogram) -> bool:
    return a.exponent == b.exponent and bool((a.counts == b.counts).all())


@settings(max_examples=200, deadline=None)
@given(st.lists(ARRAYS, min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_any_order_and_any_division_give_the_same_counts(parts, random) -> None:
    whole = histogram(np.concatenate(parts))
    streamed, merged = Histogram(), Histogram()
    shuffled = list(parts)
    random.shuffle(shuffled)
    for part in shuffled:
        streamed.add(part)
        merged.merge(histogram(part))
    assert equal(whole, streamed)
    assert equal(whole, merged)
    assert whole.total == sum(p.size for p in parts)


@settings(max_examples=100, deadline=None)
@given(ARRAYS)
def test_every_value_is_inside_its_bin(values) -> None:
    h = histogram(values)
    edges, counts = h.bins()
    if h.exponent is None:
        assert not values.any()
        return
    for value in values:
        place = np.searchsorted(edges, np.float64(value), side="right") - 1
        assert 0 <= place < counts.size
        assert counts[place] > 0


def test_the_larger_side_fills_more_than_half_of_its_bins() -> None:
    for largest in (1e-20, 0.999, 1.0, 1.001, 3e38):
        h = histogram(np.array([largest]))
        occupied = np.flatnonzero(h.counts)[0] - SIDE
        assert SIDE / 2 <= occupied < SIDE


def test_merging_does_not_change_the_other() -> None:
    a, b = histogram(np.array([100.0])), histogram(np.array([1.0, 2.0]))
    before = b.counts.copy()
    a.merge(b)
    assert (b.counts == before).all()
    assert a.total == 3


def statistics(values: np.ndarray) -> TensorStatistics:
    low, high = float(values.min()), float(values.max())
    row = np.array([low], np.float32)
    return TensorStatistics(
        count=values.size, low=low, high=high, average_low=low / 2, average_high=high / 2, channel_axis=0,
        channel_low=row, channel_high=np.array([high], np.float32), channel_mean=row, half_low=row,
        half_high=row, histogram=histogram(values),
    )  # fmt: skip


def calibration(**tensors: np.ndarray) -> Calibration:
    return Calibration(
        tensors={k: statistics(v) for k, v in tensors.items()},
        aliases={"view": "x"},
        samples=3,
        fingerprint="f",
    )


NORMAL = np.random.default_rng(0).standard_normal(200_000).astype(np.float32)


def quantization_error(values: np.ndarray, low: float, high: float, bits: int = 8) -> float:
    scale = (high - low) / ((1 << bits) - 1)
    zero = np.rint(-low / scale)
    stored = np.clip(np.rint(values / scale) + zero, 0, (1 << bits) - 1)
    return float(np.mean((values - (stored - zero) * scale) ** 2))


def test_percentile_is_numpys_within_a_bin() -> None:
    c = calibration(x=NORMAL)
    low, high = c.range("x", "percentile", percentile=99.0)
    width = c.tensors["x"].histogram.width
    assert abs(high - np.percentile(NORMAL, 99)) <= width
    assert abs(low - np.percentile(NORMAL, 1)) <= width


@pytest.mark.parametrize(
    "values",
    [
        NORMAL,
        np.maximum(NORMAL, 0),
        np.random.default_rng(1).laplace(size=100_000).astype(np.float32),
        np.append(NORMAL, [60.0, -45.0]).astype(np.float32),
    ],
    ids=["normal", "relu", "laplace", "outliers"],
)
@pytest.mark.parametrize("bits", [4, 8])
def test_mse_is_within_two_percent_of_the_best_range_found_by_trying(values, bits) -> None:
    low, high = calibration(x=values).range("x", "mse", bits=bits)
    got = quantization_error(values, low, high, bits)
    fractions = np.linspace(0.02, 1.0, 99)
    lows = values.min() * fractions if values.min() < 0 else [0.0]
    best = min(
        quantization_error(values, lo, hi, bits)
        for lo in lows[:: 1 if len(lows) == 1 else 3]
        for hi in values.max() * fractions[::3]
    )
    assert got <= best * 1.02


def test_entropy_cuts_off_outliers_and_keeps_the_body() -> None:
    values = np.append(NORMAL, [60.0]).astype(np.float32)
    for symmetric in (False, True):
        _, high = calibration(x=values).range("x", "entropy", symmetric=symmetric)
        assert 2.5 < high < 20.0


@pytest.mark.parametrize("method", METHODS)
def test_constant_and_zero_tensors_have_ranges(method) -> None:
    c = calibration(zero=np.zeros(10, np.float32), x=np.full(10, 3.0, np.float32))
    assert c.range("zero", method) == (0.0, 0.0)
    low, high = c.range("view", method)
    assert low <= high <= 3.0


def test_unknown_method_tensor_and_percentile_are_told() -> None:
    c = calibration(x=NORMAL)
    with pytest.raises(UnknownNameError, match="entropie"):
        c.range("x", "entropie")
    with pytest.raises(DataError, match="'y'"):
        c.range("y")
    with pytest.raises(UsageError, match="percentile"):
        c.range("x", "percentile", percentile=1.0)


def test_saved_and_loaded_is_the_same_and_bytes_repeat(tmp_path: Path) -> None:
    c = calibration(x=NORMAL, zero=np.zeros(4, np.float32), big=NORMAL * 1e20)
    c.save(tmp_path / "a")
    loaded = Calibration.load(tmp_path / "a")
    loaded.save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    for name in c.tensors:
        assert equal(loaded.tensors[name].histogram, c.tensors[name].histogram)
        for method in METHODS:
            assert loaded.range(name, method) == c.range(name, method)
    assert loaded.aliases == c.aliases


@pytest.mark.parametrize("damage", [b"", b"junk", b"\x08\0\0\0\0\0\0\0{}      "])
def test_a_damaged_file_is_told(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "c").write_bytes(damage)
    with pytest.raises(DataError, match="calibration"):
        Calibration.load(tmp_path / "c")


def test_the_entropy_search_finds_what_trying_every_end_finds() -> None:
    from edgekit.quantize.calibrate import ranges

    def exhaustive(edges: np.ndarray, counts: np.ndarray, levels: int) -> float:
        weights = counts.astype(np.float64)
        weights[0] = weights[1]
        best, best_end = np.inf, float(edges[-1])
        for end in np.unique(
            np.linspace(levels, counts.size, min(128, counts.size - levels + 1)).astype(int)
        ):
            divergence = ranges._divergence(weights[:end], float(weights[end:].sum()), levels)
            if divergence < best:
                best, best_end = divergence, float(edges[end])
        return best_end

    rng = np.random.default_rng(0)
    for levels in (16, 127, 255):
        for i in range(12):
            size = int(rng.integers(levels + 1, 2048))
            counts = rng.poisson(rng.choice([0.02, 0.5, 80.0]), size) * rng.integers(0, 2, size)
            if i % 4 == 0:
                counts[size // 2 :] = 0
            counts[-1] = 1
            edges = np.arange(size + 1) * 0.01
            assert ranges._search_upper(edges, counts, levels) == exhaustive(edges, counts, levels)
