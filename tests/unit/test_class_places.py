"""Classes at places: the axis is that of classes, and a constant background proves nothing."""

from __future__ import annotations

import numpy as np
import pytest

from edgekit.artifact.classes import ClassTally, class_axis
from edgekit.artifact.parity import compare
from edgekit.artifact.task import Task

SEGMENTATION = Task(name="semantic-segmentation")


def scores(classes: np.ndarray, count: int, axis: int = 1) -> np.ndarray:
    """One-hot scores of an array of classes ``[batch, …]``."""
    return np.moveaxis(np.eye(count, dtype=np.float32)[classes], -1, axis)


@pytest.mark.parametrize(
    ("task", "shape", "axis"),
    [
        (SEGMENTATION, (1, 3, 8, 8), 1),
        (Task(name="semantic-segmentation", classes=("a", "b", "c")), (1, 8, 8, 3), 3),
        (Task(name="token-classification"), (1, 12, 9), 2),
        (Task(name="fill-mask"), (1, 12, 100), 2),
        (Task(name=""), (1, 3, 8, 8), None),
        (Task(name="image-classification"), (1, 3, 8, 8), None),
        (Task(name="", scores=["y"]), (1, 3, 8, 8), 1),
        (Task(name="semantic-segmentation", scores=["z"]), (1, 3, 8, 8), None),
        (SEGMENTATION, (1, 1, 8, 8), None),
    ],
)
def test_the_axis_of_classes(task, shape, axis):
    assert class_axis("y", np.zeros(shape, np.float32), task) == axis


def masks(count: int) -> list[np.ndarray]:
    """Background everywhere, but for a corner of 2 × 2 in which there is class 1 on every other picture."""
    found = []
    for k in range(count):
        classes = np.zeros((1, 16, 16), np.int64)
        classes[0, :2, :2] = k % 2
        found.append(classes)
    return found


def test_a_lost_class_is_not_hidden_by_the_background():
    rows = masks(20)
    expected = [{"y": scores(m, 3)} for m in rows]
    lost = [{"y": scores(np.zeros_like(m), 3)} for m in rows]
    parity = compare(expected, lost, task=SEGMENTATION)
    assert parity.top1_agreement == 0.5
    assert parity.agreement_rows == 20
    assert compare(expected, expected, task=SEGMENTATION).top1_agreement == 1.0


def test_nothing_is_said_where_no_class_changes():
    rows = [np.zeros((1, 4, 4), np.int64)] * 5
    outputs = [{"y": scores(m, 3)} for m in rows]
    assert compare(outputs, outputs, task=SEGMENTATION).top1_agreement is None


def test_pictures_of_other_sizes_count_every_place():
    tally = ClassTally()
    for size in (4, 6):
        ref = scores(np.zeros((1, size, size), np.int64), 2)
        tally.add(ref, ref, 1)
    assert tally.share() == 1.0


def test_a_place_that_is_nan_never_agrees():
    ref = scores(np.zeros((2, 3), np.int64), 2, axis=2)
    ref[1, 2] = ref[1, 2, ::-1]
    out = ref.copy()
    out[:, 2, 0] = np.nan
    tally = ClassTally()
    tally.add(ref, out, 2)
    assert tally.share() == 0.0
