"""Parity: figures against their definitions, and everything that must not pass for equal."""

import math
from dataclasses import fields

import numpy as np
import pytest

from edgekit.artifact import wire
from edgekit.artifact.energy import SNR_CAP
from edgekit.artifact.parity import compare
from edgekit.artifact.task import Metric, Task
from edgekit.errors import BackendError, DataError
from edgekit.types import Parity, Tolerance

RNG = np.random.default_rng(0)


def scores(n=8, c=10):
    return RNG.normal(size=(n, c)).astype(np.float32)


def test_equal_outputs():
    y = scores()
    parity = compare([{"y": y}], [{"y": y.copy()}])
    assert (parity.samples, parity.rows, parity.nonfinite) == (1, 8, 0)
    assert parity.max_abs == 0
    assert parity.relative_error == 0
    assert parity.snr_db == SNR_CAP
    assert parity.cosine == pytest.approx(1)
    assert parity.top1_agreement == 1


def test_figures_by_their_definitions_over_several_samples():
    refs = [scores(n) for n in (1, 3, 2)]
    outs = [r + RNG.normal(size=r.shape).astype(np.float32) * 0.01 for r in refs]
    parity = compare(({"y": r} for r in refs), ({"y": o} for o in outs))
    r, o = (np.concatenate(x).astype(np.float64) for x in (refs, outs))
    assert parity.rows == 6
    assert parity.max_abs == pytest.approx(np.abs(o - r).max())
    assert parity.relative_error == pytest.approx(np.abs(o - r).max() / np.abs(r).max())
    assert parity.snr_db == pytest.approx(10 * math.log10((r**2).sum() / ((o - r) ** 2).sum()))
    cosine = (r * o).sum(1) / np.linalg.norm(r, axis=1) / np.linalg.norm(o, axis=1)
    assert parity.cosine == pytest.approx(cosine.mean())
    assert parity.per_output["y"]["cosine_min"] == pytest.approx(cosine.min())
    assert parity.top1_agreement == (r.argmax(1) == o.argmax(1)).mean()


def test_outputs_match_by_name_and_the_worst_counts():
    a, b = scores(), scores()
    parity = compare([{"a": a, "b": b}], [{"b": b + 1, "a": a, "more": b}])
    assert parity.per_output["a"]["max_abs"] == 0
    assert parity.max_abs == pytest.approx(1)
    assert parity.snr_db == parity.per_output["b"]["snr_db"] < 10


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_a_failure(bad):
    y = scores()
    out = y.copy()
    out[3, 2] = bad
    parity = compare([{"y": y}], [{"y": out}])
    assert parity.nonfinite == 1
    assert parity.snr_db == -SNR_CAP
    assert parity.cosine == -1
    assert parity.top1_agreement <= 7 / 8
    assert math.isfinite(parity.max_abs)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_energies_that_overflow_are_no_perfect_figure():
    reference, outputs = np.array([[1e200, 2e200]]), np.array([[3e200, -2e200]])
    assert compare([{"y": reference}], [{"y": outputs}]).snr_db == -SNR_CAP
    assert compare([{"y": reference}], [{"y": reference}]).snr_db == SNR_CAP


def test_equal_infinities_are_equal_and_nan_never_is():
    y = scores()
    y[0, 1] = -np.inf
    assert compare([{"y": y}], [{"y": y.copy()}]).nonfinite == 0
    y[0, 2] = np.nan
    assert compare([{"y": y}], [{"y": y.copy()}]).nonfinite == 1


def test_integers_are_judged_by_equality():
    ref, out = np.array([[1, 2], [3, 4]], np.int64), np.array([[1, 2], [3, 7]], np.int32)
    parity = compare([{"label": ref}], [{"label": out}])
    assert parity.top1_agreement == 0.75
    assert parity.max_abs == 3
    assert "snr_db" not in parity.per_output["label"]
    y = scores()
    assert compare([{"y": y, "label": ref}], [{"y": y, "label": out}]).snr_db == SNR_CAP


def test_unsigned_differences_do_not_wrap():
    ref, out = np.array([[0, 255]], np.uint8), np.array([[255, 0]], np.uint8)
    assert compare([{"y": ref}], [{"y": out}]).max_abs == 255


def test_zero_rows_have_a_direction_only_among_themselves():
    zero, one = np.zeros((1, 4), np.float32), np.ones((1, 4), np.float32)
    assert compare([{"y": zero}], [{"y": zero}]).cosine == 1
    parity = compare([{"y": zero}], [{"y": one}])
    assert parity.cosine == 0
    assert parity.snr_db == -SNR_CAP


@pytest.mark.parametrize(
    ("array", "task", "expected"),
    [
        (scores(), "", True),
        (scores(4, 1), "", False),
        (scores().reshape(2, 4, 10), "", False),
        (scores() / np.linalg.norm(scores(), axis=1, keepdims=True), "", True),
        (scores(), "feature-extraction", False),
        (np.eye(3, dtype=np.float32), "", True),  # one-hot rows are probabilities too
        (np.eye(3, dtype=np.float32), "image-classification", True),
        (-np.eye(3, dtype=np.float32), "", False),  # unit length, and no probabilities: an embedding
    ],
)
def test_what_looks_like_class_scores(array, task, expected):
    parity = compare([{"y": array}], [{"y": array}], task=Task(name=task))
    assert (parity.top1_agreement is not None) is expected


def test_one_sample_of_unit_length_is_no_embedding():
    rows = [scores(1, 2) * 3 for _ in range(5)]
    rows[0] = rows[0] / np.linalg.norm(rows[0])
    outputs = [{"y": r} for r in rows]
    parity = compare(outputs, outputs, task=Task(labels=[int(r.argmax()) for r in rows]))
    assert parity.metric == parity.top1_agreement == 1
    units = [{"y": r / np.linalg.norm(r)} for r in rows]
    assert compare(units, units).top1_agreement is None
    with pytest.raises(DataError, match="0 outputs"):
        compare(units, units, task=Task(labels=[0] * 5))


def test_classes_beside_an_embedding():
    rows = scores(4, 6)
    outputs = [{"vector": rows / np.linalg.norm(rows, axis=1, keepdims=True), "class": np.arange(4)}]
    parity = compare(outputs, outputs, task=Task(labels=[np.array([0, 1, 2, 0])]))
    assert parity.reference_metric == 0.75


def test_scores_by_name():
    y = scores()
    parity = compare([{"a": y, "b": y}], [{"a": y, "b": -y}], task=Task(scores=["a"]))
    assert parity.top1_agreement == 1


@pytest.mark.parametrize(
    ("got", "message"),
    [
        ({"z": np.zeros((1, 3), "f")}, "no output 'y'"),
        ({"y": np.zeros((3,), "f")}, r"shape \[3\], the reference \[1, 3\]"),
        ({"y": np.zeros((1, 3), np.int8)}, "int8 where the reference is float32"),
    ],
)
def test_mismatches_are_errors(got, message):
    with pytest.raises(BackendError, match=message):
        compare([{"y": np.zeros((1, 3), "f")}], [got])


def test_an_error_of_the_samples_own_stays_what_it_is():
    def rows():
        yield {"y": np.ones((1, 2), np.float32)}
        raise ValueError("zip() is what this file is called")

    with pytest.raises(ValueError, match="is what this file is called"):
        compare(rows(), rows())


def test_different_numbers_of_samples():
    y = scores()
    with pytest.raises(BackendError, match="different numbers"):
        compare([{"y": y}] * 2, [{"y": y}])
    with pytest.raises(DataError, match="nothing"):
        compare([], [])


def test_an_error_of_the_reference_is_not_swallowed():
    def broken():
        yield {"y": scores()}
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        compare(broken(), [{"y": scores()}] * 2)


def test_accuracy_and_its_drop_with_labels_a_row():
    labels = RNG.integers(0, 10, (25, 8))
    refs = [np.eye(10, dtype=np.float32)[row] * 5 for row in labels]
    outs = [r.copy() for r in refs]
    for i in range(5):
        outs[i][0] = -outs[i][0]
    task = Task(labels=list(labels))
    parity = compare([{"y": r} for r in refs], [{"y": o} for o in outs], task=task)
    assert parity.metric_name == "accuracy"
    assert parity.reference_metric == 1
    assert parity.metric == pytest.approx(195 / 200)
    assert parity.metric_drop == pytest.approx(0.025)
    assert parity.rows == 200
    low, high = parity.drop_interval
    assert low < 0.025 < high < 0.06
    assert "Newcombe" in parity.drop_method


def test_a_label_may_be_a_scalar_and_predictions_integers():
    parity = compare(
        [{"label": np.array([3])}, {"label": np.array([1])}],
        [{"label": np.array([3])}, {"label": np.array([2])}],
        task=Task(labels=[3, 1]),
    )
    assert (parity.reference_metric, parity.metric) == (1, 0.5)


def test_labels_that_do_not_fit():
    y = scores()
    with pytest.raises(DataError, match="1 labels"):
        compare([{"y": y}] * 2, [{"y": y}] * 2, task=Task(labels=[0]))
    with pytest.raises(DataError, match="8 rows and 3 labels"):
        compare([{"y": y}], [{"y": y}], task=Task(labels=[[1, 2, 3]]))
    with pytest.raises(DataError, match="2 outputs"):
        compare([{"y": y, "z": y}], [{"y": y, "z": y}], task=Task(labels=[[0] * 8]))


def test_a_metric_of_the_users_by_sample():
    metric = Metric(name="closeness", score=lambda outputs, label: -abs(float(outputs["y"].sum()) - label))
    refs = [{"y": np.full((1, 2), v, "f")} for v in (1, 2, 3)]
    outs = [{"y": np.full((1, 2), v, "f")} for v in (1, 2, 4)]
    parity = compare(refs, outs, task=Task(labels=[2, 4, 6], metric=metric))
    assert (parity.reference_metric, parity.metric) == (0, pytest.approx(-2 / 3))
    assert parity.drop_method == "paired bootstrap"


def test_a_metric_of_the_users_over_the_set():
    def span(outputs, labels):
        return max(float(o["y"].max()) for o in outputs) - min(labels)

    refs, outs = (
        [{"y": np.full((1, 2), v, "f")} for v in (1, 2)],
        [{"y": np.full((1, 2), v, "f")} for v in (1, 5)],
    )
    parity = compare(refs, outs, task=Task(labels=[0, 1], metric=Metric(name="span", score=span, whole=True)))
    assert (parity.reference_metric, parity.metric, parity.metric_drop) == (2, 5, -3)
    assert parity.drop_method == "jackknife over groups"


def test_the_metric_is_held_against_the_source_before_its_recipe():
    labels = [[i % 4] for i in range(40)]
    first = [np.eye(4, dtype=np.float32)[label] for label in labels]
    ruined = [np.roll(row, i % 2, axis=1) for i, row in enumerate(first)]
    lowered = [row * 0.99 for row in ruined]
    parity = compare(
        [{"y": r} for r in ruined],
        [{"y": o} for o in lowered],
        task=Task(name="classification", labels=labels),
        origin=[{"y": r} for r in first],
    )
    assert (parity.reference_metric, parity.recipe_metric, parity.metric) == (1.0, 0.5, 0.5)
    assert parity.metric_drop == 0.5
    assert parity.snr_db > 39


def test_what_is_written_of_parity_and_tolerance_is_all_there_is():
    for internal, written in ((Parity, wire.Parity), (Tolerance, wire.Tolerance)):
        assert {f.name for f in fields(internal)} == set(written.__struct_fields__)
