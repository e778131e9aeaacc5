"""Explained variance by slice: what one energy ratio over a tensor does not see, and what must refuse nobody."""

import numpy as np
import pytest

from edgekit.artifact.gates import Evidence, gates
from edgekit.artifact.parity import compare
from edgekit.artifact.slices import SliceTally, peers, places
from edgekit.types import TensorSpec, Tolerance, Verdict

INT8 = Tolerance(snr_db=12.0, top1_agreement=0.9)


def quantized(x, scale):
    return np.round(x / scale) * scale


def judged(references, outputs, tolerance=INT8, **known):
    parity = compare(({"y": r} for r in references), ({"y": o} for o in outputs), **known)
    return parity, {g.name: g.verdict for g in gates(Evidence(parity=parity), tolerance)}


def samples(count, shape, seed=0, scale=1.0, offset=0.0):
    random = np.random.default_rng(seed)
    return [(random.normal(size=shape) * scale + offset).astype(np.float32) for _ in range(count)]


def test_an_offset_output_that_lost_its_variation():
    references = samples(200, (1, 1), scale=1.5, offset=1013.0)
    parity, verdicts = judged(references, [quantized(r, 4.0) for r in references])
    assert parity.snr_db > 55
    assert parity.explained < 0.5
    assert verdicts["snr"] is Verdict.PASS
    assert verdicts["slices"] is Verdict.FAIL


def test_scores_beside_boxes_in_one_tensor():
    random = np.random.default_rng(1)
    references = []
    for _ in range(50):
        boxes = random.uniform(0, 640, size=(1, 4, 64))
        scores = 1 / (1 + np.exp(random.normal(0, 3, size=(1, 3, 64))))
        references.append(np.concatenate([boxes, scores], axis=1).astype(np.float32))
    parity, verdicts = judged(references, [quantized(r, 2.5) for r in references])
    assert parity.snr_db > 40
    assert parity.explained_at.startswith("y, index")
    assert parity.explained_at.endswith("of axis 1")
    assert verdicts["slices"] is Verdict.FAIL
    kept = [
        np.concatenate([quantized(r[:, :4], 2.5), quantized(r[:, 4:], 1 / 256)], axis=1) for r in references
    ]
    assert judged(references, kept)[1]["slices"] is Verdict.PASS


def test_units_that_differ_are_no_peers():
    random = np.random.default_rng(2)
    references = [
        np.array([[random.normal(288, 5), random.normal(101325, 500), random.uniform(0, 1)]], np.float32)
        for _ in range(100)
    ]
    assert judged(references, [quantized(r, 400.0) for r in references])[1]["slices"] is Verdict.FAIL
    scales = np.array([[0.2, 20.0, 0.004]])
    assert judged(references, [quantized(r, scales) for r in references])[1]["slices"] is Verdict.PASS


@pytest.mark.parametrize("constant", [0.0, 3.7])
def test_dead_channels_and_constants_refuse_nobody(constant):
    references = samples(30, (1, 16, 8, 8))
    for r in references:
        r[:, 5] = constant
    outputs = [quantized(r, 0.05) for r in references]
    parity, verdicts = judged(references, outputs)
    assert parity.explained > 0.99
    assert verdicts["slices"] is Verdict.PASS


def test_a_class_that_hardly_ever_appears_is_excused_by_its_peers():
    random = np.random.default_rng(3)
    references = []
    for _ in range(60):
        scores = random.uniform(0, 1, size=(1, 80))
        scores[:, 40:] *= 3.0 ** -np.arange(40)[None]
        references.append(scores.astype(np.float32))
    assert judged(references, [quantized(r, 1 / 256) for r in references])[1]["slices"] is Verdict.PASS


def test_columns_that_share_a_unit_and_hardly_vary():
    """A classifier that always says the same of noise: its answer is the difference between its columns."""
    base = np.random.default_rng(4).normal(size=(1, 12)) * 5
    references = [(base + d * 0.05).astype(np.float32) for d in samples(40, (1, 12))]
    assert judged(references, [quantized(r, 0.15) for r in references])[1]["slices"] is Verdict.PASS


def test_one_channel_at_another_scale_and_two_swapped():
    references = samples(40, (1, 10))
    outputs = [r.copy() for r in references]
    for o in outputs:
        o[:, 3] *= 2
    assert judged(references, outputs)[1]["slices"] is Verdict.FAIL
    swapped = [r[:, [1, 0, *range(2, 10)]] for r in references]
    assert judged(references, swapped)[1]["slices"] is Verdict.FAIL


def test_quiet_samples_count():
    loud = samples(64, (1, 1, 512), scale=1.0)
    quiet = samples(64, (1, 1, 512), seed=1, scale=1 / 300)
    references = [x for pair in zip(loud, quiet, strict=True) for x in pair]
    parity, verdicts = judged(references, [quantized(r, 0.03) for r in references])
    assert parity.snr_db > 25
    assert verdicts["snr"] is Verdict.PASS
    assert verdicts["samples"] is Verdict.FAIL


def test_small_scores_of_nothing_are_no_quiet_samples():
    references = [np.full((1, 8), 1e-6, np.float32) for _ in range(30)] + samples(0, (1, 8))
    references += [np.eye(8, dtype=np.float32)[i % 8][None] for i in range(30)]
    parity, _ = judged(references, [quantized(r, 1 / 256) for r in references])
    assert parity.sample_snr_db is None


def test_integers_are_equal_or_wrong_on_float_targets_too():
    references = [np.array([[3, 1, 4, 1]]), np.array([[5, 9, 2, 6]])] * 80
    wrong = [r + 1 for r in references]
    float32 = Tolerance(snr_db=80.0, relative_error=1e-3)
    assert judged(references, wrong, float32)[1]["integers"] is Verdict.FAIL
    assert judged(references, [r.copy() for r in references], float32)[1]["integers"] is Verdict.PASS


def test_rounding_of_the_float32_reference_is_no_loss():
    references = samples(50, (1, 4), scale=1e-3, offset=1013.0)
    outputs = [np.nextafter(r, np.inf, dtype=np.float32) for r in references]
    assert judged(references, outputs, Tolerance(snr_db=80.0))[1]["slices"] is Verdict.PASS


def test_an_axis_of_changing_length_is_no_axis_of_channels():
    tally = SliceTally()
    for length in (50, 70):
        x = np.random.default_rng(length).normal(size=(1, length, 3))
        tally.add(x, x + 0.01)
    assert set(tally.axes) == {-1, 2}
    assert tally.worst().explained > 0.99


def test_peers_are_within_a_factor_of_ten_of_their_neighbour():
    spread = np.array([1.0, 2.0, 500.0, 900.0, 0.0])
    means = peers(spread**2, np.full(5, 1e-9), np.zeros(5))
    assert means[0] == means[1] == 2.5
    assert means[2] == means[3] == (500.0**2 + 900.0**2) / 2
    assert means[4] == 0


def test_dead_columns_among_hundreds_refuse_nobody():
    """A column that cancels to 1e-9, and a few that hardly vary: what float16 leaves of them is nothing to anybody."""
    references = samples(80, (1, 384), scale=0.05)
    for r in references:
        r[:, 319] *= 1e-8
        r[:, 5] *= 2e-4
    outputs = [r.astype(np.float16).astype(np.float32) + 1e-5 for r in references]
    parity, verdicts = judged(references, outputs, Tolerance(snr_db=35.0))
    assert verdicts["slices"] is Verdict.PASS, parity.explained_at


def nearly_constant(count, columns, seed=5):
    """What a network with pooling makes of noise: columns of their own height that hardly move."""
    heights = np.random.default_rng(seed).normal(size=(1, columns)) * 3 + 1
    return [(heights + d * 0.02).astype(np.float32) for d in samples(count, (1, columns), seed)]


@pytest.mark.parametrize("columns", [1, 3, 40])
def test_of_noise_only_what_is_dead_or_misplaced_is_seen(columns):
    references = nearly_constant(24, columns)
    outputs = [quantized(r, 0.1) for r in references]
    if columns < 8:  # many share a unit, and differ from each other
        assert judged(references, outputs)[1]["slices"] is Verdict.FAIL
    parity, verdicts = judged(references, outputs, noise=True)
    assert verdicts["slices"] is Verdict.PASS
    assert parity.noise
    index = int(np.abs(references[0]).argmax())
    for dead in outputs:
        dead[:, index] = 0
    assert judged(references, outputs, noise=True)[1]["slices"] is Verdict.FAIL


def test_nobody_is_asked_to_be_closer_than_float32_to_float64():
    exact = samples(8, (1, 16), scale=1.0)
    wide = [{"y": x.astype(np.float64)} for x in exact]
    one, other = samples(8, (1, 16), seed=8, scale=2e-4), samples(8, (1, 16), seed=9, scale=2e-4)
    references = [x + e for x, e in zip(exact, one, strict=True)]
    outputs = [x + e for x, e in zip(exact, other, strict=True)]
    float32 = Tolerance(snr_db=80.0, relative_error=1e-4)
    assert judged(references, outputs, float32)[1]["snr"] is Verdict.FAIL
    parity, verdicts = judged(references, outputs, float32, exact=wide)
    assert 70 < parity.rounding.snr_db < 78
    assert set(verdicts.values()) == {Verdict.PASS}
    worse = [o + 0.01 for o in outputs]
    assert judged(references, worse, float32, exact=wide)[1]["snr"] is Verdict.FAIL


def test_hundreds_of_scores_that_samples_hardly_move_keep_their_order():
    """A network that was never trained: its scores differ from each other, and not from sample to sample."""
    references = nearly_constant(40, 200)
    assert (
        judged(references, [r + d for r, d in zip(references, samples(40, (1, 200), 6, 0.4), strict=True)])[
            1
        ]["slices"]
        is Verdict.PASS
    )
    assert judged(references, [r[:, ::-1].copy() for r in references])[1]["slices"] is Verdict.FAIL


def test_hundreds_of_features_that_samples_do_move_are_each_looked_at():
    references = samples(60, (1, 200))
    for r in references:
        r[:, 7] += 40.0  # one column far from the others excuses none of them
    outputs = [r.copy() for r in references]
    for o in outputs:
        o[:, 100] = 0
    parity, verdicts = judged(references, outputs)
    assert verdicts["slices"] is Verdict.FAIL
    assert parity.explained_at == "y, index 100 of axis 1"


@pytest.mark.parametrize("wide", [np.nan, np.inf, 0.0, 1e300], ids=str)
def test_another_computation_in_float64_is_no_rounding(wide):
    """A module that branches on its data type, or overflows there, widens no limit."""
    references = samples(40, (1, 16))
    exact = [{"y": np.full((1, 16), wide)} for _ in references[:8]]
    parity, verdicts = judged(references, [r * 0.5 for r in references], Tolerance(snr_db=80.0), exact=exact)
    assert parity.rounding is None
    assert verdicts["snr"] is Verdict.FAIL
    assert verdicts["slices"] is Verdict.FAIL


def test_a_number_that_crosses_zero_is_no_quiet_sample():
    references = samples(200, (1, 1))
    parity, verdicts = judged(references, [quantized(r, 0.1) for r in references])
    assert parity.snr_db > 25
    assert parity.sample_snr_db is None
    assert verdicts["slices"] is Verdict.PASS


def spec(name, *shape):
    return TensorSpec(name=name, dtype="float32", shape=shape)


@pytest.mark.parametrize(
    ("inputs", "outputs", "found"),
    [
        ([("x", "n", 3, "h", "w")], [("y", "n", 1, "a", "b")], {"y": (2, 3)}),
        (
            [("x", "n", 3, "h", "w")],
            [("y", "n", "c", "a", "b")],
            {"y": (2, 3)},
        ),  # an exporter's name for a size
        ([("x", "n", "h", "w", 3)], [("y", "n", "a", "b", 4)], {"y": (1, 2)}),
        ([("x", "n", 3, 48, "w")], [("y", "n", "t", 80)], {}),
        ([("x", "n", 3, 32, 32)], [("y", "n", 1, 32, 32)], {}),  # made for one size: a place may be special
        ([("x", "n", "t"), ("s", 2, "n", 128)], [("s1", "d0", "n", "d2")], {}),
    ],
)
def test_rows_and_columns_of_a_picture_of_any_size_are_places(inputs, outputs, found):
    assert places([spec(*s) for s in inputs], [spec(*s) for s in outputs]) == found


def test_a_column_at_the_edge_of_a_map_is_no_channel():
    """Text hardly ever stands there; that the map is right elsewhere is what counts."""
    rng = np.random.default_rng(4)
    maps = [
        np.pad((rng.random((1, 2, 24, 20)) > 0.7) * 1.0, ((0, 0), (0, 0), (0, 0), (0, 4))) for _ in range(20)
    ]
    for sample in maps[:3]:
        sample[..., 22] = 0.4
    reference = [{"y": m.astype(np.float32)} for m in maps]
    outputs = [{"y": r["y"] * (np.arange(24) < 20).astype(np.float32)} for r in reference]
    assert compare(reference, outputs).explained < 0.75
    assert compare(reference, outputs, places={"y": (2, 3)}).explained > 0.95
    outputs = [{"y": r["y"] * np.array([1, 0], np.float32)[:, None, None]} for r in reference]
    assert compare(reference, outputs, places={"y": (2, 3)}).explained < 0.75  # a lost channel is seen


def embeddings(count=120, columns=384, seed=0):
    """Unit rows ``[1, columns]`` whose columns differ threefold in spread, as those of sentence encoders do."""
    random = np.random.default_rng(seed)
    spreads = random.uniform(0.3, 1.0, columns)
    rows = random.normal(size=(count, columns)) * spreads
    return [r[None].astype(np.float32) / np.float32(np.linalg.norm(r)) for r in rows]


def test_of_an_embedding_a_column_that_says_little_may_lose_it():
    references = embeddings()
    random = np.random.default_rng(1)
    # The noise is the same in every column: a tenth of the mean column's spread, or half of the smallest one's.
    outputs = [(r + random.normal(0, 0.012, r.shape)).astype(np.float32) for r in references]
    parity, verdicts = judged(references, outputs)
    assert parity.cosine > 0.97
    assert verdicts["slices"] is Verdict.PASS
    assert judged([r * 2 for r in references], [o * 2 for o in outputs])[1]["slices"] is Verdict.FAIL


def test_of_an_embedding_a_lost_column_is_seen():
    references = embeddings()
    outputs = [r.copy() for r in references]
    for out in outputs:
        out[:, int(np.argmax(np.var(np.concatenate(references), axis=0)))] = 0
    assert judged(references, outputs)[1]["slices"] is Verdict.FAIL


def test_a_rotation_of_unit_length_is_no_embedding():
    random = np.random.default_rng(2)
    references = [np.array([[*v, 0.0]], np.float32) for v in random.normal(size=(60, 3)) * (1, 1, 0.05)]
    references = [r / np.linalg.norm(r) for r in references]
    outputs = [r * np.float32([1, 1, 0, 1]) for r in references]
    assert judged(references, outputs)[1]["slices"] is Verdict.FAIL
