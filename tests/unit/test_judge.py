"""The task's metric: which samples count, which labels are refused, and what a metric of the user's may do."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgekit.artifact import proof
from edgekit.artifact.parity import compare
from edgekit.artifact.proof import source_at_chance
from edgekit.artifact.task import Metric, Task
from edgekit.errors import DataError, MetricError
from edgekit.types import Verdict

GENERATOR = np.random.default_rng(0)


def rows(count, classes=5):
    labels = [int(i) for i in GENERATOR.integers(0, classes, count)]
    return [{"y": 4 * np.eye(classes, dtype=np.float32)[[label]]} for label in labels], labels


def judged(outputs, labels, got=None, **task):
    return compare(outputs, outputs if got is None else got, task=Task(labels=labels, **task))


def test_samples_without_a_label_are_left_out_and_counted():
    outputs, labels = rows(40)
    parity = judged(outputs, [None if i == 5 else label for i, label in enumerate(labels)])
    assert (parity.samples, parity.labelled, parity.metric_rows) == (40, 39, 39)
    assert parity.reference_metric == 1.0
    nobody = judged(outputs, [None] * 40)
    assert nobody.reference_metric is None


def test_the_users_metric_sees_labelled_samples_only():
    outputs, labels = rows(30)
    seen = []

    def score(out, label):
        seen.append(label)
        return float(out["y"].argmax() == label)

    parity = judged(outputs, [*labels[:-1], None], metric=Metric(name="score", score=score))
    assert None not in seen
    assert parity.labelled == 29


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (5, "5 classes, 0 to 4"),
        (-1, "the label -1"),
        (1013.2, "no class"),
        (2.0, "no class"),
        ("cat", "does not say which class"),
        ({"boxes": []}, "no class"),
        (np.array([0.5, 0.5]), "no class"),
    ],
    ids=str,
)
def test_labels_that_are_no_classes(label, message):
    outputs, labels = rows(3)
    with pytest.raises(DataError, match=message) as error:
        judged(outputs, [*labels[:2], label])
    assert error.value.exit_code == 2
    assert "sample 2" in error.value.message


def test_a_label_of_another_shape_is_said_with_the_outputs():
    masks = [{"mask": np.zeros((1, 2, 8, 8), np.float32)}]
    with pytest.raises(
        DataError, match=r"labels of shape \[1, 5, 5\], and 0 outputs .*: mask \[1, 2, 8, 8\]"
    ):
        judged(masks, [np.zeros((1, 5, 5), np.int64)])


def test_labels_by_the_names_that_the_source_declares():
    outputs, labels = rows(20, classes=3)
    names = ("cat", "dog", "emu")
    parity = judged(outputs, [names[label] for label in labels], classes=names)
    assert parity.reference_metric == 1.0
    with pytest.raises(DataError, match="'dgo'") as error:
        judged(outputs, ["dgo"] * 20, classes=names)
    assert "dog" in error.value.hint


def test_rows_with_the_label_minus_100_have_none():
    """As PyTorch's losses and Hugging Face's token labels have it."""
    batch = {"y": 4 * np.eye(4, dtype=np.float32)}
    parity = judged([batch], [np.array([0, 1, -100, 0])])
    assert parity.metric_rows == 3
    assert parity.reference_metric == pytest.approx(2 / 3)


def test_tokens_of_one_sequence_are_not_independent():
    """Twenty sequences of fifty tokens: what is lost, is lost in one of them."""
    ids = [np.full((1, 50), i % 7) for i in range(20)]
    lost = [ids[0] + 1, *ids[1:]]
    parity = judged([{"y": i} for i in ids], list(ids), [{"y": i} for i in lost])
    assert parity.metric_drop == pytest.approx(0.05)
    assert parity.metric_rows == 20
    assert parity.drop_interval[1] > 0.1


def test_scores_of_tokens_have_a_label_for_each():
    """Logits of a token classifier, padding left out; the last sequence loses every second token."""
    labels = [np.array([[0, 2, 1, -100]]), np.array([[1, 1, -100, -100]]), np.array([[2, 0, 2, 0]])] * 10
    logits = [np.eye(3, dtype=np.float32)[np.maximum(label, 0)] * 4 for label in labels]
    worse = [y.copy() for y in logits]
    worse[-1][0, ::2] = np.roll(logits[-1][0, ::2], 1, axis=-1)
    parity = judged([{"y": y} for y in logits], labels, [{"y": y} for y in worse])
    assert parity.reference_metric == 1.0
    assert parity.metric_rows == 30
    assert parity.metric_drop == pytest.approx(2 / 90)
    with pytest.raises(DataError, match="0 outputs"):
        judged([{"y": y} for y in logits], [np.array([0, 1])] * 30)


def test_of_an_error_less_is_better():
    def mse(out, label):
        return float((out["y"].sum() - label) ** 2)

    outputs = [{"y": np.full((1, 1), float(i), np.float32)} for i in range(30)]
    worse = [{"y": out["y"] + 0.5} for out in outputs]
    metric = Metric(name="mse", score=mse, higher_is_better=False)
    parity = judged(outputs, list(range(30)), worse, metric=metric)
    assert parity.metric_drop == pytest.approx(0.25)
    assert parity.drop_interval[0] > 0.2
    assert judged(worse, list(range(30)), outputs, metric=metric).metric_drop == pytest.approx(-0.25)


@pytest.mark.parametrize("value", [math.nan, math.inf, None, "0.5 or so", [1, 2]])
@pytest.mark.parametrize("whole", [False, True])
def test_a_metric_that_gives_no_number_is_the_users_error(value, whole):
    outputs, labels = rows(6)
    metric = Metric(name="odd", score=lambda out, label: value, whole=whole)
    with pytest.raises(MetricError, match="the metric odd gives") as error:
        judged(outputs, labels, metric=metric)
    assert error.value.exit_code == 2


def test_outputs_that_are_not_finite_are_the_artifacts_fault():
    outputs, labels = rows(6)
    broken = [{"y": out["y"] * np.nan} for out in outputs]
    metric = Metric(name="mean", score=lambda out, label: float(out["y"].mean()))
    parity = judged(outputs, labels, broken, metric=metric)
    assert parity.nonfinite
    assert parity.reference_metric is not None
    assert parity.metric is None


def test_a_metric_of_the_set_has_an_interval():
    outputs = [{"y": GENERATOR.normal(size=(1, 1)).astype(np.float32)} for _ in range(200)]
    labels = [float(out["y"][0, 0]) for out in outputs]
    noisy = [{"y": out["y"] + 0.2 * GENERATOR.normal(size=(1, 1)).astype(np.float32)} for out in outputs]

    def r2(outs, labels):
        given, wanted = np.array([o["y"][0, 0] for o in outs]), np.array(labels)
        return 1 - ((given - wanted) ** 2).sum() / ((wanted - wanted.mean()) ** 2).sum()

    parity = judged(outputs, labels, noisy, metric=Metric(name="r2", score=r2, whole=True))
    low, high = parity.drop_interval
    assert 0.02 < low < parity.metric_drop < high < 0.07
    fragile = Metric(
        name="needs-all", score=lambda outs, _: 1.0 if len(outs) == 200 else math.nan, whole=True
    )
    assert judged(outputs, labels, noisy, metric=fragile).drop_interval is None


def at_chance(right, wrong, classes=5):
    """What is said of a source with so many right and wrong rows, their labels spread over the classes."""
    labels = [i % classes for i in range(right + wrong)]
    named = [label if i < right else (label + 1) % classes for i, label in enumerate(labels)]
    outputs = [{"y": 4 * np.eye(classes, dtype=np.float32)[[n]]} for n in named]
    return source_at_chance(judged(outputs, labels))


def test_a_source_that_only_guesses_is_said():
    assert "20 %" in at_chance(10, 40)
    assert at_chance(12, 38)  # a little more than one class always, and not surely so
    assert at_chance(0, 50)  # the labels are in another order


def test_a_source_that_knows_something_is_not():
    assert not at_chance(50, 0)
    assert not at_chance(25, 25)
    assert not at_chance(18, 32)


def test_too_few_rows_to_tell_say_nothing():
    assert not at_chance(1, 2)
    assert not at_chance(4, 0, classes=2)


def test_one_class_alone_and_metrics_of_ones_own_have_no_chance():
    outputs, _ = rows(30, classes=3)
    assert not source_at_chance(judged(outputs, [0] * 30))
    ruin = judged(outputs, [0] * 30, metric=Metric(name="score", score=lambda out, label: 0.0))
    assert ruin.guess is None
    assert not source_at_chance(ruin)


def test_the_verdict_line_of_the_metric_says_it():
    outputs, labels = rows(60)
    parity = judged(outputs, [(label + 2) % 5 for label in labels])
    gate = proof.drop("metric-drop", parity, 0.5)
    assert gate.verdict is Verdict.UNPROVEN
    assert "one class always" in gate.message
    right = proof.drop("metric-drop", judged(outputs, labels), 0.5)
    assert right.verdict is Verdict.PASS


def test_a_metric_of_the_wrong_direction_proves_nothing():
    """An error that is taken for a score: the artifact, which is worse, is the better one."""
    outputs, labels = rows(200)
    noisy = [{"y": o["y"] + np.float32(3)} for o in outputs]
    error = Metric(name="error", score=lambda out, label: float(np.abs(out["y"][0, label] - 4)))
    gate = proof.drop("metric-drop", judged(outputs, labels, noisy, metric=error), 0.01)
    assert (gate.verdict, "look whether higher" in gate.message) == (Verdict.UNPROVEN, True)
    lower = Metric(name="error", score=error.score, higher_is_better=False)
    failed = proof.drop("metric-drop", judged(outputs, labels, noisy, metric=lower), 0.01)
    assert failed.verdict is Verdict.FAIL


def of_an_error(factor, limit_given=False, more=0.0):
    """The gate of a mean absolute error in a unit a thousand times as large as the outputs'."""
    rng = np.random.default_rng(4)
    wanted = rng.normal(1000, 20, 320)
    outputs = [
        {"y": np.asarray([[w + e]], np.float32)} for w, e in zip(wanted, rng.normal(0, 0.2, 320), strict=True)
    ]
    worse = [
        {"y": np.asarray([[w + factor * (float(o["y"][0, 0]) - w) + more]], np.float32)}
        for w, o in zip(wanted, outputs, strict=True)
    ]
    metric = Metric(
        name="mae", score=lambda out, label: abs(float(out["y"][0, 0]) - label) / 1000, higher_is_better=False
    )
    parity = judged(outputs, list(wanted), worse, metric=metric)
    return proof.drop("metric-drop", parity, 0.01, given=limit_given)


def test_the_default_limit_of_an_error_is_a_share_of_it():
    assert of_an_error(11.5).verdict is Verdict.FAIL
    moderate = of_an_error(1.2)
    assert (moderate.verdict, "--max-drop" in moderate.message) == (Verdict.UNPROVEN, True)
    assert "20.0% of the source's" in moderate.message
    same = of_an_error(1.0)
    assert (same.verdict, same.enough is not None) == (Verdict.UNPROVEN, True)  # on more rows it would pass
    assert "--max-drop" not in same.message
    assert of_an_error(1.2, limit_given=True).verdict is Verdict.PASS  # 0.01 of thousands was asked for


def test_of_a_source_that_scores_nothing_nothing_can_be_lost():
    outputs, labels = rows(60)
    nothing = Metric(name="hits", score=lambda out, label: 0.0)
    gate = proof.drop("metric-drop", judged(outputs, labels, metric=nothing), 0.01)
    assert gate.verdict is Verdict.UNPROVEN
    assert "the source itself scores 0" in gate.message
