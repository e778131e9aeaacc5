"""Masks: recognised as what they are or as what ``--task`` says, and judged by how far they cover the source's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgekit.artifact.gates import Evidence, gates
from edgekit.artifact.limits import parse
from edgekit.artifact.masks import Layout, layout_of
from edgekit.artifact.parity import compare
from edgekit.artifact.task import Task, declared, refuse_unknown
from edgekit.errors import UnknownNameError
from edgekit.types import Tolerance, Verdict

INT8 = Tolerance(snr_db=12, top1_agreement=0.9)
PROBABILITIES, SCORES = Layout(threshold=0.5), Layout(threshold=0.0)


def discs(count=40, size=64, radius=9.0, sharp=4.0):
    """Scores of both signs: ``[1, 1, size, size]`` each, a disc of another place on every picture."""
    draw = np.random.default_rng(0)
    rows = np.arange(size)
    for _ in range(count):
        y, x = draw.uniform(radius, size - radius, 2)
        distance = np.hypot(rows[:, None] - y, rows[None] - x)
        yield (sharp * (radius - distance))[None, None].astype(np.float32)


def sigmoid(x):
    return (1 / (1 + np.exp(-np.asarray(x, np.float64)))).astype(np.float32)


def judged(ref, out, *, name="y", task="", data="evaluation", limits=None):
    parity = compare([{name: r} for r in ref], [{name: o} for o in out], task=Task(name=task))
    found = gates(Evidence(parity=replace(parity, data=data)), INT8, limits)
    return parity, {g.name: g for g in found}


def test_a_shrunken_mask_is_refused_whatever_its_energy():
    ref = list(discs())
    parity, verdicts = judged(ref, [r - 8 for r in ref], task="segmentation")  # two pixels less all around
    assert parity.snr_db > 20
    assert verdicts["snr"].verdict is verdicts["slices"].verdict is Verdict.PASS
    assert verdicts["masks"].verdict is Verdict.FAIL
    assert verdicts["masks"].message.startswith("0 of 40 masks (0 %) agree, at least 90 % wanted")


def test_masks_that_cover_each_other_pass_and_their_overlap_is_told():
    ref = [sigmoid(r) for r in discs()]
    parity, verdicts = judged(ref, [r + np.float32(0.02) for r in ref])
    assert verdicts["masks"].verdict is Verdict.PASS
    assert parity.masks == 1
    assert 0.95 < parity.per_output["y"]["mask_iou"] <= 1
    assert parity.mask_rows == 40


def test_a_mask_that_the_source_does_not_have_is_one_too_many():
    nothing = [sigmoid(r) * np.float32(0.1) for r in discs()]
    ref, out = [*map(sigmoid, discs()), *nothing], [*map(sigmoid, discs()), *map(sigmoid, discs())]
    parity, verdicts = judged(ref, out)
    assert parity.masks == 0.5
    assert verdicts["masks"].verdict is Verdict.FAIL


def test_masks_of_nothing_of_everything_and_of_a_few_pixels_say_nothing():
    empty = np.zeros((1, 1, 64, 64), "f")
    speck = empty.copy()
    speck[0, 0, 3, 3] = 1
    parity, verdicts = judged([empty, empty + 1, empty, speck], [empty, empty + 1, speck, empty])
    assert parity.masks is None
    assert "masks" not in verdicts


@pytest.mark.parametrize(
    ("name", "task", "shape", "expected"),
    [
        ("y", "", (1, 1, 64, 64), PROBABILITIES),
        ("y", "", (1, 64, 64), PROBABILITIES),
        ("y", "", (1, 64, 64, 1), PROBABILITIES),
        ("y", "", (1, 5, 64, 64), None),
        ("pred_masks", "", (1, 5, 64, 64), PROBABILITIES),
        ("y", "segmentation", (1, 5, 64, 64), None),
        ("y", "", (1, 1, 4, 4), None),
        ("y", "", (1, 4096), None),
    ],
)
def test_which_outputs_are_masks(name, task, shape, expected):
    draw = np.random.default_rng(0).uniform(size=shape).round().astype("f")
    assert layout_of(name, draw, Task(name=task)) == expected


def test_a_map_of_other_values_is_one_only_where_it_is_said():
    depth = np.random.default_rng(0).uniform(size=(1, 1, 64, 64)).astype("f")
    assert layout_of("y", depth, Task()) is None
    assert layout_of("y", depth, Task(name="matting")) == PROBABILITIES
    assert layout_of("y", depth - 0.5, Task()) is None
    assert layout_of("y", depth - 0.5, Task(name="image-segmentation")) == SCORES
    assert layout_of("y", depth + 3, Task(name="segmentation")) is None
    assert layout_of("y", (depth > 0.5).astype("i4"), Task(name="segmentation")) is None


def test_random_inputs_are_shown_and_the_limit_can_be_set():
    ref = list(discs())
    out = [r - 8 for r in ref]
    assert judged(ref, out, task="segmentation", data="random")[1]["masks"].verdict is Verdict.SHOWN
    found = judged(ref, out, task="segmentation", limits=parse({"masks": "1%"}))[1]["masks"]
    assert found.limit == 0.01


@pytest.mark.parametrize(
    ("own", "asked", "meaning"),
    [
        ("", "segmentation", "segmentation"),
        ("image-classification", "classification(batch=4)", "image-classification"),
        ("image-classification", "regression", "regression"),
        ("fill-mask", "", "fill-mask"),
        ("", "train.py:loss", ""),
    ],
)
def test_what_the_outputs_mean(own, asked, meaning):
    assert declared(own, asked) == meaning


def test_a_meaning_that_there_is_not_is_refused_with_the_nearest():
    refuse_unknown("")
    refuse_unknown("train.py:step")
    refuse_unknown("classification(batch=64)")
    with pytest.raises(UnknownNameError) as caught:
        refuse_unknown("segmentatoin")
    assert "segmentation" in caught.value.hint


def stripes(count=24, size=40, width=2, *, level=5.0):
    """Logits nobody calls a mask: level above zero on a bar of its own row, as much below it elsewhere."""
    draw = np.random.default_rng(11)
    for _ in range(count):
        picture = draw.normal(-level, level / 5, (1, 1, size, size))
        row = draw.integers(0, size - width)
        picture[..., row : row + width, :] += 1.6 * level
        yield picture.astype(np.float32)


@pytest.mark.parametrize("squeezed", [False, True])
def test_undeclared_logits_whose_masks_are_lost_are_unproven(squeezed):
    ref = [r[:, 0] if squeezed else r for r in stripes()]
    lost = [np.where(r > 0, r - 5.5, r).astype(np.float32) for r in ref]  # the background keeps the energy
    _, verdicts = judged(ref, lost)
    assert verdicts["masks"].verdict is Verdict.UNPROVEN
    assert "if these are logits of a mask, --task segmentation judges it" in verdicts["masks"].message
    _, declared_so = judged(ref, lost, task="segmentation")
    assert declared_so["masks"].verdict is Verdict.FAIL


def test_undeclared_logits_that_are_kept_and_random_inputs_get_no_gate():
    ref = list(stripes())
    noise = np.random.default_rng(12)
    kept = [(r + noise.normal(0, 0.5, r.shape)).astype(np.float32) for r in ref]
    assert "masks" not in judged(ref, kept)[1]
    assert "masks" not in judged(ref, [-abs(r) for r in ref], data="random")[1]
    few = ref[:5]
    assert "masks" not in judged(few, [-abs(r) for r in few])[1]


def smooth(draw, size=48):
    """A field about zero without its fine detail."""
    spectrum = np.fft.rfft2(draw.normal(0, 1, (size, size)))
    spectrum[6:-6] = 0
    spectrum[:, 6:] = 0
    field = np.fft.irfft2(spectrum, (size, size))
    return field / field.std()


def residual(draw):
    return draw.normal(0, 0.05, (48, 48))


def log_depth(draw):
    """Mostly near, some far: the logarithm is of both signs."""
    return smooth(draw) - 0.8


def peaks(draw):
    """Edges on a flat ground, a little below zero."""
    return np.where(draw.random((48, 48)) < 0.05, 1.0, 0.0) * 3 - 0.02 + draw.normal(0, 0.01, (48, 48))


def bright(draw):
    """A picture less its mean, dark but for a tenth of it."""
    picture = np.full((48, 48), -0.4) + draw.normal(0, 0.05, (48, 48))
    picture[8:24, 8:24] += 2.0 + 0.3 * smooth(draw)[8:24, 8:24]
    return picture


@pytest.mark.parametrize("signal", [residual, log_depth, peaks, bright, smooth])
@pytest.mark.parametrize("snr_db", [12, 20])
def test_honest_signals_are_not_disturbed(signal, snr_db):
    draw = np.random.default_rng(13)
    ref = [signal(draw)[None, None].astype(np.float32) for _ in range(20)]
    spread = float(np.sqrt(np.mean(np.square(ref)))) * 10 ** (-snr_db / 20)
    out = [(r + draw.normal(0, spread, r.shape)).astype(np.float32) for r in ref]
    assert "masks" not in judged(ref, out)[1]
    assert "masks" not in judged(ref, [np.zeros_like(r) for r in ref], data="random")[1]
