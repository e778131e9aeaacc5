"""``--limit NAME=VALUE``: what can be set, how it is written, and that it is what an artifact is held against."""

from __future__ import annotations

import pipeline_fakes as fakes
import pytest
from pipeline_fakes import Fake, samples, target

from edgekit.artifact import language
from edgekit.artifact.gates import Evidence, gates
from edgekit.artifact.limits import NAMES, parse
from edgekit.artifact.rollout import Rollout
from edgekit.core.config import Options
from edgekit.errors import ConfigError, GateFailedError, UnknownNameError, UsageError
from edgekit.pipeline import build, speed
from edgekit.types import Coverage, Measurement, Parity, Placement, Tolerance, Verdict

PARITY = Parity(
    samples=400, rows=400, max_abs=0.1, relative_error=0.02, snr_db=25.0, cosine=0.999, top1_agreement=0.95,
    integer_agreement=0.97, agreement_rows=400, integer_rows=400, explained=0.8, sample_snr_db=9.0,
    metric=0.95, reference_metric=0.96, metric_drop=0.01, drop_interval=(0.005, 0.015), metric_rows=400,
    boxes=0.95,
    box_rows=1000,
    masks=0.94,
    mask_rows=1000,
)  # fmt: skip
MEASURED = Measurement(
    device="local", threads=1, samples=(), import_ms=1.0, load_ms=1.0, first_ms=1.0, p50_ms=2.0, p90_ms=2.0,
    p99_ms=None, mad_ms=0.1, peak_memory=20_000_000,
)  # fmt: skip
EVIDENCE = Evidence(
    parity=PARITY,
    placement=Placement(precision="int8", share=0.9, operators=3),
    integer_weights=0.8,
    coverage=Coverage(
        tensor="t", samples=9, outside=0.1, uncovered=0.25, low=0, high=1, seen_low=0, seen_high=2
    ),
    rollout=Rollout(
        steps=400,
        states={"h0": "hn"},
        nonfinite=0,
        explained=0.92,
        explained_at="y",
        decisions=0.985,
        decided=400,
        data="evaluation",
        noise=False,
    ),
    size_bytes=300_000,
    measurement=MEASURED,
)
GATE = {"agreement": "top1-agreement"}


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("snr", "25dB", 26),
        ("slices", "80%", 0.81),
        ("samples", 9, "9.5 dB"),
        ("integers", 0.95, "98%"),
        ("relative-error", 0.02, "1%"),
        ("agreement", "92%", 0.96),
        ("metric-drop", "1pt", 0.009),
        ("placement", "90%", 0.95),
        ("integer-weights", 0.8, "81%"),
        ("boxes", "93%", 0.97),
        ("masks", "92%", 0.96),
        ("coverage", "70%", 0.8),
        ("rollout", "90%", 0.95),
        ("decisions", "98%", 0.99),
        ("size", "300KB", "292KiB"),
        ("latency", 2, "1900us"),
        ("memory", "20MB", "19.5MB"),
    ],
)
def test_every_gate_is_held_against_the_limit_that_is_given(name, good, bad):
    for value, verdict in ((good, Verdict.PASS), (bad, Verdict.FAIL)):
        found = gates(EVIDENCE, Tolerance(integer_agreement=0.5), parse({name: value}))
        (gate,) = [g for g in found if g.name == GATE.get(name, name)]
        assert gate.verdict is verdict, gate.message


def test_every_name_was_tried_above():
    assert {"snr", "size", "metric-drop"} <= set(NAMES)
    assert len(NAMES) == 17 + len(SPOKEN)


SPOKEN = ("perplexity", "token-agreement", "greedy")


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [("perplexity", "3%", 0.01), ("token-agreement", 0.9, "95%"), ("greedy", 0.5, "100%")],
)
def test_gates_of_language_models_are_held_against_the_limit_that_is_given(name, good, bad):
    evidence = language.Evidence(
        tokens=100, perplexity=10.2, reference_perplexity=10.0, rise=0.02, rise_error=0.001, largest=0.5,
        agreement=0.92, same=64, asked=128, texts=(7, 7), chats=(0, 0), stops="", window="",
    )  # fmt: skip
    for value, verdict in ((good, Verdict.PASS), (bad, Verdict.FAIL)):
        found = language.gates(evidence, Tolerance(), parse({name: value}), 1, None)
        (gate,) = [g for g in found if g.name == name]
        assert gate.verdict is verdict, gate.message


def test_slices_and_samples_follow_an_snr_unless_they_are_set():
    found = {g.name: g.limit for g in gates(EVIDENCE, Tolerance(snr_db=12.0), parse({"snr": 16}))}
    assert (found["snr"], found["samples"]) == (16.0, 10.0)
    assert found["slices"] == pytest.approx(0.9)
    own = {
        g.name: g.limit for g in gates(EVIDENCE, Tolerance(snr_db=12.0), parse({"snr": 16, "slices": 0.5}))
    }
    assert own["slices"] == 0.5


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("snr", "loud"), ("snr", "nan"), ("snr", 1000), ("agreement", 95), ("agreement", "110%"), ("agreement", 1),
        ("metric-drop", -0.1), ("metric-drop", "inf"), ("size", "big"), ("size", 0), ("latency", "5 minutes"),
        ("memory", -3), ("slices", True),
    ],
)  # fmt: skip
def test_values_that_are_no_limit(name, value):
    with pytest.raises(ConfigError, match=name) as error:
        parse({name: value})
    assert error.value.exit_code == 2


def test_a_name_that_is_no_limit_offers_the_nearest():
    with pytest.raises(UnknownNameError) as error:
        parse({"agrement": "99%"})
    assert "agreement" in error.value.hint


# --- in a build ------------------------------------------------------------------------------------------

A8 = target("a-int8")


@pytest.fixture
def fake(monkeypatch):
    fake = Fake()
    fakes.install(monkeypatch, fake, (A8,))
    return fake


def run(tmp_path, **options):
    asked, context = fakes.request(tmp_path, (A8,), samples(), samples(200), speed_gate=False, **options)
    (outcome,) = build.run(asked, context)
    return outcome, build.failure(outcome, asked.options)


def test_a_build_takes_limits(tmp_path, fake, monkeypatch):
    timed = []
    monkeypatch.setattr(
        speed, "measure", lambda context, subject, inputs, where: timed.append(where) or MEASURED
    )
    outcome, failure = run(
        tmp_path, limit={"placement": 0.99, "metric-drop": 0.02, "size": "1MB", "latency": "3ms"}
    )
    assert failure is None
    limits = {g.name: g.limit for g in outcome.artifact.manifest.gates}
    assert limits["placement"] == 0.99
    assert limits["metric-drop"] == 0.02
    assert limits["size"] == 1_000_000
    assert limits["latency"] == 3.0
    assert [w.name for w in timed] == ["local"]
    assert outcome.artifact.manifest.measurements == (MEASURED,)
    _, failure = run(tmp_path, limit={"latency": "1ms"})
    assert isinstance(failure, GateFailedError)
    assert failure.gates == ("latency",)
    timed.clear()
    _, failure = run(tmp_path, limit={"size": 10})
    assert failure.gates == ("size",)
    assert timed == []


@pytest.mark.parametrize(
    "options", [{"limit": {"speed": 1}}, {"limit": {"metric-drop": 0.1}, "max_drop": 0.1}]
)
def test_limits_that_cannot_be_meant_end_the_build_before_any_work(tmp_path, fake, options):
    with pytest.raises(UsageError):
        run(tmp_path, **options)
    assert fake.done == []


def test_limits_of_files_and_flags_are_merged(tmp_path):
    (tmp_path / "edgekit.toml").write_text("[limit]\nsnr = 20\nagreement = '95%'\n")
    merged = Options.load({"limit": {"snr": 30}}, project=tmp_path).limit
    assert merged == {"snr": 30, "agreement": "95%"}
