"""Verdicts: pass, fail, unproven, not run and shown."""

import pytest

from edgekit.artifact.gates import Evidence, failed, gates
from edgekit.artifact.limits import Limits
from edgekit.artifact.proof import Share, percent
from edgekit.types import Fallback, HalfRange, Parity, Placement, Tolerance, Verdict

GOOD = Parity(
    samples=4, rows=400, max_abs=0.1, relative_error=0.01, snr_db=40.0, cosine=0.999, top1_agreement=1.0
)


def verdicts(evidence, tolerance=None, limits=None):
    return {g.name: g.verdict for g in gates(evidence, tolerance or Tolerance(), limits)}


def parity(**changes):
    from dataclasses import replace

    return replace(GOOD, **changes)


def test_only_limits_that_are_set_are_gates():
    assert verdicts(Evidence(parity=GOOD)) == {"finite": Verdict.PASS}


@pytest.mark.parametrize(
    ("tolerance", "name", "verdict"),
    [
        (Tolerance(snr_db=40), "snr", Verdict.PASS),
        (Tolerance(snr_db=40.1), "snr", Verdict.FAIL),
        (Tolerance(relative_error=0.01), "relative-error", Verdict.PASS),
        (Tolerance(relative_error=0.009), "relative-error", Verdict.FAIL),
        (Tolerance(top1_agreement=0.99), "top1-agreement", Verdict.PASS),
    ],
)
def test_parity_gates(tolerance, name, verdict):
    assert verdicts(Evidence(parity=GOOD), tolerance)[name] is verdict


def test_values_that_are_not_finite_fail():
    found = gates(Evidence(parity=parity(nonfinite=3)), Tolerance())
    assert failed(found) == ("finite",)
    assert "3 values" in found[0].message


def drop_gate(limit, **changes):
    evidence = Evidence(parity=parity(reference_metric=0.98, metric_name="accuracy", **changes))
    (gate,) = [g for g in gates(evidence, Tolerance(metric_drop=limit)) if g.name == "metric-drop"]
    return gate


@pytest.mark.parametrize(
    ("agreeing", "rows", "verdict"),
    [
        (450, 450, Verdict.PASS),
        (14, 14, Verdict.PASS),  # of rows of which a fifth is lost, 14 in a row are right with less than 5 %
        (13, 13, Verdict.UNPROVEN),
        (28, 31, Verdict.UNPROVEN),
        (410, 450, Verdict.PASS),
        (8, 10, Verdict.FAIL),  # beyond the limit as measured: refused, sure or not
        (300, 450, Verdict.FAIL),
    ],
)
def test_an_agreement_passes_where_twice_the_loss_would_have_been_seen(agreeing, rows, verdict):
    evidence = Evidence(parity=parity(top1_agreement=agreeing / rows, rows=rows, agreement_rows=rows))
    (gate,) = [g for g in gates(evidence, Tolerance(top1_agreement=0.9)) if g.name == "top1-agreement"]
    assert gate.verdict is verdict
    assert gate.message.startswith(f"{agreeing} of {rows} rows (")
    assert ("too few rows to be sure" in gate.message) is ((agreeing, rows) == (8, 10))
    assert (gate.enough is not None) is (verdict is Verdict.UNPROVEN)
    assert gate.enough is None or gate.enough > rows


def test_rows_that_would_do_do():
    for rows in range(1, 14):
        (gate,) = [
            g
            for g in gates(Evidence(parity=parity(rows=rows)), Tolerance(top1_agreement=0.9))
            if g.name == "top1-agreement"
        ]
        assert gate.enough == 14
    assert "450 of 450 rows (100 %) agree" in str(Share(value=1.0, rows=450, what="rows"))


@pytest.mark.parametrize(
    ("share", "text"), [(1, "100 %"), (0.99996, "99.996 %"), (0.998, "99.8 %"), (0.5, "50 %"), (0, "0 %")]
)
def test_all_is_said_only_of_all(share, text):
    assert percent(share) == text


def test_of_random_inputs_nothing_statistical_is_claimed():
    evidence = Evidence(parity=parity(samples=8, rows=8, top1_agreement=0.25, data="random"))
    (gate,) = [g for g in gates(evidence, Tolerance(top1_agreement=0.9)) if g.name == "top1-agreement"]
    assert gate.verdict is Verdict.SHOWN
    assert gate.limit is None
    assert "2 of 8 rows (25 %) agree on 8 random inputs" in gate.message
    wrong = parity(integer_agreement=0.5, integer_rows=8, samples=8, data="random")
    assert verdicts(Evidence(parity=wrong))["integers"] is Verdict.FAIL
    right = parity(integer_agreement=1.0, integer_rows=8, samples=8, data="random")
    assert verdicts(Evidence(parity=right))["integers"] is Verdict.PASS


def test_golden_vectors_are_real_inputs_few_as_they_are():
    for agreement, verdict in ((0.0, Verdict.FAIL), (0.875, Verdict.SHOWN)):
        golden = parity(samples=8, rows=8, top1_agreement=agreement, data="golden")
        assert verdicts(Evidence(parity=golden), Tolerance(top1_agreement=0.9))["top1-agreement"] is verdict


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        ((-0.002, 0.004), Verdict.PASS),
        ((-0.002, 0.010), Verdict.PASS),
        ((-0.002, 0.011), Verdict.UNPROVEN),  # more than twice the limit could be lost
        ((0.004, 0.009), Verdict.FAIL),  # beyond the limit as measured, though the interval holds it
        ((0.006, 0.02), Verdict.FAIL),
    ],
)
def test_a_loss_is_held_against_the_limit_and_its_interval_against_twice_of_it(interval, verdict):
    drop = sum(interval) / 2
    gate = drop_gate(
        0.005,
        metric=0.98 - drop,
        metric_drop=drop,
        drop_interval=interval,
        drop_method="Newcombe",
        metric_rows=4000,
    )
    assert gate.verdict is verdict
    assert "90 %" in gate.message
    assert ("too few rows" in gate.message) is (interval == (0.004, 0.009))


def test_rows_that_saw_nothing_have_not_seen_everything():
    """Ten pictures without a difference: a bootstrap gives an interval without width."""
    same = {"metric": 0.98, "metric_drop": 0.0, "drop_interval": (0.0, 0.0)}
    gate = drop_gate(0.01, metric_rows=10, **same)
    assert gate.verdict is Verdict.UNPROVEN
    assert gate.enough == 149
    assert "about 149 would do" in gate.message
    assert drop_gate(0.01, metric_rows=149, **same).verdict is Verdict.PASS
    assert (
        drop_gate(0.01, metric_rows=10, row_loss=0.05, **same).verdict is Verdict.PASS
    )  # no row has more to lose


def test_nothing_at_all_cannot_be_proven():
    gate = drop_gate(0.0, metric=0.98, metric_drop=0.0, drop_interval=(0.0, 0.0), metric_rows=10_000)
    assert gate.verdict is Verdict.UNPROVEN
    assert gate.enough is None


def test_rows_that_would_decide_are_estimated():
    gate = drop_gate(0.005, metric=0.97, metric_drop=0.01, drop_interval=(0.0, 0.02), metric_rows=400)
    assert gate.verdict is Verdict.FAIL
    assert "about 1,600 would decide" in gate.message  # half the width takes four times the 400 rows
    near = drop_gate(0.005, metric=0.97, metric_drop=0.00501, drop_interval=(0.0, 0.02), metric_rows=400)
    assert "would decide" not in near.message


def test_a_drop_that_equals_the_limit_is_within_though_binary_fractions_differ():
    drop = 0.98 - 0.975
    assert drop > 0.005
    gate = drop_gate(0.005, metric=0.975, metric_drop=drop, drop_interval=(0.004, 0.006), metric_rows=4000)
    assert gate.verdict is Verdict.PASS


def test_labels_that_only_some_have_are_said():
    gate = drop_gate(
        0.01,
        metric=0.98,
        metric_drop=0.0,
        drop_interval=(0.0, 0.0),
        samples=128,
        labelled=127,
        metric_rows=127,
    )
    assert "127 of 128 samples have labels" in gate.message


def test_an_artifact_that_beats_its_source_is_doubted():
    better = {"metric": 0.995, "metric_drop": -0.015, "metric_rows": 1000}
    assert "better than its source" in drop_gate(0.01, drop_interval=(-0.02, -0.01), **better).message
    assert "better than its source" not in drop_gate(0.01, drop_interval=(-0.04, 0.01), **better).message


def test_an_artifact_whose_outputs_are_not_finite_has_no_metric_and_fails():
    assert drop_gate(0.01, nonfinite=3).verdict is Verdict.FAIL


def test_placement():
    full = Placement(precision="int8", share=0.97, operators=10)
    assert verdicts(Evidence(placement=full), Tolerance(placement=0.95))["placement"] is Verdict.PASS
    assert verdicts(Evidence(placement=full), Tolerance(placement=0.98))["placement"] is Verdict.FAIL
    silent = Placement(precision="int8", share=None, operators=10)
    assert "placement" not in verdicts(Evidence(placement=silent), Tolerance(placement=0.98))


def test_nothing_passes_that_was_not_run():
    tolerance = Tolerance(snr_db=1, relative_error=1, top1_agreement=0, metric_drop=1, placement=0)
    found = gates(
        Evidence(not_run="no NVIDIA GPU", size_bytes=10), tolerance, Limits(size_bytes=10, latency_ms=1)
    )
    assert {g.verdict for g in found if g.name != "size"} == {Verdict.NOT_RUN}
    assert all(g.message == "no NVIDIA GPU" for g in found if g.name != "size")
    assert {g.name: g.verdict for g in found}["size"] is Verdict.PASS
    assert failed(found) == ()


def test_size_limit():
    assert verdicts(Evidence(size_bytes=11), limits=Limits(size_bytes=10))["size"] is Verdict.FAIL


@pytest.mark.parametrize(
    ("share", "limit", "verdict"),
    [
        (0.8, 0.75, Verdict.PASS),
        (0.7, 0.75, Verdict.FAIL),
        (0.1, 0.05, Verdict.PASS),
        (0.0, 0.0, Verdict.FAIL),
    ],
)
def test_a_promise_of_storage_is_kept_in_the_file(share, limit, verdict):
    evidence = Evidence(integer_weights=share)
    assert verdicts(evidence, Tolerance(integer_weights=limit))["integer-weights"] is verdict


def test_a_backend_that_does_not_say_how_it_stores_weights_has_no_such_gate():
    assert "integer-weights" not in verdicts(Evidence(), Tolerance(integer_weights=0.75))


def test_nothing_in_the_precision_asked_for_never_passes():
    nothing = Evidence(placement=Placement(precision="int8", share=0.0, operators=1))
    assert verdicts(nothing, Tolerance(placement=0.0))["placement"] is Verdict.FAIL


def test_a_model_without_layers_is_told_so_in_place_of_a_share_of_nothing():
    """One whose layers were left in float has them among the fallbacks, with what they are of the whole."""
    pointwise = Fallback(op="GREATER", count=3, reason="runs in LiteRT's builtin kernel", share=0.0)
    layer = Fallback(op="ConvTranspose", count=1, reason="not quantized in the graph: fp32", share=1.0)
    without, floats = (
        next(
            g
            for g in gates(Evidence(placement=placement), Tolerance(placement=0.75))
            if g.name == "placement"
        )
        for placement in (
            Placement(precision="int8", share=0.0, operators=9, fallbacks=(left,))
            for left in (pointwise, layer)
        )
    )
    assert without.verdict is floats.verdict is Verdict.FAIL
    assert "no layer to compute in int8" in without.message
    assert "0 % of the MACs in int8" in floats.message


@pytest.mark.parametrize(("left", "verdict"), [(65_504.0, Verdict.PASS), (65_505.0, Verdict.FAIL)])
def test_nothing_in_float16_leaves_its_range(left, verdict):
    half = HalfRange(samples=3, largest=2e5, tensor="a", left=left, left_tensor="b", kept=("n", "m"))
    (gate,) = [g for g in gates(Evidence(half=half), Tolerance()) if g.name == "range"]
    assert gate.verdict is verdict
    assert "a reaches 200,000: 2 nodes stay in float32" in gate.message


@pytest.mark.parametrize(
    ("data", "noise", "verdict"),
    [
        ("calibration", True, Verdict.SHOWN),
        ("calibration", False, Verdict.FAIL),
        ("evaluation", True, Verdict.FAIL),
    ],
)
def test_of_noise_that_nobody_gave_to_judge_on_the_agreement_is_shown(data, noise, verdict):
    parity = Parity(
        samples=8, rows=8, max_abs=0.1, relative_error=0.1, snr_db=32.0, cosine=1.0, top1_agreement=0.875,
        agreement_rows=8, data=data, noise=noise,
    )  # fmt: skip
    found = {g.name: g for g in gates(Evidence(parity=parity), Tolerance(top1_agreement=0.9))}
    assert found["top1-agreement"].verdict is verdict
