"""The straight line, branch by branch, with a fake in the place of everything heavy."""

from __future__ import annotations

from dataclasses import replace

import pipeline_fakes as fakes
import pytest
from pipeline_fakes import Fake, samples, target

from edgekit.errors import (
    BackendError,
    CalibrationRequiredError,
    DataError,
    DefectError,
    GateFailedError,
    MissingExtraError,
    NotRunnableError,
    UnknownNameError,
    UnsupportedOperatorsError,
)
from edgekit.pipeline import build, candidates, guard
from edgekit.pipeline.speed import Speed
from edgekit.quantize.options import Cause, NodeReport
from edgekit.types import Availability, Coverage, Finding, HalfRange, Severity, Tolerance, Verdict

A32, A8, B32, B8 = (target(n) for n in ("a-fp32", "a-int8", "b-fp32", "b-int8"))


@pytest.fixture
def fake(monkeypatch):
    fake = Fake()
    fakes.install(monkeypatch, fake, (A32, A8, B32, B8))
    return fake


@pytest.fixture(params=[1, 2], ids=["one at a time", "side by side"])
def workers(request, monkeypatch):
    monkeypatch.setattr(candidates, "workers", lambda jobs, model: min(jobs, request.param))
    return request.param


def run(tmp_path, rows, **options):
    options.setdefault("speed_gate", False)
    asked, context = fakes.request(tmp_path, rows, options.pop("calibration", samples()), **options)
    return build.run(asked, context)


def verdicts(outcome):
    return {g.name: g.verdict for g in outcome.artifact.manifest.gates}


def test_artifacts_come_in_the_order_that_was_asked_for(tmp_path, fake, workers):
    outcomes = run(tmp_path, (B8, A32, A8))
    assert [o.target for o in outcomes] == [B8, A32, A8]
    assert all(o.error is None and o.artifact.passed for o in outcomes)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a-fp32", "a-int8", "b-int8"]
    steps = [s.name for s in outcomes[0].artifact.manifest.steps]
    assert steps == ["export", "optimize", "calibrate", "quantize", "lower"]
    assert [s.name for s in outcomes[1].artifact.manifest.steps] == ["export", "optimize", "lower"]
    for shared in ("optimize", "calibrate", "reference"):
        assert fake.done.count(shared) == 1


def test_a_second_build_does_nothing(tmp_path, fake, workers):
    run(tmp_path, (A8, B32))
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")}
    fake.done.clear()
    outcomes = run(tmp_path, (A8, B32))
    assert fake.done == ["export"]  # a module in memory: only its export tells what it is
    assert all(o.artifact.passed for o in outcomes)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")} == stamps


def test_a_source_that_can_be_loaded_again_is_not_exported_again(tmp_path, fake, monkeypatch):
    monkeypatch.setattr(build.Source, "in_memory", property(lambda self: False))
    monkeypatch.setattr(build.Source, "sha256", property(lambda self: "0" * 64))
    assert run(tmp_path, (A32,))[0].artifact.passed
    fake.done.clear()
    assert run(tmp_path, (A32,))[0].artifact.passed
    assert fake.done == []


def test_a_target_that_is_new_does_not_make_the_others_again(tmp_path, fake, workers):
    run(tmp_path, (A8,))
    fake.done.clear()
    run(tmp_path, (A8, B8, B32))
    assert {d for d in fake.done if d.startswith(("lower", "run"))} == {
        "lower b-int8", "run b-int8", "lower b-fp32", "run b-fp32",
    }  # fmt: skip


def test_one_targets_error_is_its_own(tmp_path, fake, workers):
    fake.lower_error["a-int8"] = BackendError("it cracked", hint="glue")
    fake.run_error["b-fp32"] = ZeroDivisionError("by nought")
    outcomes = run(tmp_path, (A8, B32, B8, A32))
    assert isinstance(outcomes[0].error, BackendError)
    assert isinstance(outcomes[1].error, DefectError)
    assert isinstance(outcomes[1].error.__cause__, ZeroDivisionError)
    assert outcomes[2].artifact.passed
    assert outcomes[3].artifact.passed


def test_what_another_backend_can_express_is_named(tmp_path, fake, workers):
    fake.lower_error["a-fp32"] = UnsupportedOperatorsError("a-fp32", [])
    (outcome, _) = run(tmp_path, (A32, B8))
    assert isinstance(outcome.error, UnsupportedOperatorsError)
    assert outcome.error.supported_by == ("b-fp32",)
    fake.lower_error["b-fp32"] = BackendError("no", hint="no")
    assert run(tmp_path / "again", (A32, B8))[0].error.supported_by == ()


@pytest.mark.parametrize("what", [OverflowError("too large"), MemoryError(), RecursionError("deep")])
def test_what_happens_to_the_others_does_not_hide_the_refusal(tmp_path, fake, what):
    """They are tried for the hint's sake alone."""
    fake.lower_error["a-fp32"] = UnsupportedOperatorsError("a-fp32", [])
    fake.lower_error["b-fp32"] = what
    (outcome,) = run(tmp_path, (A32,))
    assert isinstance(outcome.error, UnsupportedOperatorsError)
    assert (outcome.error.target, outcome.error.supported_by) == ("a-fp32", ())


def test_a_backend_that_is_not_installed_offers_no_way_out(tmp_path, fake):
    fake.lower_error["a-fp32"] = UnsupportedOperatorsError("a-fp32", [])
    fake.available["b"] = Availability(installed=False, usable=False)
    outcomes = run(tmp_path, (A32, B32))
    assert outcomes[0].error.supported_by == ()
    assert isinstance(outcomes[1].error, MissingExtraError)


def test_what_cannot_be_built_is_told_before_calibration(tmp_path, fake):
    fake.check_error["a-int8"] = UnsupportedOperatorsError("a-int8", [])
    (outcome,) = run(tmp_path, (A8,))
    assert isinstance(outcome.error, UnsupportedOperatorsError)
    assert "calibrate" not in fake.done
    fake.available["b"] = Availability(installed=False, usable=False)
    outcomes = run(tmp_path, (A8, B8))
    assert isinstance(outcomes[1].error, MissingExtraError)
    assert "calibrate" not in fake.done
    assert "quantize" not in fake.done


def test_integers_need_data_and_settings_a_name(tmp_path, fake):
    with pytest.raises(CalibrationRequiredError, match="a-int8"):
        run(tmp_path, (A8, B32), calibration=None)
    with pytest.raises(UnknownNameError):
        run(tmp_path, (B32,), set={"nonsense": True})
    assert fake.done == []
    assert run(tmp_path, (B32,), calibration=None)[0].artifact.passed


def test_random_data_make_an_uncalibrated_artifact(tmp_path, fake):
    (outcome,) = run(tmp_path, (A8,), calibration="random")
    assert outcome.artifact.manifest.calibration.calibrated is False
    assert outcome.artifact.manifest.calibration.findings == ()


def finding(severity):
    return Finding(code="zeros", severity=severity, tensor="x", message="nothing but zeros", hint="look")


def test_calibration_samples_that_are_wrong_end_the_build(tmp_path, fake):
    fake.findings = (finding(Severity.ERROR),)
    with pytest.raises(DataError, match="nothing but zeros") as caught:
        run(tmp_path, (A8,))
    assert "--accept-data zeros" in caught.value.hint
    with pytest.raises(DataError, match="nothing but zeros"):  # what is accepted is one finding, not all
        run(tmp_path, (A8,), accept_data=("scale",))
    with pytest.raises(UnknownNameError, match="zerros") as unknown:
        run(tmp_path, (A8,), accept_data=("zerros",))
    assert unknown.value.nearest == ("zeros",)
    (outcome,) = run(tmp_path, (A8,), accept_data=("zeros",))
    assert outcome.artifact.manifest.calibration.findings == ("error: nothing but zeros",)


def test_a_warning_about_the_samples_is_shown_and_kept(tmp_path, fake):
    fake.findings = (finding(Severity.WARNING),)
    asked, context = fakes.request(tmp_path, (A8,), samples(), speed_gate=False)
    (outcome,) = build.run(asked, context)
    assert context.progress.notes[0] == "calibration warning (zeros): nothing but zeros"
    assert outcome.artifact.manifest.calibration.findings == ("warning: nothing but zeros",)


def test_an_artifact_that_is_wrong_fails_and_lies_apart(tmp_path, fake, workers):
    fake.noise["a-int8"] = 3.0
    outcomes = run(tmp_path, (A8, B8))
    assert verdicts(outcomes[0])["snr"] is Verdict.FAIL
    assert outcomes[0].artifact.directory == tmp_path / "out" / "a-int8.failed"
    assert isinstance(build.failure(outcomes[0], outcomes_options(tmp_path)), GateFailedError)
    assert build.failure(outcomes[1], outcomes_options(tmp_path)) is None


def outcomes_options(tmp_path, **options):
    return fakes.request(tmp_path, (), **options)[0].options


def test_the_first_failure_is_raised_with_the_others_as_notes(tmp_path, fake):
    fake.lower_error["a-int8"] = BackendError("it cracked", hint="glue")
    fake.noise["b-int8"] = 3.0
    outcomes = run(tmp_path, (A32, A8, B8))
    with pytest.raises(BackendError, match="it cracked") as caught:
        build.raise_failures(outcomes, outcomes_options(tmp_path))
    assert len(caught.value.__notes__) == 1
    assert "b-int8 failed " in caught.value.__notes__[0]
    build.raise_failures(outcomes[:1], outcomes_options(tmp_path))


def test_what_this_machine_cannot_run_is_not_run_and_never_passed(tmp_path, fake, workers):
    fake.available["a"] = Availability(installed=True, usable=False, version="1", why_not="no GPU")
    fake.run_error["a-int8"] = fake.run_error["a-fp32"] = NotRunnableError("a: no GPU", hint="elsewhere")
    outcomes = run(tmp_path, (A8, A32, B8))
    for outcome in outcomes[:2]:
        assert outcome.artifact.manifest.status == "not-run"
        assert verdicts(outcome)["finite"] is Verdict.NOT_RUN
        assert outcome.artifact.manifest.golden.samples == 4
        assert outcome.artifact.directory.name == outcome.target.name
        assert isinstance(build.failure(outcome, outcomes_options(tmp_path)), NotRunnableError)
        assert build.failure(outcome, outcomes_options(tmp_path, allow_not_run=True)) is None
    fake.done.clear()
    run(tmp_path, (A8, A32, B8))
    assert fake.done == ["export"]  # that it cannot run here is in the cache too


def test_a_driver_that_came_is_seen(tmp_path, fake):
    fake.available["a"] = Availability(installed=True, usable=False, version="1", why_not="no GPU")
    fake.run_error["a-int8"] = NotRunnableError("a: no GPU", hint="elsewhere")
    run(tmp_path, (A8,))
    fake.available.clear()
    fake.run_error.clear()
    assert run(tmp_path, (A8,))[0].artifact.passed


def test_what_only_the_run_tells_is_tried_again(tmp_path, fake):
    fake.run_error["a-int8"] = NotRunnableError("the GPU is busy", hint="later")
    assert run(tmp_path, (A8,))[0].artifact.manifest.status == "not-run"
    fake.run_error.clear()
    assert run(tmp_path, (A8,))[0].artifact.passed


def test_a_runtime_that_the_run_misses_is_an_error_where_it_should_be_there(tmp_path, fake):
    fake.run_error["a-int8"] = MissingExtraError("a", requirement="a-wheel")
    assert isinstance(run(tmp_path, (A8,))[0].error, MissingExtraError)
    fake.available["a"] = Availability(installed=True, usable=False, why_not="a is not installed")
    assert run(tmp_path, (A8,))[0].artifact.manifest.status == "not-run"


def node(name, macs, *, cause=None, activation="int8"):
    return NodeReport(
        node=name,
        op="Conv",
        module_path="",
        quantized=cause is None,
        activation=activation,
        cause=cause,
        macs=macs,
    )


@pytest.mark.parametrize(
    ("nodes", "share", "verdict"),
    [
        ((node("a", 50), node("b", 50)), 0.89, Verdict.FAIL),
        ((node("a", 50), node("b", 50, cause=Cause.EXCLUDED)), 0.45, Verdict.PASS),
        ((node("a", 50), node("b", 50, cause=Cause.EXCLUDED)), 0.44, Verdict.FAIL),
        ((node("a", 50), node("b", 50, cause=Cause.UNSUPPORTED)), 0.89, Verdict.FAIL),
        ((node("a", 50), node("b", 50, activation="int16")), 0.45, Verdict.PASS),
        ((), 0.9, Verdict.PASS),
    ],
)
def test_what_was_excluded_on_purpose_does_not_count_against_the_placement(
    tmp_path, fake, nodes, share, verdict
):
    fake.nodes, fake.share["a-int8"] = nodes, share
    assert verdicts(run(tmp_path, (A8,))[0])["placement"] is verdict


def test_a_runtime_that_does_not_tell_has_no_placement_gate(tmp_path, fake):
    fake.share["a-int8"] = None
    (outcome,) = run(tmp_path, (A8,))
    assert "placement" not in verdicts(outcome)
    assert any("does not tell what it executes" in n for n in outcome.artifact.manifest.notes)


def test_without_a_budget_nothing_is_searched(tmp_path, fake, monkeypatch):
    monkeypatch.setattr(guard, "search", lambda *_: pytest.fail("no budget was given"))
    fake.noise["a-int8"] = 3.0
    run(tmp_path, (A8,))
    fake.noise.clear()
    (outcome,) = run(tmp_path / "held", (A8,), max_drop=0.01)
    assert outcome.artifact.manifest.details.get("guard") is None
    run(tmp_path / "float", (A32,), max_drop=0.01)


def searching(monkeypatch, tried, **outcome):
    """A search that excludes ``n`` and reports what it measured."""

    def search(context, model, target, calibrated, budget, measure):
        choice = candidates.QuantizeOptions(exclude=("n",))
        tried.append((target.name, budget, measure(choice).samples))
        return guard.Found(choice=choice, drop=0.0, precision="int16", restored=({"node": "n"},), **outcome)

    monkeypatch.setattr(guard, "search", search)


def broken(fake, monkeypatch, when):
    """Answers of ``a-int8`` are wrong while ``when(its text)``: the options are written into the fake's model."""
    from edgekit.pipeline import verify

    run_artifact = verify.run_artifact

    def run(runnable, inputs, **rest):
        fake.noise["a-int8"] = float("inf") if when(runnable.main.read_text()) else 0.0
        return run_artifact(runnable, inputs, **rest)

    monkeypatch.setattr(verify, "run_artifact", run)


def test_a_budget_that_is_missed_is_searched_for_and_accounted(tmp_path, fake, monkeypatch, workers):
    broken(fake, monkeypatch, lambda text: "exclude=()" in text)
    tried = []
    searching(monkeypatch, tried)
    outcome, _ = run(tmp_path, (A8, B8), max_drop=0.25)
    assert tried == [("a-int8", 0.25, 4)]
    assert outcome.artifact.passed
    assert outcome.artifact.manifest.details["guard"]["drop"] == 0.0
    gate = next(g for g in outcome.artifact.manifest.gates if g.name == "metric-drop")
    assert gate.limit == 0.25


SLOW = Speed(
    sibling="a-fp32", ratio=2.0, low=1.9, high=2.1, verdict="slower", detectable=0.05,
    p50_ms=2.0, sibling_p50_ms=1.0, validity="VALID",
)  # fmt: skip


@pytest.mark.parametrize("noise", [0.0, float("inf")])
def test_int16_that_would_be_too_slow_gives_way_to_float_where_float_holds(
    tmp_path, fake, monkeypatch, noise
):
    in_float = candidates.QuantizeOptions(exclude=("n", "m"))
    broken(
        fake,
        monkeypatch,
        lambda text: "exclude=()" in text or (noise and "exclude=('n', 'm')" in text),
    )
    searching(monkeypatch, [], in_float=in_float)
    monkeypatch.setattr(candidates.speed, "compare", lambda *_: SLOW)
    (outcome,) = run(tmp_path, (A8,), max_drop=0.25, speed_gate=True)
    account = outcome.artifact.manifest.details["guard"]
    assert (account["precision"] == "float32") is not bool(noise)
    assert verdicts(outcome)["speed"] is Verdict.FAIL
    if not noise:
        assert "INT16 activations" in account["instead"]
        assert account["restored"][0]["precision"] == "float32"


def test_a_quantized_artifact_is_timed_against_its_float_sibling(tmp_path, fake, monkeypatch):
    timed = []

    def compare(context, subject, against, inputs):
        timed.append((subject.target.name, against.target.name, sorted(inputs)))
        return replace(SLOW, verdict="faster", ratio=0.5)

    monkeypatch.setattr(candidates.speed, "compare", compare)
    outcomes = run(tmp_path, (A8, B32), speed_gate=True)
    assert timed == [("a-int8", "a-fp32", ["x"])]
    assert verdicts(outcomes[0])["speed"] is Verdict.PASS
    assert outcomes[0].artifact.manifest.details["speed"]["ratio"] == 0.5
    assert "speed" not in verdicts(outcomes[1])


def test_what_was_not_run_is_not_timed(tmp_path, fake, monkeypatch):
    monkeypatch.setattr(candidates.speed, "compare", lambda *_: pytest.fail("timed"))
    fake.run_error["a-int8"] = NotRunnableError("no GPU", hint="elsewhere")
    assert "speed" not in verdicts(run(tmp_path, (A8,), speed_gate=True)[0])


def test_evaluation_samples_are_what_parity_is_measured_on(tmp_path, fake):
    asked, context = fakes.request(tmp_path, (A8,), samples(6), samples(3), speed_gate=False)
    (outcome,) = build.run(asked, context)
    assert outcome.artifact.manifest.parity.samples == 3
    assert outcome.artifact.manifest.calibration.samples == 6
    asked, context = fakes.request(tmp_path / "b", (A8,), samples(6), speed_gate=False, samples=2)
    (outcome,) = build.run(asked, context)
    assert (outcome.artifact.manifest.parity.samples, outcome.artifact.manifest.calibration.samples) == (2, 2)
    asked, context = fakes.request(tmp_path / "c", (A32,), speed_gate=False)
    (outcome,) = build.run(asked, context)
    assert outcome.artifact.manifest.parity.samples == 8


def test_fixed_shapes_leave_out_what_does_not_fit_and_say_so(tmp_path, fake, monkeypatch):
    import numpy as np

    fixed = replace(A32, fixed_shapes=True)
    longer = {"x": np.ones((1, 5), np.float32)}
    rows = [*samples(19, labels=False), longer]
    asked, context = fakes.request(tmp_path, (fixed,), None, rows, speed_gate=False)
    (outcome,) = build.run(asked, context)
    manifest = outcome.artifact.manifest
    assert manifest.parity.samples == 19
    assert any(n.startswith("1 samples have other shapes") for n in manifest.notes)
    assert [s.name for s in manifest.steps] == ["export", "optimize", "fix-shapes", "lower"]


@pytest.mark.parametrize(
    ("good", "longer", "advice"),
    [
        (18, (5,), "--shape x=1x5"),
        (0, (5,), "all have one shape: pass --shape x=1x5"),
        (3, (5, 9), "--shape x=1x9"),
    ],
)
def test_more_than_five_percent_that_do_not_fit_are_refused(tmp_path, fake, good, longer, advice):
    import numpy as np

    others = [{"x": np.ones((1, size), np.float32)} for size in longer]
    rows = [*samples(good, labels=False), *others]
    fixed, free = replace(A32, fixed_shapes=True), replace(B32, fixed_shapes=False)
    asked, context = fakes.request(tmp_path, (fixed, free), None, rows, speed_gate=False)
    refused, made = build.run(asked, context)
    assert isinstance(refused.error, DataError)
    assert refused.error.exit_code == 2
    assert f"{len(longer)} of {good + len(longer)} samples" in refused.error.message
    assert advice in refused.error.hint
    assert made.error is None


def test_the_users_metric_runs_in_the_main_thread(tmp_path, fake, workers):
    (tmp_path / "metric.py").write_text(
        "import threading\n"
        "def score(outputs, label):\n"
        "    assert threading.current_thread() is threading.main_thread()\n"
        "    return float(outputs['y'].argmax() == label)\n"
    )
    outcomes = run(tmp_path, (A8, B8), metric=f"{tmp_path}/metric.py:score")
    for outcome in outcomes:
        assert outcome.error is None
        assert (outcome.artifact.manifest.parity.metric_name, outcome.artifact.manifest.parity.metric) == (
            "score",
            1.0,
        )


def activation(tensor, uncovered):
    return Coverage(
        tensor=tensor,
        samples=8,
        outside=0.003,
        uncovered=uncovered,
        low=-0.2,
        high=0.2,
        seen_low=-0.2,
        seen_high=1.1,
    )


@pytest.mark.parametrize(
    ("uncovered", "verdict", "told"),
    [(0.4, Verdict.FAIL, True), (0.05, Verdict.PASS, True), (0.001, Verdict.PASS, False)],
)
def test_evaluation_that_leaves_the_calibrated_ranges(tmp_path, fake, uncovered, verdict, told):
    fake.covered = (activation("float", 1.0), activation("a", uncovered))
    fake.activations = ("b", "a")
    row = replace(A8, tolerance=Tolerance(coverage=0.9))
    outcome = run(tmp_path, (row,), evaluation=samples(8))[0]
    (gate,) = [g for g in outcome.artifact.manifest.gates if g.name == "coverage"]
    assert gate.verdict is verdict
    assert "a: 0.30% of its values" in gate.message
    fake.covered = (activation("a", uncovered),)
    fresh = tmp_path / "again"
    fresh.mkdir()
    findings = run(fresh, (A8,), evaluation=samples(8))[0].artifact.manifest.calibration.findings
    assert any("evaluation leaves the calibrated ranges" in f for f in findings) == told


def test_without_evaluation_samples_nothing_is_said_of_coverage(tmp_path, fake):
    fake.covered = (activation("a", 1.0),)
    assert "coverage" not in verdicts(run(tmp_path, (A8,))[0])


def test_layers_that_leave_float16_are_told_to_the_backend_and_gated(tmp_path, fake):
    fake.half = HalfRange(samples=4, largest=1e5, tensor="t", left=10.0, left_tensor="u", kept=("n",))
    half = target("a-fp16")
    (outcome,) = run(tmp_path, (half,))
    assert verdicts(outcome)["range"] is Verdict.PASS
    (gate,) = [g for g in outcome.artifact.manifest.gates if g.name == "range"]
    assert "t reaches 100,000: 1 nodes stay in float32" in gate.message
