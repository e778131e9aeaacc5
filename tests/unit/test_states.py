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
from edgekit.load.states import States, at_rest, states_of
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
        (
            {"frame": (1, 6), "memory": (1, 32)},
            {"output": (1, 1), "output_1": (1, 32)},
            {"memory": "output_1"},
        ),
        ({"x": (1, 5), "prev": (1, 8)}, {"y": (1, 1), "output_1": (1, 8)}, {"prev": "output_1"}),
        ({"x": (1, 5), "ringBuffer": (1, 8)}, {"y": (1, 1), "z": (1, 8)}, {"ringBuffer": "z"}),
        # The frame before is given from outside: a word of time beside another says nothing of a state.
        ({"frame": (1, 8), "prev_frame": (1, 8)}, {"flow": (1, 2), "warped": (1, 8)}, {}),
        # A decoder's memory, which makes the only output.
        ({"target": (1, 9, 8), "memory": (1, 9, 8)}, {"output": (1, 9, 8)}, {}),
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


def _zeros(*names: str, count: int = 3, **values: float) -> list[dict[str, Any]]:
    return [
        {"x": np.ones((1, 5), np.float32)}
        | {n: np.full((1, 8), values.get(n, 0) * (i == count - 1), np.float32) for n in names}
        for i in range(count)
    ]


IN, OUT = {"x": (1, 5), "z": (1, 8)}, {"y": (1, 1), "w": (1, 8)}
NO_STATES = States()


@pytest.mark.parametrize(
    ("inputs", "outputs", "rows", "expected"),
    [
        (IN, OUT, _zeros("z"), {"z": ("w",)}),
        (IN, {**OUT, "v": ("n", 8)}, _zeros("z"), {"z": ("w", "v")}),
        ({**IN, "u": (1, 8)}, {**OUT, "v": (1, 8)}, _zeros("z", "u", u=1e-3), {"z": ("w", "v")}),
        # The last sample is not zero; there is no sample; nothing has its shape, nothing else comes out.
        (IN, OUT, _zeros("z", z=1e-3), {}),
        (IN, OUT, [], {}),
        (IN, {"y": (1, 1), "w": (1, 9)}, _zeros("z"), {}),
        (IN, {"w": (1, 8)}, _zeros("z"), {}),
    ],
)
def test_what_may_be_a_state_by_its_zeros(inputs, outputs, rows, expected):
    assert at_rest(_specs(**inputs), _specs(**outputs), NO_STATES, {}, rows) == expected


def test_zeros_say_nothing_of_what_the_user_named_or_of_integers():
    inputs, outputs = _specs(**IN), _specs(**OUT)
    assert at_rest(inputs, outputs, NO_STATES, {"z": "none"}, _zeros("z")) == {}
    declared = States(pairs={"x": "y"}, declared=True)
    assert at_rest(inputs, outputs, declared, {"x": "y"}, _zeros("z")) == {}
    types = [TensorSpec(name=s.name, dtype="int64", shape=s.shape) for s in (inputs[1], outputs[1])]
    assert at_rest([inputs[0], types[0]], [outputs[0], types[1]], NO_STATES, {}, _zeros("z")) == {}
    # Beside a state that its name tells, another may rest; the output that the first takes is not free.
    known = States(pairs={"h": "hn"})
    given = _specs(**IN, h=(1, 8)), _specs(**OUT, hn=(1, 8))
    assert at_rest(*given, known, {}, _zeros("z", "h")) == {"z": ("w",)}


def test_a_state_that_nobody_named_is_unproven_and_hides_no_failure():
    scores = np.sin(np.arange(300) / 9) + 2
    for drift, verdict in ((0, Verdict.UNPROVEN), (0.01, Verdict.FAIL)):
        rollout = measure(STATES, _rows(scores), _rows(scores + drift * np.arange(300)), _samples(300))
        found = gates(Evidence(rollout=rollout, resting={"z": ("w",)}), Tolerance(snr_db=12.0))
        assert [g.verdict for g in found if g.name == "rollout"] == [verdict]
    (gate,) = [
        g
        for g in gates(Evidence(resting={"z": ("w", "v")}), Tolerance(snr_db=12.0))
        if g.name in ("rollout", "decisions")
    ]
    assert gate.verdict is Verdict.UNPROVEN
    assert all(flag in gate.message for flag in ("--state z=w ", "--state z=v ", "--state z=none "))


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
