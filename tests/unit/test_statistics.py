"""Intervals against published values, and the A/B verdict against simulated machines."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.devices.statistics import (
    bootstrap_medians,
    in_times,
    interleave,
    jackknife,
    median_interval,
    paired_bootstrap,
    paired_difference,
    paired_proportions,
    rows_to_see,
    share_below,
    student,
    summarize,
    unseen,
    wilson,
    would_be_seen,
)


def test_wilson_against_published_values():
    # Newcombe 1998, Statistics in Medicine 17:857, table I, method 3 (95 %).
    for successes, trials, low, high in [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
    ]:
        interval = wilson(successes, trials, confidence=0.95)
        assert interval.low == pytest.approx(low, abs=1e-4)
        assert interval.high == pytest.approx(high, abs=1e-4)


@given(st.integers(1, 500), st.data())
def test_wilson_contains_its_proportion(trials, data):
    successes = data.draw(st.integers(0, trials))
    interval = wilson(successes, trials)
    assert 0 <= interval.low <= successes / trials <= interval.high <= 1


def test_share_below_is_the_binomial_tail():
    assert share_below(9, 10, 0.98) == pytest.approx(1 - 0.98**10)
    assert share_below(8, 10, 0.5) == pytest.approx(1 - 11 / 1024)
    assert share_below(10, 10, 0.98) == 1
    assert share_below(9, 10, 1.0) == 0
    assert share_below(900_000, 1_000_000, 0.9) == pytest.approx(0.5, abs=0.01)


def test_paired_proportions_cover_the_truth():
    """At least about 90 % of the intervals hold the true drop, also when discordant pairs are rare."""
    generator = np.random.default_rng(1)
    for both, one, two in [(0.9, 0.03, 0.01), (0.95, 0.01, 0.01), (0.6, 0.1, 0.1)]:
        counts = generator.multinomial(400, [both, one, two, 1 - both - one - two], size=500)
        held = sum(
            (interval := paired_proportions(*map(int, c))).low <= one - two <= interval.high for c in counts
        )
        assert held >= 0.87 * 500


def test_paired_proportions_without_disagreement_still_have_a_width():
    interval = paired_proportions(350, 0, 0, 10)
    assert 0.002 < interval.high < 0.02
    assert interval.low == pytest.approx(-interval.high, rel=0.6)


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 60), st.integers(1, 60))
def test_paired_proportions_are_antisymmetric(both, one, two, neither):
    a, b = paired_proportions(both, one, two, neither), paired_proportions(both, two, one, neither)
    assert a.low == pytest.approx(-b.high, abs=1e-12)
    assert -1 <= a.low <= (one - two) / (both + one + two + neither) <= a.high <= 1


def test_paired_bootstrap_is_repeatable_and_brackets_the_mean():
    values = list(np.random.default_rng(0).normal(0.3, 1, 200))
    interval = paired_bootstrap(values)
    assert interval == paired_bootstrap(values)
    assert interval.low < float(np.mean(values)) < interval.high
    assert interval.high - interval.low == pytest.approx(2 * 1.645 / math.sqrt(200), rel=0.15)


@pytest.mark.parametrize(
    ("probability", "degrees", "value"),
    # Tables of Student's distribution.
    [
        (0.975, 5, 2.5706),
        (0.99, 9, 2.8214),
        (0.99, 11, 2.7181),
        (0.8, 9, 0.8834),
        (0.975, 1, 12.706),
        (0.975, 2, 4.3027),
    ],
)
def test_student(probability, degrees, value):
    assert student(probability, degrees) == pytest.approx(value, rel=2e-3)


def test_interleave_balances_and_alternates():
    assert interleave(4) == "ABBABAAB"
    for pairs in range(1, 25):
        order = interleave(pairs)
        assert len(order) == 2 * pairs
        assert order.count("A") == pairs
        assert all(set(order[2 * i : 2 * i + 2]) == {"A", "B"} for i in range(pairs))


def test_summary_weighs_processes_equally():
    slow, fast = [2.0] * 10, [1.0] * 10_000
    assert summarize([slow, fast, slow]).p50 == 2.0
    assert summarize([fast, slow]).p50 == 1.5  # half the weight on each side


def test_p99_needs_enough_samples():
    assert summarize([[1.0] * 999]).p99 is None
    assert summarize([[1.0] * 500, [2.0] * 500]).p99 == 2.0


def test_outliers_are_counted_and_kept():
    values = [1.0, 1.01, 0.99, 1.0, 1.02, 0.98, 50.0]
    summary = summarize([values])
    assert summary.outliers == 1
    assert summary.p90 == 50.0


@given(st.lists(st.lists(st.floats(0.01, 1e4), min_size=1, max_size=30), min_size=1, max_size=6))
@settings(max_examples=30, deadline=None)
def test_quantiles_are_ordered_and_within_the_samples(samples):
    summary = summarize(samples)
    values = [v for p in samples for v in p]
    assert min(values) <= summary.p50 <= summary.p90 <= max(values)
    assert summary.interval.low <= summary.interval.high


def test_bootstrap_medians_are_those_of_real_resamples():
    generator = np.random.default_rng(0)
    values = np.sort(generator.exponential(1.0, 101))
    quick = bootstrap_medians(values, 20_000, generator)
    real = np.median(values[generator.integers(0, 101, (20_000, 101))], axis=1)
    for q in (0.05, 0.5, 0.95):
        assert np.quantile(quick, q) == pytest.approx(np.quantile(real, q), rel=0.02)


def test_median_interval_covers_across_processes():
    """What a bootstrap inside one process misses: processes that differ by more than their samples."""
    generator = np.random.default_rng(2)
    held = 0
    for _ in range(200):
        offsets = generator.normal(10, 0.5, 10)
        processes = [generator.normal(o, 0.05, 50) for o in offsets]
        interval = median_interval(processes, resamples=400)
        held += interval.low <= 10 <= interval.high
    assert held >= 0.85 * 200


def _machine(generator, pairs, ratio):
    """Processes of a noisy machine: a drift, an offset a process, now and then a disturbed process."""
    first, second = [], []
    for position, letter in enumerate(interleave(pairs)):
        level = 10 * math.exp(0.01 * position + generator.normal(0, 0.03) + 0.3 * (generator.random() < 0.05))
        level *= ratio if letter == "B" else 1
        (first if letter == "A" else second).append(level * np.exp(generator.exponential(0.02, 60)))
    return first, second


def test_equals_are_found_different_in_at_most_5_of_100():
    generator = np.random.default_rng(3)
    verdicts = [paired_difference(*_machine(generator, 10, 1.0)).verdict for _ in range(300)]
    assert sum(v != "no detectable difference" for v in verdicts) <= 0.04 * 300


@pytest.mark.parametrize(("ratio", "verdict"), [(1.3, "slower"), (1 / 1.3, "faster")])
def test_a_true_difference_of_1_3_never_flips(ratio, verdict):
    generator = np.random.default_rng(4)
    found = [paired_difference(*_machine(generator, 10, ratio)) for _ in range(100)]
    assert all(d.verdict in (verdict, "no detectable difference") for d in found)
    assert sum(d.verdict == verdict for d in found) >= 95
    assert np.median([d.ratio for d in found]) == pytest.approx(ratio, rel=0.03)


@pytest.mark.parametrize(("ratio", "verdict"), [(1.008, "no detectable difference"), (1.012, "slower")])
def test_a_change_below_one_percent_is_no_verdict_however_sure(ratio, verdict):
    first = [[1.0 + 1e-5 * i] * 20 for i in range(10)]
    found = paired_difference(first, [[ratio * x for x in process] for process in first])
    assert found.p_value < 0.01
    assert (found.verdict, found.ratio) == (verdict, pytest.approx(ratio))
    assert found.detectable == 0.01


def test_the_detectable_change_is_detected():
    generator = np.random.default_rng(5)
    detectable = float(
        np.median([paired_difference(*_machine(generator, 10, 1.0)).detectable for _ in range(50)])
    )
    found = [paired_difference(*_machine(generator, 10, 1 + detectable)).verdict for _ in range(100)]
    assert sum(v == "slower" for v in found) >= 60


def test_processes_that_were_kept_waiting_do_not_move_the_ratio():
    generator = np.random.default_rng(7)
    first, second = _machine(generator, 10, 1.3)
    first[3] = [3 * x for x in first[3]]
    second[8] = [6 * x for x in second[8]]
    found = paired_difference(first, second)
    assert found.ratio == pytest.approx(1.3, rel=0.06)
    assert found.interval.low < 1.3 < found.interval.high


def test_the_signed_rank_test_against_the_published_table():
    # Darwin's maize (Fisher 1935, The Design of Experiments, ch. III): T = 24; two-sided exact p = 0.0413.
    cross = [49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48]
    found = paired_difference([[1.0]] * 15, [[math.exp(d / 1000)] for d in cross])
    assert found.p_value == pytest.approx(0.0413, abs=2e-4)
    assert math.log(found.ratio) * 1000 == pytest.approx(24.5, abs=1.0)


def test_many_pairs_use_random_flips():
    generator = np.random.default_rng(6)
    difference = paired_difference(*_machine(generator, 20, 1.3))
    assert difference.verdict == "slower"
    assert difference == paired_difference(*_machine(np.random.default_rng(6), 20, 1.3))


def test_unequal_sides_are_refused():
    with pytest.raises(ValueError, match="same number"):
        paired_difference([[1.0]], [[1.0], [2.0]])


@pytest.mark.parametrize(
    ("ratio", "text"),
    [
        (0.15, "6.7× as fast"),
        (1 / 1.04, "1.04× as fast"),
        (2.0, "2.0× as slow"),
        (31.4, "31× as slow"),
    ],
)
def test_ratios_of_latencies_in_words(ratio, text):
    assert in_times(ratio) == text


@pytest.mark.parametrize("share", [0.001, 0.02, 0.2, 0.7])
def test_as_many_rows_as_are_named_would_see_the_loss_and_one_less_would_not(share):
    rows = rows_to_see(0.0, share)
    assert would_be_seen(0, rows, share)
    assert not would_be_seen(0, rows - 1, share)
    assert unseen(rows) <= share < unseen(rows - 1)


def test_a_loss_that_is_nearly_there_takes_more_rows_and_one_that_is_there_cannot_be_ruled_out():
    assert rows_to_see(0.05, 0.2) > rows_to_see(0.0, 0.2)
    assert rows_to_see(0.2, 0.2) is None
    assert rows_to_see(0.0, 1e-9) is None


def test_the_jackknife_covers_the_difference_of_two_means():
    generator = np.random.default_rng(4)
    inside = 0
    for _ in range(300):
        differences = generator.normal(0.5, 1.0, 100)
        parts = [np.delete(differences, np.arange(g, 100, 20)).mean() for g in range(20)]
        interval = jackknife(parts, differences.mean())
        inside += interval.low < 0.5 < interval.high
    assert 0.85 < inside / 300 < 0.95
