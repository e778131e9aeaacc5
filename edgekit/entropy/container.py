"""Reading ``.ekz``: one file that gives back an artifact, or one of its tensors, bit for bit.

Needs Python and numpy only. Nothing is allocated before its declared size was checked, every block is
checked by CRC-32 before it is decoded, every file by sha256 after.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from edgekit.entropy import general
from edgekit.entropy.forms import Form, ordered, pack_elements, ranks, unordered, unpack_elements, zero_index
from edgekit.entropy.groups import decode as decode_group
from edgekit.entropy.index import DIGEST, Index, TensorEntry
from edgekit.entropy.rans import Ints
from edgekit.entropy.wire import Reader, malformed
from edgekit.errors import ContainerError, UnknownNameError

if TYPE_CHECKING:
    from edgekit.types import Array

MAGIC = b"EKZ\x01"
MAX_INDEX = 1 << 28
MAX_OUTPUT = 1 << 36
_HEAD = 64
_MAX_RATIO = 1 << 18
_GROUPS_KEPT = 6


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where a run of elements lies: elements ``start`` to ``start + count`` of a group."""

    group: int
    start: int
    count: int


class Container:
    """An opened container. Tensors by name; memory: the index, and the groups in use.

    Raises :class:`~edgekit.errors.ContainerError` for anything that an encoder would not have written.
    """

    def __init__(self, path: Path, *, max_output: int = MAX_OUTPUT) -> None:
        self.path = path
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise ContainerError(f"{path} is no file", hint="name a .ekz file")
        with ExitStack() as opened:  # closed again where it is not a container
            self._file: BinaryIO = opened.enter_context(path.open("rb"))
            self._open(max_output)
            opened.pop_all()

    def __enter__(self) -> Container:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the tensors, in the order of the files."""
        return tuple(t.name for t in self.index.tensors)

    def __getitem__(self, name: str) -> Array:
        """One tensor as a numpy array. 4-bit integers come as (u)int8, bfloat16 as its uint16 pattern."""
        for number, entry in enumerate(self.index.tensors):
            if entry.name == name:
                return _to_array(self.raw(number), entry)
        raise UnknownNameError("tensor", name, self.names, where=str(self.path))

    def raw(self, number: int) -> bytes:
        """The stored bytes of tensor ``number`` of the index."""
        # Neighbouring tensors share groups: random access would decode one group over and over.
        while len(self._decoded) > _GROUPS_KEPT:
            del self._decoded[next(iter(self._decoded))]
        return b"".join(self._tensor(number))

    def files(self) -> Iterator[tuple[str, Iterator[bytes]]]:
        """Each file's path with its contents in pieces; the sha256 is checked when they end."""
        loose = _Loose(self._loose_bytes())
        at = 0
        for entry in self.index.files:
            tensors = range(at, at + entry.tensors)
            at += entry.tensors
            yield entry.path, self._contents(entry.size, entry.digest, tensors, loose)

    def _open(self, max_output: int) -> None:
        self._size = self.path.stat().st_size
        head = Reader(self._file.read(_HEAD))
        if bytes(head.take(min(4, head.left))) != MAGIC:
            raise malformed("it does not begin with EKZ and version 1")
        codec, size = head.uint(255), head.uint(MAX_INDEX)
        raw, index = head.uint(general.MAX_CHUNK * 8), head.uint(MAX_INDEX)
        crc = int.from_bytes(head.take(4), "little")
        # The index of an empty file expands more than anything else, hence the floor.
        if index > raw or raw > max(1 << 16, self._size * 4096):
            raise malformed("the index is larger than it can be")
        first = self._read(head.at, size, crc)
        if raw > general.MAX_CHUNK:
            raise malformed("the index is too large")
        first_raw = general.decode(codec, first, raw)
        self.index = Index.from_bytes(first_raw[:index])
        self._inline = first_raw[index:]
        total = self.index.total
        if total > max_output:
            raise ContainerError(
                f"{self.path.name} would unpack to {total} bytes, above the limit of {max_output}",
                hint="if the file is trusted, allow it with a higher limit",
            )
        # No coder here makes more of a byte: it is a bomb, whatever limit the user gave.
        if total > self._size * _MAX_RATIO:
            raise malformed(f"{self._size} bytes cannot hold {total}")
        self._offsets = self._layout(head.at + size)
        self._places = self._find_places()
        self._decoded: dict[int, tuple[Array, Array]] = {}
        self._last_use = self._find_last_use()

    def _layout(self, at: int) -> list[int]:
        """Offsets of all blocks, groups first; the file must end with the last one."""
        offsets = []
        for block in (*self.index.groups, *self.index.chunks):
            offsets.append(at)
            at += block.size
        if at != self._size:
            raise malformed(f"the file has {self._size} bytes instead of {at}")
        # Every byte of every file is accounted for before the first is decoded.
        if len(self._inline) + sum(c.raw for c in self.index.chunks) != self.index.loose:
            raise malformed("the bytes outside tensors do not add up")
        return offsets

    def _find_places(self) -> list[tuple[list[_Place], _Place | None]]:
        filled = [0] * len(self.index.groups)

        def place(group: int, count: int) -> _Place:
            start = filled[group]
            filled[group] += count
            return _Place(group=group, start=start, count=count)

        out: list[tuple[list[_Place], _Place | None]] = []
        for t in self.index.tensors:
            left, places = t.elements, []
            for g in t.groups:
                places.append(place(g, min(left, t.part)))
                left -= places[-1].count
            book = place(t.book_group, t.book) if t.form is Form.CLUSTERED and not t.values else None
            out.append((places, book))
        return out

    def _find_last_use(self) -> dict[int, list[int]]:
        """Tensor → the groups that no later tensor needs."""
        last: dict[int, int] = {}
        for number in range(len(self.index.tensors)):
            needed = number
            while True:
                places, book = self._places[needed]
                for place in (*places, *([book] if book else [])):
                    last[place.group] = number
                if self.index.tensors[needed].form not in (Form.COPY, Form.RANKED):
                    break
                needed = self.index.tensors[needed].source
        out: dict[int, list[int]] = {}
        for group, number in last.items():
            out.setdefault(number, []).append(group)
        return out

    def _read(self, offset: int, size: int, crc: int) -> bytes:
        if size > self._size - offset:
            raise malformed("it is truncated")
        self._file.seek(offset)
        data = self._file.read(size)
        if len(data) != size or zlib.crc32(data) != crc:
            raise malformed("a checksum does not match")
        return data

    def _group(self, number: int) -> tuple[Array, Array]:
        """One decoded group. While files are read it stays until its last tensor was written."""
        if number in self._decoded:
            return self._decoded[number]
        block = self.index.groups[number]
        data = self._read(self._offsets[number], block.size, block.crc)
        magnitude, negative = decode_group(block.codec, data, block.raw)
        narrow = np.min_scalar_type(int(magnitude.max(initial=0)))
        self._decoded[number] = magnitude.astype(narrow), negative.astype(np.bool_)
        return self._decoded[number]

    def _part(self, place: _Place) -> tuple[Ints, Ints]:
        magnitude, negative = self._group(place.group)
        here = slice(place.start, place.start + place.count)
        return magnitude[here].astype(np.int64), negative[here].astype(np.int64)

    def _tensor(self, number: int) -> Iterator[bytes]:
        entry = self.index.tensors[number]
        while entry.form is Form.COPY:
            source = self.index.tensors[entry.source]
            if source.size != entry.size:
                raise malformed(f"{entry.name} is a copy of another size")
            number, entry = entry.source, source
        places, book_place = self._places[number]
        if entry.form is Form.RANKED:
            palette = self._palette(entry)
            for place in places:
                yield pack_elements(_from_palette(entry, palette, *self._part(place)), entry.dtype)
            return
        book = self._book(entry, book_place) if entry.form is Form.CLUSTERED else None
        for place in places:
            yield pack_elements(_patterns(entry, book, *self._part(place)), entry.dtype)

    def _palette(self, entry: TensorEntry) -> Ints:
        """The ranks of the palette's entries."""
        source = self.index.tensors[entry.source]
        if source.elements > 1 << entry.dtype.bits:
            raise malformed(f"the palette of {entry.name} is too large")
        patterns = unpack_elements(b"".join(self._tensor(entry.source)), source.dtype, source.elements)
        return ranks(patterns, source.dtype)

    def _book(self, entry: TensorEntry, place: _Place | None) -> Ints:
        if place is None:
            return np.array(entry.values, np.int64)
        magnitude, negative = self._part(place)
        half = 1 << (entry.dtype.bits - 1)
        return ordered(magnitude | negative * half, entry.dtype)

    def _loose_bytes(self) -> Iterator[bytes]:
        if self._inline:
            yield self._inline
        for block, offset in zip(self.index.chunks, self._offsets[len(self.index.groups) :], strict=True):
            yield general.decode(block.codec, self._read(offset, block.size, block.crc), block.raw)

    def _contents(self, size: int, digest: bytes, tensors: range, loose: _Loose) -> Iterator[bytes]:
        sha = hashlib.sha256()
        for piece in self._pieces(size, tensors, loose):
            sha.update(piece)
            yield piece
        if sha.digest()[:DIGEST] != digest:
            raise malformed("a file's sha256 does not match")

    def _pieces(self, size: int, tensors: range, loose: _Loose) -> Iterator[bytes]:
        left = size
        for number in tensors:
            entry = self.index.tensors[number]
            yield from loose.take(entry.gap)
            yield from self._tensor(number)
            for group in self._last_use.get(number, ()):
                self._decoded.pop(group, None)
            left -= entry.gap + entry.size
        yield from loose.take(left)


class _Loose:
    """The bytes outside tensors as one stream, in order."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks, self._now, self._at = chunks, b"", 0

    def take(self, size: int) -> Iterator[bytes]:
        while size:
            if self._at == len(self._now):
                self._now, self._at = next(self._chunks, b""), 0
                if not self._now:
                    raise malformed("the bytes outside tensors end too early")
            piece = self._now[self._at : self._at + size]
            self._at += len(piece)
            size -= len(piece)
            yield piece


def _patterns(entry: TensorEntry, book: Ints | None, magnitude: Ints, negative: Ints) -> Ints:
    if book is not None:
        at = np.where(negative == 1, -magnitude, magnitude) + zero_index(book)
        if len(at) and not 0 <= int(at.min()) <= int(at.max()) < len(book):
            raise malformed(f"an index of {entry.name} is outside its values")
        return unordered(book[at], entry.dtype)
    if entry.dtype.mantissa is None:
        return unordered(np.where(negative == 1, -magnitude, magnitude) + entry.shift, entry.dtype)
    half = 1 << (entry.dtype.bits - 1)
    if entry.shift > entry.dtype.mantissa or int(magnitude.max(initial=0)) << entry.shift >= half:
        raise malformed(f"a value of {entry.name} does not fit {entry.dtype.name}")
    return magnitude << entry.shift | negative * half


def _from_palette(entry: TensorEntry, palette: Ints, magnitude: Ints, negative: Ints) -> Ints:
    at = np.where(negative == 1, -magnitude, magnitude) - int(palette.min())
    if len(at) and not 0 <= int(at.min()) <= int(at.max()) < len(palette):
        raise malformed(f"an index of {entry.name} is outside its palette")
    codes: Ints = np.argsort(palette)[at]
    return codes


def _to_array(raw: bytes, entry: TensorEntry) -> Array:
    dtype = entry.dtype
    if dtype.bits == 4:
        values = ordered(unpack_elements(raw, dtype, entry.elements), dtype)
        return values.astype(np.int8 if dtype.signed else np.uint8).reshape(entry.shape)
    name = "uint16" if dtype.name == "bfloat16" else dtype.name
    return np.frombuffer(raw, np.dtype(name).newbyteorder("<")).reshape(entry.shape)
