"""A detector's boxes: recognised as what they are, and judged by how far they overlap with the source's."""

from __future__ import annotations

import numpy as np
import pytest

from edgekit.artifact.boxes import layout_of
from edgekit.artifact.gates import Evidence, gates
from edgekit.artifact.limits import parse
from edgekit.artifact.parity import compare
from edgekit.artifact.task import Task
from edgekit.types import Tolerance, Verdict

INT8 = Tolerance(snr_db=12, top1_agreement=0.9)


def corners(count=200, size=30.0, seed=0):
    draw = np.random.default_rng(seed)
    low = draw.uniform(0, 600, (1, count, 2))
    return np.concatenate([low, low + draw.uniform(size / 2, size, (1, count, 2))], axis=2).astype(np.float32)


def head(count=400, classes=6, seed=0):
    """Centres and sizes in pixels, and the classes' scores: ``[1, 4 + classes, count]``."""
    draw = np.random.default_rng(seed)
    box = np.concatenate([draw.uniform(0, 640, (2, count)), draw.uniform(10, 40, (2, count))])
    scores = draw.uniform(0, 1, (classes, count)) ** 8
    return np.concatenate([box, scores])[None].astype(np.float32)


def judged(ref, out, *, name="y", data="evaluation", limits=None):
    parity = compare([{name: r} for r in ref], [{name: o} for o in out])
    from dataclasses import replace

    found = gates(Evidence(parity=replace(parity, data=data)), INT8, limits)
    return parity, {g.name: g for g in found}


def test_boxes_beside_the_objects_are_refused_whatever_their_energy():
    ref = [corners(seed=k) for k in range(40)]
    out = [r + np.random.default_rng(k).normal(0, 20, r.shape).astype("f") for k, r in enumerate(ref)]
    parity, verdicts = judged(ref, out)
    assert parity.snr_db > 20
    assert verdicts["snr"].verdict is verdicts["slices"].verdict is Verdict.PASS
    assert verdicts["boxes"].verdict is Verdict.FAIL
    assert "boxes agree, at least 90 % wanted" in verdicts["boxes"].message


def test_boxes_that_overlap_pass_and_their_overlap_is_told():
    ref = [corners(seed=k) for k in range(40)]
    out = [r + np.random.default_rng(k).normal(0, 1, r.shape).astype("f") for k, r in enumerate(ref)]
    parity, verdicts = judged(ref, out)
    assert verdicts["boxes"].verdict is Verdict.PASS
    assert parity.boxes > 0.99
    assert 0.75 < parity.per_output["y"]["iou"] < 0.95


def test_of_a_head_the_boxes_count_that_a_detector_would_report():
    ref = [head(seed=k) for k in range(40)]
    out = [r.copy() for r in ref]
    for r, o in zip(ref, out, strict=True):
        best = r[0, 4:].max(axis=0)
        o[0, :4, best < 0.4 * best.max()] += 100
    assert judged(ref, out)[1]["boxes"].verdict is Verdict.PASS
    for o in out:
        o[0, 0] += 15
        o[0, 1] += 15
    assert judged(ref, out)[1]["boxes"].verdict is Verdict.FAIL


def test_an_artifact_whose_boxes_have_no_area_or_are_not_finite_agrees_in_none():
    ref = [corners()]
    turned, broken = ref[0][..., [2, 3, 0, 1]], np.full_like(ref[0], np.nan)
    assert judged(ref, [turned])[0].boxes == 0
    assert judged(ref, [broken])[0].boxes == 0


def test_on_random_inputs_it_is_shown_and_a_limit_can_be_set():
    ref = [corners()]
    out = [ref[0] + 12]
    assert judged(ref, out, data="random")[1]["boxes"].verdict is Verdict.SHOWN
    limits = parse({"boxes": "1%"})
    assert judged(ref * 40, out * 40)[1]["boxes"].verdict is Verdict.FAIL
    assert judged(ref * 40, out * 40, limits=limits)[1]["boxes"].limit == 0.01


@pytest.mark.parametrize(
    ("name", "array", "task"),
    [
        ("y", corners(), ""),
        ("y", head(), ""),
        ("y", head().transpose(0, 2, 1), ""),
        ("y", head() / 640, "object-detection"),
        ("boxes", corners(count=3), ""),
        ("pred_boxes", np.random.default_rng(0).uniform(0.1, 0.9, (1, 100, 4)).astype("f"), ""),  # DETR
        ("y", corners(count=5)[0], "detection"),
    ],
)
def test_what_is_boxes(name, array, task):
    assert layout_of(name, array, Task(name=task)) is not None


def softmax(array, axis=-1):
    e = np.exp(array)
    return (e / e.sum(axis=axis, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("y", np.random.default_rng(0).normal(size=(1, 200, 4)).astype("f")),
        ("y", np.sort(np.random.default_rng(0).normal(size=(1, 200, 4)), axis=2).astype("f")),  # quantiles
        ("y", softmax(np.random.default_rng(0).normal(size=(1, 200, 4)))),
        ("y", softmax(np.random.default_rng(0).normal(size=(1, 100, 20)))),  # tokens
        ("y", np.abs(np.random.default_rng(0).normal(size=(1, 64, 128))).astype("f")),
        ("y", np.zeros((1, 200, 4), "f")),
        ("y", np.arange(800).reshape(1, 200, 4)),
        ("y", corners(count=3)),
        ("boxes", np.zeros((1, 0, 4), "f")),
        ("logits", np.random.default_rng(0).normal(size=(8, 4)).astype("f")),
    ],
)
def test_what_is_not(name, array):
    assert layout_of(name, array, Task()) is None


def test_an_output_that_stops_to_look_like_boxes_is_none():
    first, other = corners(), np.random.default_rng(0).normal(size=(1, 200, 4)).astype("f")
    assert judged([first, other], [first, other])[0].boxes is None
