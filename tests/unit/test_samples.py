from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

from edgekit.errors import DataError, FactoryError, SourceError
from edgekit.load.samples import from_iterable, open_samples
from edgekit.preprocess.contract import Preprocessing
from edgekit.types import Sample, TensorSpec

X = TensorSpec(name="x", dtype="float32", shape=(1, 3))
IDS = TensorSpec(name="ids", dtype="int64", shape=("batch", "seq"))
MASK = TensorSpec(name="mask", dtype="int64", shape=("batch", "seq"))
A = TensorSpec(name="a", dtype="float32", shape=(1, 2))
B = TensorSpec(name="b", dtype="float32", shape=(1, 2))
ROW = np.array([[1.0, 2.0, 3.0]], np.float32)


def write(folder: Path, text: str) -> str:
    path = folder / "data.py"
    path.write_text(text)
    return f"{path}:data"


def labels(samples: object) -> list[object]:
    return [s.label for s in samples]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("item", "label"),
    [
        (ROW, None),
        ((ROW, 7), 7),
        ((ROW, np.int64(7)), 7),
        ((ROW, np.array(0.5)), 0.5),
        ({"x": ROW}, None),
        (({"x": ROW}, 7), 7),
        ({"x": ROW, "label": 7}, 7),
        ((ROW,), None),
        ([1.0, 2.0, 3.0], None),
        (([1.0, 2.0, 3.0], 7), 7),
        (ROW[0], None),
        (ROW.astype(np.float64), None),
        (Sample(inputs={"x": ROW}, label=7), 7),
    ],
)
def test_one_input_forms(item: object, label: object) -> None:
    (sample,) = from_iterable([item], (X,))
    assert sample.inputs["x"].dtype == np.float32
    np.testing.assert_array_equal(sample.inputs["x"], ROW)
    assert sample.label == label


def test_two_tuple_of_arrays_is_two_inputs_for_a_model_of_two() -> None:
    a, b = np.zeros((1, 2), np.float32), np.ones((1, 2), np.float32)
    (plain,) = from_iterable([(a, b)], (A, B))
    (labelled,) = from_iterable([((a, b), 1)], (A, B))
    (triple,) = from_iterable([(a, b, 1)], (A, B))
    assert plain.label is None
    assert labelled.label == triple.label == 1
    for sample in (plain, labelled, triple):
        np.testing.assert_array_equal(sample.inputs["b"], b)


def test_batch_is_split_for_a_model_of_batch_one() -> None:
    batch = np.arange(12, dtype=np.float32).reshape(4, 3)
    samples = from_iterable([(batch, np.array([5, 6, 7, 8]))], (X,))
    assert len(samples) == 4
    assert labels(samples) == [5, 6, 7, 8]
    np.testing.assert_array_equal(list(samples)[2].inputs["x"], batch[2:3])


def test_dynamic_batch_is_split_too_but_a_dynamic_sequence_is_not() -> None:
    ids = np.ones((2, 5), np.int64)
    assert len(from_iterable([{"ids": ids, "mask": ids}], (IDS, MASK))) == 2
    frames = TensorSpec(name="x", dtype="float32", shape=("time", 3))
    (sample,) = from_iterable([np.zeros((9, 3), np.float32)], (frames,))
    assert sample.inputs["x"].shape == (9, 3)


def test_batch_with_a_single_label_is_refused() -> None:
    with pytest.raises(DataError, match="batch of 4"):
        from_iterable([(np.zeros((4, 3), np.float32), 1)], (X,))


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (np.zeros((1, 4), np.float32), r"sample 1: 'x' has the shape \(1, 4\)"),
        (np.zeros((2, 2, 3), np.float32), "has the shape"),
        (np.array([[1, np.nan, 0]], np.float32), "sample 1: 'x' holds NaN"),
        (np.array([[1, np.inf, 0]], np.float32), "infinite"),
        (np.zeros((1, 3), np.uint8), "is uint8, the model takes float32"),
        (np.zeros((1, 3), np.complex64), "is complex64"),
        ({"y": ROW}, "lacks the input 'x'"),
        ((ROW, ROW, ROW), "3 arrays"),
        (np.array([["a", "b", "c"]]), "not of numbers"),
        ([[1.0, 2.0], [3.0]], "ragged"),
        ("text", "not of numbers"),
        (None, "not of numbers"),
    ],
)
def test_bad_items_name_the_sample(item: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        len(from_iterable([ROW, item], (X,)))


def test_empty_and_zero_sized() -> None:
    with pytest.raises(DataError, match="no sample"):
        from_iterable([], (X,))
    dynamic = TensorSpec(name="ids", dtype="int64", shape=(1, "seq"))
    with pytest.raises(DataError, match="empty"):
        from_iterable([np.zeros((1, 0), np.int64)], (dynamic,))


def test_axes_of_one_name_have_one_size() -> None:
    ids, mask = np.ones((1, 4), np.int64), np.ones((1, 5), np.int64)
    with pytest.raises(DataError, match="'mask' has the shape"):
        from_iterable([(ids, mask)], (IDS, MASK))


def test_integers_convert_only_without_loss() -> None:
    small = TensorSpec(name="x", dtype="int32", shape=(1, 2))
    (sample,) = from_iterable([np.array([[1, 2]], np.int64)], (small,))
    assert sample.inputs["x"].dtype == np.int32
    with pytest.raises(DataError, match="outside int32"):
        from_iterable([np.array([[1, 2**40]], np.int64)], (small,))
    flags = TensorSpec(name="x", dtype="bool", shape=(1, 2))
    (sample,) = from_iterable([np.array([[1, 0]], np.int64)], (flags,))
    assert sample.inputs["x"].tolist() == [[True, False]]


def test_generators_are_kept_and_iterated_again() -> None:
    def generate():  # type: ignore[no-untyped-def]
        for i in range(3):
            yield ROW * i, i

    samples = from_iterable(generate(), (X,))
    assert labels(samples) == labels(samples) == [0, 1, 2]
    again = from_iterable(generate, (X,))
    assert samples.fingerprint == again.fingerprint
    assert again.labelled


@pytest.mark.parametrize(
    "label", [{"boxes": [1, 2]}, [{"a": 1}], "cat", [[0, 1], [2]], np.arange(4)], ids=str
)
def test_labels_of_every_kind_outlive_a_generator(label: object) -> None:
    samples = from_iterable(iter([(ROW, label), (ROW, label)]), (X,))
    for found in labels(samples) + labels(samples):
        assert np.array_equal(found, label) if isinstance(label, np.ndarray) else found == label


def test_fingerprint_follows_content_and_order() -> None:
    one = from_iterable([ROW, ROW * 2], (X,)).fingerprint
    assert one == from_iterable([ROW, ROW * 2], (X,)).fingerprint
    assert one != from_iterable([ROW * 2, ROW], (X,)).fingerprint
    assert one != from_iterable([(ROW, 1), (ROW * 2, 1)], (X,)).fingerprint


def test_labelled_where_any_sample_has_a_label() -> None:
    assert from_iterable([ROW, (ROW, 1)], (X,)).labelled
    assert not from_iterable([ROW, (ROW, None)], (X,)).labelled


def test_limit() -> None:
    assert len(from_iterable([ROW] * 9, (X,), limit=4)) == 4


def test_what_cannot_be_iterated_is_named() -> None:
    with pytest.raises(SourceError, match="a int, which cannot be iterated"):
        from_iterable(3, (X,))  # type: ignore[arg-type]


def test_map_style_data_set() -> None:
    class Set:
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int):  # type: ignore[no-untyped-def]
            return ROW, index

    assert labels(from_iterable(Set(), (X,))) == [0, 1, 2]  # type: ignore[arg-type]


def test_callable_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "values.py").write_text("N = 3\n")
    text = write(
        tmp_path,
        "import numpy as np\ndef data():\n    import values\n    for i in range(values.N):\n"
        "        yield np.full((1, 3), i, np.float32), i\n",
    )
    samples = open_samples(text, (X,))
    assert labels(samples) == labels(samples) == [0, 1, 2]


def test_unseeded_random_data_is_the_same_each_time(tmp_path: Path) -> None:
    text = write(
        tmp_path, "import numpy as np\ndef data():\n    yield np.random.randn(1, 3).astype('float32')\n"
    )
    assert open_samples(text, (X,)).fingerprint == open_samples(text, (X,)).fingerprint


def test_callable_that_raises_shows_only_the_users_frames(tmp_path: Path) -> None:
    text = write(tmp_path, "def data():\n    yield 1 / 0\n")
    with pytest.raises(FactoryError) as caught:
        open_samples(text, (X,))
    assert "data.py" in caught.value.user_traceback
    assert "ZeroDivisionError" in caught.value.user_traceback
    assert "usercode.py" not in caught.value.user_traceback


def test_missing_callable_offers_the_nearest(tmp_path: Path) -> None:
    text = write(tmp_path, "def date():\n    yield 1\n")
    with pytest.raises(SourceError) as caught:
        open_samples(text, (X,))
    assert "date" in caught.value.hint


def test_directory_of_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=ROW, label=3)
    np.savez(tmp_path / "b.npz", ROW * 2)
    np.save(tmp_path / "c.npy", ROW * 3)
    samples = open_samples(str(tmp_path), (X,))
    assert labels(samples) == [3, None, None]
    assert [s.inputs["x"][0, 0] for s in samples] == [1, 2, 3]


def test_pickles_are_not_loaded(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([object()]), allow_pickle=True)
    with pytest.raises(DataError, match=r"a\.npy cannot be read"):
        open_samples(str(tmp_path), (X,))


def test_directory_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="neither"):
        open_samples(str(tmp_path), (X,))
    with pytest.raises(DataError, match="no data at"):
        open_samples(str(tmp_path / "missing"), (X,))


def images(folder: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    for name, colour in (("cat", (255, 0, 0)), ("dog", (0, 255, 0))):
        (folder / name).mkdir()
        image.new("RGB", (8, 6), colour).save(folder / name / "1.png")


def test_directory_of_images(tmp_path: Path) -> None:
    images(tmp_path)
    spec = TensorSpec(name="x", dtype="float32", shape=(1, 3, 4, 4))
    samples = open_samples(str(tmp_path), (spec,), preprocessing={"mean": [0.5], "std": [0.5]})
    cat, dog = samples
    assert (cat.label, dog.label) == (None, None)
    np.testing.assert_array_equal(cat.inputs["x"][0, :, 0, 0], [1, -1, -1])
    channels_last = TensorSpec(name="x", dtype="float32", shape=(1, 4, 4, 3))
    (cat, _) = open_samples(str(tmp_path), (channels_last,), preprocessing={"scale": 1.0, "color": "bgr"})
    np.testing.assert_array_equal(cat.inputs["x"][0, 0, 0], [0, 0, 255])


def test_images_without_a_contract_are_refused(tmp_path: Path) -> None:
    images(tmp_path)
    spec = TensorSpec(name="x", dtype="float32", shape=(1, 3, 4, 4))
    with pytest.raises(DataError, match="how the model expects them"):
        open_samples(str(tmp_path), (spec,))


def test_damaged_image_is_named(tmp_path: Path) -> None:
    images(tmp_path)
    (tmp_path / "dog" / "1.png").write_bytes(b"no image")
    spec = TensorSpec(name="x", dtype="float32", shape=(1, 3, 4, 4))
    with pytest.raises(DataError, match=r"1\.png cannot be read"):
        len(open_samples(str(tmp_path), (spec,), preprocessing={"scale": 1.0}))


def test_a_fixed_shape_is_checked() -> None:
    fixed = TensorSpec(name="ids", dtype="int64", shape=(1, 8))
    with pytest.raises(DataError, match=r"\(1, 5\)"):
        from_iterable([np.ones((1, 5), np.int64)], (fixed,))


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_a_row_does_not_hold_its_data_set(kind: str) -> None:
    rows = np.arange(3000, dtype=np.float32).reshape(1000, 3)
    data = rows if kind == "numpy" else pytest.importorskip("torch").from_numpy(rows)
    (sample,) = from_iterable([data[1:2]], (X,))
    row = sample.inputs["x"]
    assert not np.shares_memory(row, rows)
    np.testing.assert_array_equal(row, [[3.0, 4.0, 5.0]])


def test_an_array_of_its_own_is_not_copied() -> None:
    (sample,) = from_iterable([ROW], (X,))
    assert np.shares_memory(sample.inputs["x"], ROW)


def test_pictures_beside_arrays_are_not_chosen_between(tmp_path: Path) -> None:
    images(tmp_path)
    np.save(tmp_path / "dog" / "stray.npy", ROW)
    with pytest.raises(DataError, match=r"pictures and arrays \(cat/1\.png, dog/stray\.npy\)") as error:
        open_samples(str(tmp_path), (X,))
    assert "one kind" in error.value.hint


def test_arrays_are_known_by_their_suffix_in_any_case(tmp_path: Path) -> None:
    with (tmp_path / "row.NPY").open("wb") as file:
        np.save(file, ROW)
    (sample,) = open_samples(str(tmp_path), (X,))
    np.testing.assert_array_equal(sample.inputs["x"], ROW)


@pytest.mark.parametrize("preprocessing", [{}, {"tokenizer": "x"}])
def test_the_hint_for_pictures_names_keys_that_there_are(
    tmp_path: Path, preprocessing: dict[str, object]
) -> None:
    images(tmp_path)
    spec = TensorSpec(name="x", dtype="float32", shape=(1, 3, 4, 4))
    with pytest.raises(DataError) as error:
        open_samples(str(tmp_path), (spec,), preprocessing=preprocessing)
    named = re.search(r"\(?(resize[a-z, ]+?)(?: and ([a-z]+))?(?:\)|, or)", error.value.hint)
    assert named is not None
    keys = {f.name for f in dataclasses.fields(Preprocessing)}
    assert {*named[1].split(", "), *filter(None, [named[2]])} <= keys
