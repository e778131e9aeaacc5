"""Arrays of ``.npz`` files that stay in the file: what is read of them, and what becomes of damage and of writes."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from edgekit.errors import DataError
from edgekit.load.array_files import read_npz
from edgekit.load.samples import open_samples
from edgekit.types import TensorSpec

SPECS = (TensorSpec(name="x", dtype="float32", shape=("n", 3, 5)),)


def drawn(seed: int = 0, shape: tuple[int, ...] = (6, 3, 5)) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
def test_mapped_or_not_the_arrays_are_the_same(tmp_path: Path, save: object, order: str) -> None:
    arrays = {
        "x": np.asarray(drawn(), order=order),
        "empty": np.zeros((0, 4), np.int64),
        "flag": np.asarray(True),
        "wide": drawn(1).astype(">f8"),
    }
    save(tmp_path / "data.npz", **arrays)
    for mapped in (True, False):
        found = read_npz(tmp_path / "data.npz", mapped=mapped)
        assert list(found) == list(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(found[name], array)
            assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)


def test_samples_lie_where_compiled_code_takes_them_and_may_be_written_to(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, x=drawn())
    before = path.read_bytes()
    for index, sample in enumerate(open_samples(str(path), SPECS)):
        assert sample.inputs["x"].flags.aligned
        assert sample.inputs["x"].flags.c_contiguous
        np.testing.assert_array_equal(sample.inputs["x"], drawn()[index : index + 1])
        sample.inputs["x"][...] = 0  # a user's metric or preprocessing may
    assert path.read_bytes() == before
    np.testing.assert_array_equal(next(iter(open_samples(str(path), SPECS))).inputs["x"], drawn()[:1])


def test_every_flipped_byte_of_an_array_is_found_and_again_once_it_is_mended(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, x=drawn(shape=(2, 3, 5)))
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        (member,) = archive.infolist()
    start = len(whole.split(b"\x93NUMPY")[0])
    for at in range(start, start + member.file_size, 7):
        damaged = bytearray(whole)
        damaged[at] ^= 0x10
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"data\.npz"):
            open_samples(str(path), SPECS)
    path.write_bytes(whole)
    assert len(list(open_samples(str(path), SPECS))) == 2


def test_an_archive_that_lies_about_where_its_arrays_end(tmp_path: Path) -> None:
    record = io.BytesIO()
    np.save(record, drawn())
    path = tmp_path / "data.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", record.getvalue())
    whole = path.read_bytes()
    size = len(record.getvalue()).to_bytes(4, "little")
    for claimed in (len(whole), 1 << 29):  # behind the end of the file
        path.write_bytes(whole.replace(size, claimed.to_bytes(4, "little")))
        with pytest.raises(DataError, match=r"data\.npz"):
            read_npz(path, mapped=True)
    extra = whole.find(b"x.npy") - 2  # the length of the extra field in the member's own header
    path.write_bytes(whole[:extra] + b"\xff\xff" + whole[extra + 2 :])
    with pytest.raises(DataError, match=r"data\.npz"):
        read_npz(path, mapped=True)


def test_data_in_front_of_the_archive_moves_its_arrays(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, x=drawn())
    path.write_bytes(b"#!/bin/sh\n" + path.read_bytes())
    np.testing.assert_array_equal(read_npz(path, mapped=True)["x"], drawn())
