"""Folders of images by class: matched with what the source declares, never counted through."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgekit.errors import DataError
from edgekit.load.classes import FILE, Classes, numbers
from edgekit.load.samples import open_samples
from edgekit.types import TensorSpec

NAMES = ("zero", "one", "two", "three")
X = TensorSpec(name="x", dtype="float32", shape=(1, 3, 4, 4))


def found(
    folder: Path, folders: list[str], names: tuple[str, ...] = NAMES, *, required: bool = True
) -> dict[str, int]:
    return numbers(folder, folders, Classes(names=names, required=required))


def test_folders_are_the_classes_that_they_are_called(tmp_path: Path) -> None:
    assert found(tmp_path, ["one", "three", "zero"]) == {"one": 1, "three": 3, "zero": 0}


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("Golden_Retriever", "golden retriever"),
        ("golden-retriever", "Golden Retriever"),
        ("tench", "tench, Tinca tinca"),
        ("tench, Tinca tinca", "tench, Tinca tinca"),
        ("7", "7"),
    ],
)
def test_spelling_that_says_the_same(tmp_path: Path, folder: str, name: str) -> None:
    assert found(tmp_path, [folder], ("other", name)) == {folder: 1}


def test_a_name_that_two_classes_share_is_neither(tmp_path: Path) -> None:
    names = ("crane, bird", "crane, machine")
    with pytest.raises(DataError, match="'crane'"):
        found(tmp_path, ["crane"], names)
    assert found(tmp_path, ["bird", "machine"], names) == {"bird": 0, "machine": 1}


def test_numbers_are_classes(tmp_path: Path) -> None:
    assert found(tmp_path, ["0", "3"]) == {"0": 0, "3": 3}
    assert found(tmp_path, ["000", "012"], ()) == {"000": 0, "012": 12}
    assert found(tmp_path, ["8", "9"], tuple("9876543210")) == {"8": 1, "9": 0}


@pytest.mark.parametrize(
    ("folders", "names", "message", "hint"),
    [
        (["one", "thre"], NAMES, "'thre', which is no class", "three"),
        (["0", "4"], NAMES, "'4'; the model has 4 classes, 0 to 3", "from 0"),
        (["0", "one", "extra"], NAMES, "'0'", "from 0"),
        (["cat", "dog"], (), "does not say which class", "labels"),
        (["²"], (), "does not say which class", "labels"),
    ],
)
def test_folders_that_are_no_class(
    tmp_path: Path, folders: list[str], names: tuple[str, ...], message: str, hint: str
) -> None:
    with pytest.raises(DataError, match=message) as error:
        found(tmp_path, folders, names)
    assert error.value.exit_code == 2
    assert hint in error.value.hint
    assert found(tmp_path, folders, names, required=False) == {}


def test_a_list_of_classes_beside_the_folders(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("dog\n\n cat \n")
    assert found(tmp_path, ["cat", "dog"], ()) == {"cat": 1, "dog": 0}
    assert found(tmp_path, ["one"]) == {"one": 1}  # what the source declares comes first
    (tmp_path / FILE).write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="UTF-8"):
        found(tmp_path, ["cat"], ())


def test_a_folder_that_is_missing_shifts_nothing(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    for name in ("two", "three", "zero"):
        (tmp_path / name).mkdir()
        image.new("RGB", (4, 4), (9, 9, 9)).save(tmp_path / name / "1.png")
    image.new("RGB", (4, 4), (9, 9, 9)).save(tmp_path / "loose.png")
    classes = Classes(names=NAMES, required=True)
    samples = open_samples(str(tmp_path), (X,), preprocessing={"scale": 1.0}, classes=classes)
    by_file = sorted(["two", "three", "zero", "loose"])
    assert by_file == ["loose", "three", "two", "zero"]
    assert [s.label for s in samples] == [None, 3, 2, 0]
    assert samples.labelled
    assert np.array_equal(next(iter(samples)).inputs["x"][0, :, 0, 0], [9, 9, 9])
