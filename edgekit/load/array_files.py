"""``.npy`` and ``.npz`` files that nobody vouches for: read without pickles, and damage is a typed error that names the
file."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from edgekit.core.files import DAMAGED_ZIP
from edgekit.errors import DataError, EdgekitError, first_line

if TYPE_CHECKING:
    from edgekit.types import Array

_BOMB_BYTES = 1 << 30
_BOMB_RATIO = 200
"""Beyond both a member is no data: noise does not compress at all, zeros by a factor of 1,000."""

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
"""By version. The third is for names of fields in other scripts, and arrays of fields are no tensors."""

_HINT = "save plain arrays with numpy.save or numpy.savez"


def read_npy(path: Path) -> Array:
    """The array of a ``.npy`` file, mapped into memory. Raises :class:`DataError`."""
    try:
        with path.open("rb") as file:
            _refuse_claims(file, path.stat().st_size)
        array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    except DAMAGED_ZIP as error:
        raise _unreadable(path, error, DataError, _HINT) from error
    return array


def read_npz(path: Path, *, kind: type[EdgekitError] = DataError, hint: str = _HINT) -> dict[str, Array]:
    """The arrays of a ``.npz`` file by name. Raises ``kind``, for what unpacks to gigabytes of nothing, too."""
    try:
        refuse_bomb(path)
        with zipfile.ZipFile(path) as archive:
            return {
                member.filename.removesuffix(".npy"): _member(archive, member)
                for member in archive.infolist()
            }
    except DAMAGED_ZIP as error:
        raise _unreadable(path, error, kind, hint) from error


def _member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Array:
    with archive.open(member) as file:
        return read_record(file, member.file_size)


def read_record(file: IO[bytes], size: int) -> Array:
    """The next ``.npy`` record of a file of ``size`` bytes.

    Raises ``ValueError`` where it holds objects, or its header is damaged or claims what is not there.
    """
    start = file.tell()
    _refuse_claims(file, size)
    file.seek(start)
    array: Array = np.lib.format.read_array(file, allow_pickle=False)
    return array


def _refuse_claims(file: IO[bytes], size: int) -> None:
    """Before anything is allocated: a shape of -1 would be all that is left, terabytes are only claimed, and numpy
    divides by the size of a type that has none."""
    try:
        version = np.lib.format.read_magic(file)
        header = _HEADERS[version](file)
    # numpy parses a header of Python literals: what a damaged one raises is nowhere listed.
    except Exception as error:
        raise ValueError(f"its header is damaged: {first_line(error)}") from error
    shape, _, dtype = header
    if dtype.kind in "OV" or not dtype.itemsize:
        raise ValueError(f"it holds no numbers but {str(dtype)[:80]}")
    sizes = all(
        type(d) is int and d >= 0 for d in shape
    )  # True is a number to numpy's reader of headers only
    if not sizes or math.prod(shape) * dtype.itemsize > size - file.tell():
        raise ValueError(f"it claims the shape {str(shape)[:80]} in {size:,} bytes")


def refuse_bomb(path: Path) -> None:
    """Raise :class:`ValueError` where a member of the archive, or all together, declare far more bytes than can be in
    it as data."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except DAMAGED_ZIP as error:
        raise ValueError(f"it is no archive of arrays: {first_line(error)}") from error
    for member in members:
        if member.file_size > max(_BOMB_BYTES, _BOMB_RATIO * member.compress_size):
            raise ValueError(f"{member.filename} unpacks to {member.file_size:,} bytes")
    whole = sum(member.file_size for member in members)
    if whole > max(_BOMB_BYTES, _BOMB_RATIO * path.stat().st_size):
        raise ValueError(f"it unpacks to {whole:,} bytes")


def _unreadable(path: Path, error: Exception, kind: type[EdgekitError], hint: str) -> EdgekitError:
    return kind(f"{path} cannot be read: {first_line(error)}", hint=hint)
