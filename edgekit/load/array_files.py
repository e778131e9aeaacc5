"""``.npy`` and ``.npz`` files that nobody vouches for: read without pickles, and damage is a typed error that names the
file."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgekit.core.files import DAMAGED_ZIP
from edgekit.errors import DataError, EdgekitError, first_line

if TYPE_CHECKING:
    from edgekit.types import Array

_BOMB_BYTES = 1 << 30
_BOMB_RATIO = 200
"""Beyond both a member is no data: noise does not compress at all, zeros by a factor of 1,000."""

_HINT = "save plain arrays with numpy.save or numpy.savez"


def read_npy(path: Path) -> Array:
    """The array of a ``.npy`` file, mapped into memory. Raises :class:`DataError`."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise ValueError("it is an archive of arrays")  # noqa: TRY004 - the file is wrong, not a type of ours
    # numpy parses a header of Python literals: what a damaged one raises is nowhere listed.
    except Exception as error:
        raise _unreadable(path, error, DataError, _HINT) from error
    return array


def read_npz(path: Path, *, kind: type[EdgekitError] = DataError, hint: str = _HINT) -> dict[str, Array]:
    """The arrays of a ``.npz`` file by name. Raises ``kind``, for what unpacks to gigabytes of nothing, too."""
    try:
        refuse_bomb(path)
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except Exception as error:  # as above; and what zlib and zipfile raise
        raise _unreadable(path, error, kind, hint) from error


def refuse_bomb(path: Path) -> None:
    """Raise :class:`ValueError` where a member of the archive declares far more bytes than it can hold as data."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except DAMAGED_ZIP as error:
        raise ValueError(f"it is no archive of arrays: {first_line(error)}") from error
    for member in members:
        if member.file_size > max(_BOMB_BYTES, _BOMB_RATIO * member.compress_size):
            raise ValueError(f"{member.filename} unpacks to {member.file_size:,} bytes")


def _unreadable(path: Path, error: Exception, kind: type[EdgekitError], hint: str) -> EdgekitError:
    return kind(f"{path} cannot be read: {first_line(error)}", hint=hint)
