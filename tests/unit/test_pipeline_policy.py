"""One policy of the gates, through a whole build: what is unproven, what is refused, whose error it is."""

from __future__ import annotations

import pipeline_fakes as fakes
import pytest
from pipeline_fakes import Fake, samples, target

from edgekit.artifact import summary
from edgekit.artifact.manifest import Status
from edgekit.errors import DataError, GateFailedError, MetricError, UsageError
from edgekit.pipeline import build
from edgekit.types import Tolerance, Verdict

A8 = target("a-int8", tolerance=Tolerance(snr_db=30.0, top1_agreement=0.9, metric_drop=0.01))
A32 = target("a-fp32", tolerance=Tolerance(snr_db=80.0, top1_agreement=0.9))


@pytest.fixture
def fake(monkeypatch):
    fake = Fake()
    fakes.install(monkeypatch, fake, (A8, A32))
    return fake


def run(tmp_path, data, row=A8, **options):
    options.setdefault("speed_gate", False)
    asked, context = fakes.request(tmp_path, (row,), samples() if row is A8 else None, data, **options)
    (outcome,) = build.run(asked, context)
    return outcome, build.failure(outcome, asked.options), context.progress.notes


def gate(outcome, name="metric-drop"):
    return next(g for g in outcome.artifact.manifest.gates if g.name == name)


def test_too_few_rows_are_said_and_refused_only_when_asked(tmp_path, fake):
    outcome, failure, notes = run(tmp_path, samples(40))
    assert failure is None
    assert outcome.artifact.passed
    assert outcome.artifact.directory == tmp_path / "out" / "a-int8"
    assert outcome.artifact.manifest.status is Status.UNPROVEN
    assert gate(outcome).verdict is Verdict.UNPROVEN
    assert summary.verdict(outcome.artifact.manifest) == "unproven: metric-drop (149 rows would do)"
    assert any("about 149 would do" in note for note in notes)
    strict, failure, _ = run(tmp_path, samples(40), strict=True)
    assert isinstance(failure, GateFailedError)
    assert failure.exit_code == 5
    assert failure.gates == ("metric-drop",)
    assert strict.artifact.directory == tmp_path / "out" / "a-int8.failed"
    assert not (tmp_path / "out" / "a-int8").exists()


def test_as_many_rows_as_were_named_do(tmp_path, fake):
    outcome, failure, notes = run(tmp_path, samples(149), strict=True)
    assert failure is None
    assert outcome.artifact.manifest.status is Status.PASSED
    assert summary.verdict(outcome.artifact.manifest) == "passed"
    assert notes == []


def test_on_random_inputs_agreement_is_shown(tmp_path, fake):
    outcome, failure, _ = run(tmp_path, None, row=A32, strict=True)
    assert failure is None
    assert outcome.artifact.manifest.status is Status.PASSED
    shown = gate(outcome, "top1-agreement")
    assert shown.verdict is Verdict.SHOWN
    assert "on 8 random inputs" in shown.message
    assert summary.verdict(outcome.artifact.manifest) == "passed on 8 random inputs"


def test_what_is_labelled_is_measured_and_counted(tmp_path, fake):
    data = samples(200)
    data[5] = data[5][0]
    outcome, failure, _ = run(tmp_path, data)
    assert failure is None
    assert outcome.artifact.manifest.parity.labelled == 199
    assert "199 of 200 samples have labels" in gate(outcome).message


@pytest.mark.parametrize(
    "options", [{"metric": "m.py:score"}, {"max_drop": 0.01}], ids=["metric", "max-drop"]
)
@pytest.mark.parametrize("data", [samples(8, labels=False), None], ids=["unlabelled", "none"])
def test_a_metric_that_nothing_can_be_measured_on_is_refused(tmp_path, fake, options, data, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.py").touch()
    asked, context = fakes.request(tmp_path, (A8,), samples(labels=False), data, speed_gate=False, **options)
    with pytest.raises(DataError, match="cannot be measured") as error:
        build.run(asked, context)
    assert error.value.exit_code == 2
    assert "--eval" in error.value.hint
    assert "calibrate" not in fake.done


def written(tmp_path, text):
    (tmp_path / "metric.py").write_text(text)
    return f"{tmp_path}/metric.py"


def test_a_metric_that_raises_is_the_users_error(tmp_path, fake):
    file = written(
        tmp_path, "def score(outputs, label):\n    return helper(label)\ndef helper(x):\n    return 1 / 0\n"
    )
    outcome, _, _ = run(tmp_path, samples(8), metric=f"{file}:score")
    assert isinstance(outcome.error, MetricError)
    assert outcome.error.exit_code == 2
    assert "ZeroDivisionError" in outcome.error.message
    assert isinstance(outcome.error.__cause__, ZeroDivisionError)
    assert "in helper" in outcome.error.user_traceback
    assert "edgekit/artifact" not in outcome.error.user_traceback


ERROR = "def {name}(outputs, label):\n    return 1.0 - float(outputs['y'].argmax() == label)\n"


@pytest.mark.parametrize("name", ["mse", "val_MAE", "rmseLoss", "top1_error"])
def test_an_error_must_say_which_way_is_better(tmp_path, fake, name):
    file = written(tmp_path, ERROR.format(name=name))
    outcome, _, _ = run(tmp_path, samples(8), metric=f"{file}:{name}")
    assert isinstance(outcome.error, UsageError)
    assert "higher_is_better = False" in outcome.error.hint
    assert f"{name}:lower" in outcome.error.hint


@pytest.mark.parametrize("declared", ["", "score.higher_is_better = False"])
def test_which_way_is_better_is_declared_beside_the_function_or_in_the_option(tmp_path, fake, declared):
    file = written(tmp_path, ERROR.format(name="score") + declared)
    text = f"{file}:score" if declared else f"{file}:score:lower"
    fake.noise["a-int8"] = float("inf")  # not finite: judged as what it is
    broken, _, _ = run(tmp_path / "broken", samples(200), metric=text)
    assert gate(broken).verdict is Verdict.FAIL
    fake.noise.clear()
    outcome, _, _ = run(tmp_path, samples(200), metric=text)
    parity = outcome.artifact.manifest.parity
    assert (parity.metric, parity.higher_is_better) == (0.0, False)


@pytest.mark.parametrize("name", ["accuracy", "neg_mse", "r2", "lossless", "recall"])
def test_other_names_are_taken_as_they_are(tmp_path, fake, name):
    file = written(
        tmp_path, f"def {name}(outputs, label):\n    return float(outputs['y'].argmax() == label)\n"
    )
    outcome, failure, _ = run(tmp_path, samples(200), metric=f"{file}:{name}")
    assert failure is None
    assert outcome.artifact.manifest.parity.higher_is_better
