"""The post-processing contract in Python: arithmetic against figures worked out by hand, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from edgekit.errors import ConfigError, UnknownNameError, UsageError
from edgekit.package.postprocess import apply, preferred, read, resolve
from edgekit.preprocess import postprocessing
from edgekit.preprocess.postprocessing import Postprocessing, check, declared
from edgekit.types import TensorSpec

SCORES = TensorSpec(name="scores", dtype="float32", shape=(1, 3))
BOXES = TensorSpec(name="boxes", dtype="float32", shape=(1, "n", 4))
CLASSES = TensorSpec(name="classes", dtype="float32", shape=(1, "n", 2))


def one(values: list[float]) -> dict[str, np.ndarray]:
    return {"scores": np.array([values], np.float32)}


def test_softmax_and_sigmoid_by_hand() -> None:
    values = [0.0, math.log(2.0), math.log(5.0)]
    soft = apply(Postprocessing(kind="softmax", output="scores"), (SCORES,), one(values))
    np.testing.assert_allclose(soft, [[1 / 8, 2 / 8, 5 / 8]], rtol=1e-6)
    sig = apply(Postprocessing(kind="sigmoid", output="scores"), (SCORES,), one([0.0, -1e4, 1e4]))
    np.testing.assert_array_equal(sig, [[0.5, 0.0, 1.0]])
    large = apply(Postprocessing(kind="softmax", output="scores"), (SCORES,), one([1e4, 1e4, -1e4]))
    np.testing.assert_array_equal(large, [[0.5, 0.5, 0.0]])


def test_integer_outputs_are_read_as_real_values() -> None:
    spec = TensorSpec(name="scores", dtype="int8", shape=(1, 2), scale=math.log(3.0), zero_point=5)
    found = apply(
        Postprocessing(kind="softmax", output="scores"), (spec,), {"scores": np.array([[5, 6]], np.int8)}
    )
    np.testing.assert_allclose(found, [[0.25, 0.75]], rtol=1e-6)


def test_every_row_of_a_sequence_is_a_distribution() -> None:
    spec = TensorSpec(name="tags", dtype="float32", shape=(1, "t", 2))
    values = np.zeros((1, 4, 2), np.float32)
    found = apply(Postprocessing(kind="softmax", output="tags"), (spec,), {"tags": values})
    np.testing.assert_array_equal(found, np.full((1, 4, 2), 0.5))


@pytest.mark.filterwarnings("error")
def test_outputs_that_are_no_numbers_give_no_warning() -> None:
    for value in (np.inf, -np.inf, np.nan, 3e38):
        for kind in ("softmax", "sigmoid", "none"):
            apply(Postprocessing(kind=kind, output="scores"), (SCORES,), one([value, 1.0, value]))
        outputs = {
            "boxes": np.full((1, 3, 4), value, np.float32),
            "classes": np.full((1, 3, 2), value, np.float32),
        }
        found = apply(detector(box_format="cxcywh", activation="sigmoid"), (BOXES, CLASSES), outputs)
        assert len(found) <= 3


def detector(**fields: object) -> Postprocessing:
    return Postprocessing(**{"kind": "boxes", "output": "classes", "boxes": "boxes", **fields})


def test_a_box_hides_worse_ones_of_its_class_and_no_others() -> None:
    # The second covers the first by 0.8 of the union, the third is of the other class, the fourth is elsewhere.
    corners = [[0, 0, 10, 10], [0, 0, 10, 8], [0, 0, 10, 10], [20, 20, 30, 30], [0, 0, 1, 1]]
    scores = [[0.6, 0.1], [0.9, 0.0], [0.2, 0.7], [0.5, 0.3], [0.1, 0.2]]
    outputs = {"boxes": np.array([corners], np.float32), "classes": np.array([scores], np.float32)}
    found = apply(detector(size=(40.0, 20.0)), (BOXES, CLASSES), outputs)
    np.testing.assert_allclose(
        found,
        [[0, 0.9, 0, 0, 0.5, 0.2], [1, 0.7, 0, 0, 0.5, 0.25], [0, 0.5, 1, 0.5, 1.5, 0.75]],
        rtol=1e-6,
    )
    # 0.8 of the union is allowed where the limit says so; and fewer are given where fewer are asked for.
    assert len(apply(detector(max_overlap=0.81), (BOXES, CLASSES), outputs)) == 4
    assert len(apply(detector(most=1), (BOXES, CLASSES), outputs)) == 1
    assert len(apply(detector(min_score=0.95), (BOXES, CLASSES), outputs)) == 0


def test_of_equal_scores_the_earlier_candidate_is_the_better_one() -> None:
    outputs = {
        "boxes": np.array([[[0, 0, 2, 2], [0, 0, 2, 1.8]]], np.float32),
        "classes": np.full((1, 2, 2), 0.5, np.float32),
    }
    np.testing.assert_allclose(
        apply(detector(), (BOXES, CLASSES), outputs), [[0, 0.5, 0, 0, 2, 2]], rtol=1e-6
    )


@pytest.mark.parametrize(
    ("form", "four"), [("xyxy", [1, 2, 5, 8]), ("yxyx", [2, 1, 8, 5]), ("cxcywh", [3, 5, 4, 6])]
)
def test_forms_of_boxes(form: str, four: list[float]) -> None:
    outputs = {"boxes": np.array([[four]], np.float32), "classes": np.array([[[0, 1]]], np.float32)}
    found = apply(detector(box_format=form), (BOXES, CLASSES), outputs)
    np.testing.assert_array_equal(found, [[1, 1, 1, 2, 5, 8]])


def test_one_output_with_columns_a_background_and_logits() -> None:
    spec = TensorSpec(name="all", dtype="float32", shape=(1, 7, 2))
    columns = np.array([[[1, 0, 9], [1, 0, 9], [2, 0, 0], [2, 0, 0], [9, 0, 0], [0, 0, 0], [0, -9, 0]]])
    p = Postprocessing(
        kind="boxes", output="all", boxes="all", box_format="cxcywh", columns=True, activation="sigmoid"
    )
    check(p, (spec,))
    assert postprocessing.classes(p, (spec,)) == 3
    found = apply(
        Postprocessing(**{**{f: getattr(p, f) for f in p.__dataclass_fields__}, "background": 0}),
        (spec,),
        {"all": columns[:, :, :2].astype(np.float32)},
    )
    # Class 0 is nothing; of the second candidate's 0.5 and nearly 0 the first is left, and its box has no area.
    np.testing.assert_array_equal(found, [[1, 0.5, 0, 0, 2, 2], [1, 0.5, 0, 0, 0, 0]])


def test_a_source_that_ends_in_a_softmax_gets_no_second_one() -> None:
    source = [one([0.2, 0.3, 0.5]), one([1.0, 0.0, 0.0])]
    guessed = resolve(None, (SCORES,), SCORES, source)
    assert guessed is not None
    assert guessed.kind == "none"
    with pytest.raises(UsageError, match="softmax already"):
        resolve(Postprocessing(kind="softmax"), (SCORES,), SCORES, source)
    logits = resolve(None, (SCORES,), SCORES, [one([0.2, 0.3, 0.5]), one([3.0, -1.0, 0.5])])
    assert logits is not None
    assert logits.kind == "softmax"
    assert resolve(None, (SCORES,), None, source) is None


def test_what_may_be_either_is_asked_for() -> None:
    with pytest.raises(UsageError, match="do not add up") as raised:
        resolve(None, (SCORES,), SCORES, [one([0.9, 0.8, 0.1])])
    assert "--postprocess none" in raised.value.hint
    stated = resolve(Postprocessing(kind="none"), (SCORES,), SCORES, [one([0.9, 0.8, 0.1])])
    assert stated == Postprocessing(kind="none", output="scores")


def test_the_output_has_to_be_one_of_the_model() -> None:
    with pytest.raises(UnknownNameError, match="'score'"):
        resolve(Postprocessing(kind="sigmoid", output="score"), (SCORES,), None, [])
    with pytest.raises(UnknownNameError, match="output"):
        resolve(Postprocessing(kind="softmax"), (BOXES, CLASSES), None, [])
    for wrong in (detector(boxes="classes"), detector(background=2), detector(columns=True)):
        with pytest.raises(UsageError, match="boxes are"):
            check(wrong, (BOXES, CLASSES))


@pytest.mark.parametrize(
    "fields",
    [
        {"min_score": 2.0},
        {"max_overlap": -0.1},
        {"most": 0},
        {"most": 10**6},
        {"size": (0.0, 1.0)},
        {"size": (1.0, 1e-300)},
    ],
)
def test_impossible_numbers_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="postprocessing"):
        detector(**fields)


def test_what_the_command_line_takes(tmp_path: Path) -> None:
    assert read("auto") is None
    assert read("sigmoid") == Postprocessing(kind="sigmoid")
    file = tmp_path / "boxes.toml"
    file.write_text('kind = "boxes"\nboxes = "b"\noutput = "s"\nsize = [320, 640]\n')
    assert read(str(file)) == Postprocessing(kind="boxes", boxes="b", output="s", size=(320.0, 640.0))
    with pytest.raises(UnknownNameError, match="post-processing"):
        read("softmaks")
    file.write_text('kind = "boxes"\nbox = "b"\n')
    with pytest.raises(UnknownNameError, match="'box'"):
        read(str(file))
    with pytest.raises(UsageError, match="cannot read"):
        read(str(tmp_path / "none.toml"))


FEATURES = TensorSpec(name="features", dtype="float32", shape=(1, 8))


def test_a_declared_contract_names_the_output_of_the_labels() -> None:
    found = declared({"kind": "softmax"}, (FEATURES, SCORES), ("a", "b", "c"))
    assert found == Postprocessing(kind="softmax", output="scores")
    assert found.to_mapping() == {"kind": "softmax", "output": "scores"}
    assert declared({}, (FEATURES, SCORES)) is None
    boxes = {"kind": "boxes", "boxes": "boxes", "output": "classes", "size": [40, 20], "most": 7}
    named = declared(boxes, (BOXES, CLASSES), ("cat", "dog"))
    assert named is not None
    assert declared(named.to_mapping(), (BOXES, CLASSES)) == named


@pytest.mark.parametrize(
    ("table", "labels", "words"),
    [
        ({"kind": "softmaks"}, 0, "'softmaks'"),
        ({"kind": "softmax", "outptu": "scores"}, 0, "'outptu'"),
        ({"output": "scores"}, 0, "kind"),
        ({"kind": "softmax", "output": "score"}, 0, "'score'"),
        ({"kind": "softmax"}, 0, "output"),
        ({"kind": "softmax", "output": "features"}, 3, "scores of 8 classes, and there are 3 labels"),
        ({"kind": "boxes", "boxes": "features", "output": "scores"}, 0, "boxes are"),
        ({"kind": "softmax", "output": 3}, 0, "postprocessing"),
    ],
)
def test_a_declaration_of_another_model_is_refused(table: dict[str, object], labels: int, words: str) -> None:
    names = tuple(f"thing {i}" for i in range(labels))
    with pytest.raises((ConfigError, UsageError)) as raised:
        declared(table, (FEATURES, SCORES), names)
    assert words in str(raised.value)
    assert raised.value.hint


def test_probabilities_get_no_activation() -> None:
    distributions = [one([0.2, 0.3, 0.5]), one([1.0, 0.0, 0.0])]
    for kind in ("softmax", "sigmoid"):
        with pytest.raises(UsageError, match="softmax already"):
            postprocessing.refuse_second(Postprocessing(kind=kind, output="scores"), distributions)
    for rows in ([one([0.2, 0.3, 0.9])], [one([3.0, -1.0, 0.5])], []):
        postprocessing.refuse_second(Postprocessing(kind="softmax", output="scores"), rows)
    postprocessing.refuse_second(Postprocessing(kind="none", output="scores"), distributions)
    # Of a detector the corners do not count, and the scores of all candidates do.
    drawn = np.random.default_rng(0).normal(size=(1, 40, 2)).astype(np.float32)
    logits, shares = {"boxes": drawn, "classes": drawn}, {"boxes": drawn, "classes": 1 / (1 + np.exp(-drawn))}
    postprocessing.refuse_second(detector(activation="sigmoid"), [logits])
    postprocessing.refuse_second(detector(), [shares])
    with pytest.raises(UsageError, match="between 0 and 1 already"):
        postprocessing.refuse_second(detector(activation="sigmoid"), [shares])


def test_what_the_package_is_told_counts_more_and_a_contradiction_is_said() -> None:
    own = Postprocessing(kind="softmax", output="scores")
    assert preferred(None, own) == (own, "")
    assert preferred(own, None) == (own, "")
    assert preferred(Postprocessing(kind="softmax"), own) == (own, "")
    asked, note = preferred(Postprocessing(kind="sigmoid"), own)
    assert asked == Postprocessing(kind="sigmoid", output="scores")
    assert "kind = 'sigmoid' was asked for" in note
    assert "declares kind = 'softmax'" in note
    _, note = preferred(detector(min_score=0.5), detector())
    assert "min_score = 0.5" in note
    assert "max_overlap" not in note
