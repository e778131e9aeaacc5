"""``.npy`` and ``.npz`` files that nobody vouches for: read without pickles, and damage is a typed error that names the
file.

The format: numpy's NEP 1. Its header is a Python literal, which numpy's own reader parses where no other thread may
(see :mod:`edgekit.core.literal`).
"""

from __future__ import annotations

import functools
import math
import os
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

import numpy as np

from edgekit.core.files import DAMAGED_ZIP
from edgekit.core.foreign import attempted
from edgekit.core.literal import literal
from edgekit.errors import DataError, EdgekitError, first_line

if TYPE_CHECKING:
    from edgekit.types import Array

_BOMB_BYTES = 1 << 30
_BOMB_RATIO = 200
"""Beyond both a member is no data: noise does not compress at all, zeros by a factor of 1,000."""

_LENGTHS = {(1, 0): "<H", (2, 0): "<I"}
"""How each version writes the length of its header. The third is for names of fields in other scripts, and arrays of
fields are no tensors."""
_MOST_HEADER = 10_000
_FIELDS = {"descr", "fortran_order", "shape"}

_LOCAL_BYTES = 30
"""Of a member's header in the archive (APPNOTE.TXT 4.3.7): the lengths of its name and extra field come last."""
_BLOCK_BYTES = 1 << 20

_HINT = "save plain arrays with numpy.save or numpy.savez"


def read_npy(path: Path) -> Array:
    """The array of a ``.npy`` file, mapped into memory. Raises :class:`DataError`."""
    try:
        with path.open("rb") as file:
            header = _header(file, path.stat().st_size)
            offset = file.tell()
        if not header.count:  # nothing cannot be mapped
            return np.zeros(header.shape, header.dtype)
        return np.memmap(path, header.dtype, "r", offset, header.shape, header.order)
    except DAMAGED_ZIP as error:
        raise _unreadable(path, error, DataError, _HINT) from error


def read_npz(
    path: Path, *, mapped: bool = False, kind: type[EdgekitError] = DataError, hint: str = _HINT
) -> dict[str, Array]:
    """The arrays of a ``.npz`` file by name.

    With ``mapped`` those that are stored as they are stay in the file, and only what is looked at is read. Their
    addresses may then not be multiples of their items' sizes, as compiled code expects it: copy what it is given.

    Raises ``kind``, for what unpacks to gigabytes of nothing, too.
    """
    try:
        refuse_bomb(path)
        with zipfile.ZipFile(path) as archive:
            return {
                member.filename.removesuffix(".npy"): _mapped(path, member)
                if mapped and _is_plain(archive, member)
                else _member(archive, member)
                for member in archive.infolist()
            }
    except DAMAGED_ZIP as error:
        raise _unreadable(path, error, kind, hint) from error


def _is_plain(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bool:
    """Whether the member's bytes are in the file as they are. Raises for what is encrypted, and for a name that is not
    the one that the archive lists."""
    archive.open(member).close()
    return member.compress_type == zipfile.ZIP_STORED


def _member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Array:
    with archive.open(member) as file:
        return read_record(file, member.file_size)


def _mapped(path: Path, member: zipfile.ZipInfo) -> Array:
    """A member that is stored as it is, mapped into memory: what is looked at is read, and may be written to without
    the file's knowledge. Its checksum is taken once a process, for as long as the file stays as it is."""
    with path.open("rb") as file:
        file.seek(member.header_offset)
        start = member.header_offset + _LOCAL_BYTES + sum(struct.unpack("<26xHH", file.read(_LOCAL_BYTES)))
        end = start + member.file_size
        status = os.fstat(file.fileno())
        if end > status.st_size:
            raise zipfile.BadZipFile(f"{member.filename} ends behind the end of the file")
        stamp = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev)
        if _checksum(path, stamp, start, member.file_size) != member.CRC:
            raise zipfile.BadZipFile(f"bad CRC-32 of {member.filename}")
        file.seek(start)
        header = _header(file, end)
        if not header.count:
            return np.zeros(header.shape, header.dtype)
        return np.memmap(file, header.dtype, "c", file.tell(), header.shape, header.order)


@functools.lru_cache(maxsize=4096)
def _checksum(path: Path, stamp: tuple[int, ...], start: int, size: int) -> int:
    """The CRC-32 of a part of a file that is as ``stamp`` says."""
    del stamp
    crc = 0
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        while size and (block := file.read(min(size, _BLOCK_BYTES))):
            crc, size = zlib.crc32(block, crc), size - len(block)
    return crc


def read_record(file: IO[bytes], size: int) -> Array:
    """The next ``.npy`` record of a file of ``size`` bytes.

    Raises ``ValueError`` where it holds objects, or its header is damaged or claims what is not there.
    """
    header = _header(file, size)
    data = bytearray(file.read(header.count * header.dtype.itemsize))
    return np.frombuffer(data, header.dtype, header.count).reshape(header.shape, order=header.order)


@dataclass(frozen=True, kw_only=True)
class _Header:
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    order: Literal["C", "F"]

    @property
    def count(self) -> int:
        return math.prod(self.shape)


def _described(file: IO[bytes]) -> tuple[dict[str, Any], np.dtype[Any]]:
    found = _told(_header_text(file))
    return found, np.dtype(found["descr"])  # type: ignore[call-overload]  # whatever it is, numpy refuses it


def _header(file: IO[bytes], size: int) -> _Header:
    """The header of the next record, the file then being at its data. Before anything is allocated: a shape of -1 would
    be all that is left, terabytes are only claimed, and numpy divides by the size of a type that has none."""
    read = attempted(lambda: _described(file))  # a literal of anybody's
    if isinstance(read, Exception):
        raise ValueError(f"its header is damaged: {first_line(read)}") from read  # noqa: TRY004
    found, dtype = read
    shape = found["shape"]
    if dtype.kind in "OV" or not dtype.itemsize:
        raise ValueError(f"it holds no numbers but {str(dtype)[:80]}")
    # True is a number, too.
    if not isinstance(shape, tuple) or not all(type(d) is int and d >= 0 for d in shape):
        raise ValueError(f"it claims the shape {str(shape)[:80]}")
    if math.prod(shape) * dtype.itemsize > size - file.tell():
        raise ValueError(f"it claims the shape {str(shape)[:80]} in {size:,} bytes")
    return _Header(dtype=dtype, shape=shape, order="F" if found["fortran_order"] else "C")


def _header_text(file: IO[bytes]) -> str:
    form = _LENGTHS[np.lib.format.read_magic(file)]
    (length,) = struct.unpack(form, file.read(struct.calcsize(form)))
    if length > _MOST_HEADER:
        raise ValueError(f"a header of {length:,} bytes")
    text = file.read(length).decode("latin1")
    if len(text) != length:
        raise ValueError("the file ends in it")
    return text


def _told(text: str) -> dict[str, object]:
    found = literal(text.strip())
    if not isinstance(found, dict) or set(found) != _FIELDS or not isinstance(found["fortran_order"], bool):
        raise ValueError(f"it does not say {', '.join(sorted(_FIELDS))}")
    return found


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
