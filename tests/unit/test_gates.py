"""Verdicts: pass, fail, inconclusive and not run."""

import pytest

from edgekit.artifact.gates import Evidence, Limits, failed, gates
from edgekit.types import Parity, Placement, Tolerance, Verdict

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


@pytest.mark.parametrize(
    ("agreement", "rows", "verdict"),
    [
        (0.9, 10, Verdict.INCONCLUSIVE),
        (0.9, 1000, Verdict.FAIL),
        (0.8, 10, Verdict.FAIL),
        (0.8, 5, Verdict.INCONCLUSIVE),
        (0.98, 50, Verdict.PASS),
    ],
)
def test_agreement_fails_only_when_the_rows_suffice(agreement, rows, verdict):
    evidence = Evidence(parity=parity(top1_agreement=agreement, rows=rows))
    assert verdicts(evidence, Tolerance(top1_agreement=0.98))["top1-agreement"] is verdict


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        ((-0.002, 0.004), Verdict.PASS),
        ((-0.002, 0.006), Verdict.PASS),  # within the limit as measured; the message states the interval
        ((0.004, 0.009), Verdict.INCONCLUSIVE),
        ((0.006, 0.02), Verdict.FAIL),
    ],
)
def test_a_drop_beyond_the_limit_fails_when_the_interval_says_so(interval, verdict):
    drop = sum(interval) / 2
    evidence = Evidence(
        parity=parity(
            metric_name="accuracy",
            metric=0.98 - drop,
            reference_metric=0.98,
            metric_drop=drop,
            drop_interval=interval,
            drop_method="Newcombe",
        )
    )
    (gate,) = [g for g in gates(evidence, Tolerance(metric_drop=0.005)) if g.name == "metric-drop"]
    assert gate.verdict is verdict
    assert "90 %" in gate.message
    assert ("too few" in gate.message) is (verdict is Verdict.INCONCLUSIVE)


def test_enough_rows_are_estimated():
    evidence = Evidence(
        parity=parity(metric=0.98, reference_metric=0.98, metric_drop=0.01, drop_interval=(0.0, 0.02))
    )
    (gate,) = [g for g in gates(evidence, Tolerance(metric_drop=0.005)) if g.name == "metric-drop"]
    assert "about 1600 would do" in gate.message  # half the width takes four times the 400 rows


def test_a_drop_that_equals_the_limit_passes_though_binary_fractions_differ():
    drop = 0.98 - 0.975
    assert drop > 0.005
    evidence = Evidence(parity=parity(metric=0.975, reference_metric=0.98, metric_drop=drop))
    (gate,) = [g for g in gates(evidence, Tolerance(metric_drop=0.005)) if g.name == "metric-drop"]
    assert gate.verdict is Verdict.PASS


def test_no_number_of_rows_is_promised_where_the_drop_is_next_to_the_limit():
    evidence = Evidence(
        parity=parity(metric=0.98, reference_metric=0.98, metric_drop=0.00501, drop_interval=(0.0, 0.02))
    )
    (gate,) = [g for g in gates(evidence, Tolerance(metric_drop=0.005)) if g.name == "metric-drop"]
    assert gate.verdict is Verdict.INCONCLUSIVE
    assert "would do" not in gate.message


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
