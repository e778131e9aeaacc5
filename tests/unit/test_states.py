"""Inputs that take an output of the step before: which they are, how an artifact is run so, and what is made of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgekit.artifact.gates import Evidence, gates
from edgekit.artifact.rollout import Rollout, measure
from edgekit.devices.runnable import Runnable
from edgekit.errors import UnknownNameError, UsageError
from edgekit.load.data import SampleSet
from edgekit.load.states import States, states_of
from edgekit.types import Sample, TensorSpec, Tolerance, Verdict


def _specs(**shapes: Any) -> list[TensorSpec]:
    return [TensorSpec(name=n, dtype="float32", shape=tuple(s)) for n, s in shapes.items()]


@pytest.mark.parametrize(
    ("inputs", "outputs", "pairs"),
    [
        ({"x": (1, 5), "state": (2, 1, 8)}, {"y": (1, 1), "stateN": (2, 1, 8)}, {"state": "stateN"}),
        (
            {"x": (1, 5), "h0": (1, 8), "c0": (1, 8)},
            {"y": (1, 1), "cn": (1, 8), "hn": (1, 8)},
            {"h0": "hn", "c0": "cn"},
        ),
        (
            {"x": (1, 5), "h": (1, 8), "c": (1, 8)},
            {"output": (1, 1), "output_1": (1, 8), "output_2": (1, 8)},
            {"h": "output_1", "c": "output_2"},
        ),
        (
            {"x": (1, 5), "state_1": (1, 8), "state_0": (1, 8)},
            {"y": (1, 1), "new_state_0": (1, 8), "new_state_1": (1, 8)},
            {"state_1": "new_state_1", "state_0": "new_state_0"},
        ),
        ({"x": (1, 5), "prev_h": ("n", 8)}, {"logits": (1, 3), "h": (1, 8)}, {"prev_h": "h"}),
        # The layer of a transformer, an autoencoder, a condition, a cell that gives nothing but its state.
        ({"hidden_states": (1, 9, 8), "mask": (1, 9)}, {"output": (1, 9, 8), "weights": (1, 9)}, {}),
        ({"x": (1, 8)}, {"x_out": (1, 8)}, {}),
        ({"x": (1, 8), "c": (1, 8)}, {"out": (1, 8)}, {}),
        ({"x": (1, 8), "state": (1, 8)}, {"y": (1, 1), "z": (1, 4)}, {}),
    ],
)
def test_what_looks_like_a_state(inputs, outputs, pairs):
    assert states_of(_specs(**inputs), _specs(**outputs), {}).pairs == pairs


def test_what_the_user_says_goes_before_what_names_say():
    inputs, outputs = _specs(x=(1, 8), state=(1, 8)), _specs(y=(1, 8), z=(1, 8))
    assert states_of(inputs, outputs, {"state": "z"}) == States(pairs={"state": "z"}, declared=True)
    assert not states_of(_specs(x=(1, 5), state=(1, 8)), _specs(y=(1, 1), z=(1, 8)), {"state": "none"})
    for declared, error in (
        ({"stat": "z"}, UnknownNameError),
        ({"state": "zz"}, UnknownNameError),
    ):
        with pytest.raises(error, match="--state"):
            states_of(inputs, outputs, declared)
    with pytest.raises(UsageError, match="cannot be the next"):
        states_of(_specs(x=(1, 8), s=(1, 9)), _specs(y=(1, 8)), {"s": "y"})


def test_channels_go_where_the_input_has_them():
    runnable = Runnable(backend="fake", main=None, channels_moved=("a", "b_out"))  # type: ignore[arg-type]
    fed = runnable.feeding({"a": "a_out", "b": "b_out", "c": "c_out"})
    assert [f.channels for f in fed] == ["last", "first", ""]


def _samples(count: int, origin: str = "evaluation") -> SampleSet:
    rows = [Sample(inputs={"x": np.full((1, 4), i, np.float32)}) for i in range(count)]
    return SampleSet(origin=origin, text="", fingerprint="", count=count, labelled=False, open=lambda: rows)


def _rows(scores: Any) -> list[dict[str, Any]]:
    return [
        {"y": np.asarray(s, np.float32).reshape(1, -1), "s": np.zeros((1, 3), np.float32)} for s in scores
    ]


STATES = States(pairs={"state": "s"})


def _verdicts(rollout: Rollout, **limits: float) -> dict[str, Verdict]:
    found = gates(Evidence(rollout=rollout), Tolerance(snr_db=12.0, **limits))
    return {g.name: g.verdict for g in found if g.name in ("rollout", "decisions")}


def test_decisions_that_flip_refuse_what_explains_the_variance():
    scores = np.linspace(0, 1, 400)
    near = np.where(np.abs(scores - 0.5) < 0.03, 1 - scores, scores)  # 24 of 400, each hardly off
    rollout = measure(STATES, _rows(scores), _rows(near), _samples(400))
    assert rollout.decided == 400
    assert rollout.decisions == pytest.approx(1 - 24 / 400)
    assert rollout.explained is not None
    assert rollout.explained > 0.99
    assert _verdicts(rollout) == {"rollout": Verdict.PASS, "decisions": Verdict.FAIL}
    assert _verdicts(rollout, decisions=0.9)["decisions"] is Verdict.PASS


def test_a_drift_is_refused_and_states_themselves_are_not_judged():
    scores = np.sin(np.arange(300) / 9) + 2
    drifting = _rows(scores + np.arange(300) / 100)
    rollout = measure(STATES, _rows(scores), drifting, _samples(300))
    assert rollout.decisions is None  # numbers above 1 decide nothing
    assert _verdicts(rollout) == {"rollout": Verdict.FAIL}
    other = [{**row, "s": row["s"] + 5} for row in _rows(scores)]
    assert _verdicts(measure(STATES, _rows(scores), other, _samples(300))) == {"rollout": Verdict.PASS}


@pytest.mark.parametrize(
    ("row", "decides"),
    [([[0.2, 0.8]], True), ([[-1.0, 2.0, 0.5]], True), ([[0.5, 3.0]], False), ([[-0.5] * 101], False)],
)
def test_which_outputs_decide(row, decides):
    rollout = measure(STATES, _rows([row] * 3), _rows([row] * 3), _samples(3))
    assert (rollout.decisions is not None) == decides


def _surely(seed: int, *shape: int) -> np.ndarray:
    """Logits as a trained detector gives them, step by step."""
    return 4 * np.random.default_rng(seed).standard_normal((400, *shape))


def _shaped(values: np.ndarray) -> list[dict[str, Any]]:
    return [{"y": v.astype(np.float32), "s": np.zeros((1, 3), np.float32)} for v in values]


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-2 * x))


def _log_softmax(x: np.ndarray) -> np.ndarray:
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


@pytest.mark.parametrize(
    ("values", "decided"),
    [
        (_surely(0, 1, 1), 400),
        (_surely(0, 1, 1, 1), 400),
        (_sigmoid(_surely(0, 1, 4)), 1600),
        (_sigmoid(_surely(0, 1, 4, 1)), 1600),
        (_surely(0, 1, 1, 11), 400),
        (_surely(0, 1, 5, 11), 2000),
        (_log_softmax(_surely(0, 1, 3, 128)), 1200),
        # Gains of a spectrum, a sample of sound, features of a frame, a spectrogram, masks, a number above 1.
        (np.random.default_rng(0).random((400, 1, 22)), None),
        (_surely(0, 1, 1) / 8, None),
        (_surely(0, 1, 5, 11) / 8, None),
        (_surely(0, 1, 128, 200), None),
        (_sigmoid(_surely(0, 1, 1, 16, 16)), None),
        (np.abs(_surely(0, 1, 1)) + 1, None),
    ],
)
def test_what_decides_in_other_shapes_and_scales(values, decided):
    off = np.where(np.arange(400).reshape(-1, *[1] * (values.ndim - 1)) % 40, values, np.flip(values))
    rollout = measure(STATES, _shaped(values), _shaped(off), _samples(400))
    assert rollout.decided == (decided or 0)
    assert (rollout.decisions is None) == (decided is None)
    if decided:
        assert 0.97 < rollout.decisions < 1


def test_a_logit_that_changes_its_sign_is_refused():
    logits = np.where(np.arange(400) % 20, 5.0, -5.0) * np.where(np.arange(400) < 200, 1, -1)
    flipped = np.where(np.arange(400) % 25, logits, -0.01 * logits)
    rollout = measure(STATES, _rows(logits), _rows(flipped), _samples(400))
    assert rollout.decisions == pytest.approx(1 - 16 / 400)
    assert _verdicts(rollout)["decisions"] is Verdict.FAIL


def test_of_random_inputs_decisions_are_only_shown():
    scores = np.linspace(0, 1, 300)
    rollout = measure(STATES, _rows(scores), _rows(1 - scores), _samples(300, "random"))
    assert _verdicts(rollout)["decisions"] is Verdict.SHOWN


def test_what_is_not_finite_after_some_steps_is_refused():
    good = np.sin(np.arange(50) / 3)
    bad = np.where(np.arange(50) > 40, np.nan, good)
    rollout = measure(STATES, _rows(good), _rows(bad), _samples(50))
    assert _verdicts(rollout)["rollout"] is Verdict.FAIL
