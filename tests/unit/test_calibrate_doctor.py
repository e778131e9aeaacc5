"""The doctor against a catalogue of injected faults, on crops of real photographs."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from test_calibrate_histogram import calibration

from edgekit.quantize.calibrate.doctor import diagnose
from edgekit.types import Finding, Sample, Severity

MEAN, STD = (np.array(v, np.float32)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
TRIALS = 20


@pytest.fixture(scope="module")
def photographs() -> list[np.ndarray]:
    """RGB in 0 to 1, ``[3, H, W]``."""
    datasets = pytest.importorskip("sklearn.datasets")
    return [i.transpose(2, 0, 1).astype(np.float32) / 255 for i in datasets.load_sample_images().images]


def crops(photographs: list[np.ndarray], rng: np.random.Generator, count: int) -> list[np.ndarray]:
    """Crops of all photographs alike, ``[1, 3, 48, 48]``."""
    taken = []
    for i in range(count):
        image = photographs[i % len(photographs)]
        y, x = (rng.integers(0, n - 48) for n in image.shape[1:])
        taken.append(image[None, :, y : y + 48, x : x + 48])
    return taken


def normal(image: np.ndarray) -> np.ndarray:
    return ((image - MEAN) / STD).astype(np.float32)


FAULTS = {
    "scale": lambda i, _: normal(i) * 255,
    "scale-down": lambda i, _: normal(i) / 255,
    "bytes": lambda i, _: i * 255,
    "zeros": lambda i, _: np.zeros_like(i),
    "constant": lambda i, r: np.full_like(i, r.normal()),
    "noise": lambda i, r: r.standard_normal(i.shape).astype(np.float32),
    "uniform-noise": lambda i, r: normal(r.random(i.shape).astype(np.float32)),
    "colour-order": lambda i, _: normal(i[:, ::-1]),
    "layout": lambda i, _: normal(i).transpose(0, 2, 3, 1).reshape(i.shape),
    "normalization": lambda i, _: i,
    "not-finite": lambda i, r: np.where(r.random(i.shape) < 1e-3, np.nan, normal(i)),
    "duplicates": lambda i, _: normal(i),
}
CODES = {"scale-down": "scale", "bytes": "scale", "uniform-noise": "noise"}


def samples(arrays: list[np.ndarray]) -> list[Sample]:
    return [Sample(inputs={"image": a.astype(np.float32)}) for a in arrays]


def findings(
    photographs, fault: str | None, seed: int, references: int = 32, count: int = 32
) -> tuple[Finding, ...]:
    rng = np.random.default_rng(seed)
    right = [normal(i) for i in crops(photographs, rng, references)]
    images = crops(photographs, rng, count)
    if fault == "duplicates":
        images = images[:4] * 8
    made = [FAULTS[fault](i, rng) if fault else normal(i) for i in images]
    return diagnose(samples(made), reference=samples(right))


@pytest.mark.parametrize("fault", list(FAULTS))
def test_injected_faults_are_detected_and_named(photographs, fault: str) -> None:
    # That channels are exchanged is said where it is sure: two pictures have few colours.
    count, trials = (192, 8) if fault == "colour-order" else (32, TRIALS)
    told = [findings(photographs, fault, seed, references=count, count=count) for seed in range(trials)]
    code = CODES.get(fault, fault)
    named = sum(any(f.code == code for f in t) for t in told)
    assert sum(bool(t) for t in told) >= 0.95 * trials, "detected"
    assert named >= 0.9 * trials, "named"
    assert all(f.hint and f.tensor == "image" for t in told for f in t)


def test_clean_data_raises_no_alarm(photographs) -> None:
    told = [findings(photographs, None, 1000 + seed) for seed in range(60)]
    assert sum(bool(t) for t in told) <= 1


def test_sets_sorted_by_class_raise_no_alarm(photographs) -> None:
    """The first class has red and blue the other way round from the second: seen alone, it is another set."""
    rng = np.random.default_rng(3)
    first = [normal(i[:, ::-1]) for i in crops(photographs, rng, 300)]
    second = [normal(i) for i in crops(photographs, rng, 900)]
    mixed = [Sample(inputs={"x": x}) for x in (*first[:32], *second[:96])]
    order = rng.permutation(len(mixed))
    known = (Sample(inputs={"x": x}) for x in (*first, *second))
    told = diagnose([mixed[i] for i in order], reference=known)
    assert [f.code for f in told] == ["evaluation-data"]  # the calibration samples are some of them


def test_a_single_example_input_finds_gross_faults_and_no_others(photographs) -> None:
    for fault in ("scale", "bytes", "zeros", "noise", "not-finite"):
        assert findings(photographs, fault, 3, references=1), fault
    assert sum(bool(findings(photographs, None, 2000 + s, references=1)) for s in range(40)) <= 1


@pytest.mark.parametrize("shape", [(1, 4, 9, 11), (1, 3, 8, 8), (1, 2, 16, 16), (1, 6, 32, 32)], ids=str)
def test_noise_of_few_values_is_in_no_axis_order(shape) -> None:
    """Correlations of some hundred values reach a tenth by chance."""
    for seed in range(200):
        rng = np.random.default_rng(seed)
        drawn = [Sample(inputs={"x": rng.standard_normal(shape).astype(np.float32)}) for _ in range(9)]
        assert "layout" not in {f.code for f in diagnose(drawn[1:], reference=drawn[:1])}, seed


def test_without_reference_what_is_wrong_in_itself_is_found(photographs) -> None:
    rng = np.random.default_rng(0)
    images = crops(photographs, rng, 32)
    for fault in ("zeros", "constant", "noise", "not-finite"):
        assert diagnose(samples([FAULTS[fault](i, rng) for i in images])), fault
    assert diagnose(samples([normal(i) for i in images])) == ()


def test_too_few_samples_are_told_by_the_stability_of_ranges() -> None:
    stable = calibration(x=np.random.default_rng(0).standard_normal(1000).astype(np.float32))
    s = stable.tensors["x"]
    same = dataclasses.replace(s, half_low=np.repeat(s.half_low, 2), half_high=np.repeat(s.half_high, 2))
    stable = few = dataclasses.replace(stable, tensors={"x": same})
    assert [f.code for f in diagnose((), calibration=few)] == ["too-few-samples"]  # three samples
    enough = dataclasses.replace(stable, samples=100)
    assert diagnose((), calibration=enough) == ()
    s = enough.tensors["x"]
    halves = dataclasses.replace(s, half_high=np.array([s.high, s.high * 0.2], np.float32))
    unstable = dataclasses.replace(enough, tensors={"x": halves})
    (finding,) = diagnose((), calibration=unstable)
    assert finding.severity is Severity.WARNING
    assert finding.tensor == "x"


def test_token_ids_are_not_judged_as_values() -> None:
    ids = [Sample(inputs={"ids": np.arange(i, i + 8)[None]}) for i in range(16)]
    assert diagnose(ids, reference=ids[:2]) == ()
    assert [f.code for f in diagnose(ids[:1] * 16)] == ["duplicates"]


def test_minus_infinity_is_a_mask_and_nothing_to_mend():
    mask = np.where(np.arange(64) % 3, 0.0, -np.inf).astype(np.float32).reshape(1, 8, 8)
    samples = [Sample(inputs={"mask": np.roll(mask, k, axis=2)}) for k in range(8)]
    assert "not-finite" not in {f.code for f in diagnose(samples, reference=samples)}


def test_other_scenes_are_not_taken_for_exchanged_channels(photographs) -> None:
    """Frames of one clip against frames of another: the sets differ, and not by their channels' order."""
    rng = np.random.default_rng(8)
    tints = rng.uniform(0.6, 1.4, (40, 3, 1, 1)).astype(np.float32)
    alarms = 0
    for trial in range(20):
        one, other = (
            [normal(i * tints[2 * trial + k]) for i in crops(photographs[k : k + 1], rng, 32)] for k in (0, 1)
        )
        alarms += any(f.severity is Severity.ERROR for f in diagnose(samples(one), reference=samples(other)))
    assert alarms == 0


def test_pictures_without_colour_are_named_as_that(photographs) -> None:
    rng = np.random.default_rng(5)
    right = [normal(i) for i in crops(photographs, rng, 24)]
    grey = [normal(i.mean(axis=1, keepdims=True).repeat(3, axis=1)) for i in crops(photographs, rng, 24)]
    (finding,) = diagnose(samples(grey), reference=samples(right))
    assert (finding.code, finding.severity) == ("grey", Severity.WARNING)
    assert diagnose(samples(grey[:12]), reference=samples(grey[12:])) == ()


def test_silence_is_counted_in_plain_numbers() -> None:
    rng = np.random.default_rng(6)
    sounds = [rng.normal(size=(1, 400)).astype(np.float32) for _ in range(20)]
    told = diagnose(samples([np.zeros_like(s) for s in sounds[:5]] + sounds[5:]), reference=samples(sounds))
    assert [f.code for f in told][:1] == ["zeros"]
    assert all(type(v) is float for f in told for v in f.evidence.values())


def test_calibration_on_what_is_evaluated_is_said() -> None:
    rng = np.random.default_rng(7)
    rows = [rng.normal(size=(1, 40)).astype(np.float32) for _ in range(32)]
    told = diagnose(samples(rows[:16]), reference=samples(rows))
    assert [(f.code, f.severity) for f in told] == [("evaluation-data", Severity.WARNING)]


def test_an_example_without_elements_says_nothing() -> None:
    """A cache of length 0, say."""
    samples = [Sample(inputs={"x": np.full((1, 4, 8), i, np.float32)}) for i in range(10)]
    found = diagnose(samples, reference=[{"x": np.zeros((1, 0, 8), np.float32)}])
    assert all(f.code in ("constant", "zeros") for f in found)


def test_what_both_sets_share_is_held_against_the_sources_own_example(photographs) -> None:
    """One loader for both, without the division by 255."""
    rng = np.random.default_rng(11)
    right, wrong = crops(photographs, rng, 1)[0], [255 * i for i in crops(photographs, rng, 32)]
    both = {"reference": samples(wrong[16:])}
    (finding,) = diagnose(samples(wrong[:16]), **both, example={"image": right})
    assert (finding.code, finding.severity) == ("scale", Severity.ERROR)
    assert "example inputs" in finding.message
    assert diagnose(samples(wrong[:16]), **both) == ()
    assert diagnose(samples(wrong[:16]), **both, example={"image": 255 * right}) == ()


def test_pixels_without_mean_and_deviation_in_both_sets(photographs) -> None:
    rng = np.random.default_rng(15)
    raw, right = crops(photographs, rng, 32), normal(crops(photographs, rng, 1)[0])
    (finding,) = diagnose(samples(raw[:16]), reference=samples(raw[16:]), example={"image": right})
    assert (finding.code, finding.severity) == ("normalization", Severity.ERROR)


@pytest.mark.parametrize("made_up", [np.zeros, np.ones, np.random.default_rng(13).standard_normal])
def test_an_example_that_only_gives_a_shape_refuses_nobody(photographs, made_up) -> None:
    rng = np.random.default_rng(14)
    bytes_ = [255 * i for i in crops(photographs, rng, 32)]
    example = {"image": made_up(bytes_[0].shape).astype(np.float32)}
    assert diagnose(samples(bytes_[:16]), reference=samples(bytes_[16:]), example=example) == ()


def test_of_inputs_that_are_no_pictures_the_example_only_warns() -> None:
    rng = np.random.default_rng(15)
    rows = [1000 * rng.normal(size=(1, 40)).astype(np.float32) for _ in range(32)]
    example = {"image": rng.normal(size=(1, 40)).astype(np.float32)}
    told = diagnose(samples(rows[:16]), reference=samples(rows[16:]), example=example)
    assert [(f.code, f.severity) for f in told] == [("scale", Severity.WARNING)]
