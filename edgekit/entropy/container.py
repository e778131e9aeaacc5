"""Reading ``.ekz``: one file that gives back an artifact, or one of its tensors, bit for bit.

Needs Python and numpy only. Nothing is allocated before its declared size was checked, every block is
checked by CRC-32 before it is decoded, every file by sha256 after.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from edgekit.core.memory import available_memory
from edgekit.entropy import general
from edgekit.entropy.blocks import Blocks, unreadable
from edgekit.entropy.coding import MAX_ELEMENTS
from edgekit.entropy.forms import Form, ordered, pack_elements, ranks, unordered, unpack_elements, zero_index
from edgekit.entropy.index import DIGEST, FileEntry, Index, TensorEntry
from edgekit.entropy.rans import Ints
from edgekit.entropy.wire import Reader, malformed
from edgekit.errors import ContainerError, MemoryLimitError, UnknownNameError

if TYPE_CHECKING:
    from edgekit.types import Array

MAGIC = b"EKZ\x01"
MAX_INDEX = 1 << 28
MAX_OUTPUT = 1 << 36
_HEAD = 64
_MAX_RATIO = 1 << 18
_USUAL_RATIO = 1 << 10
_MUCH = 1 << 30
_GROUPS_KEPT = 6
_PALETTES_KEPT = 4
_LONG_NAME = 200
_MANY_NAMES = 10_000
"""What is compared with a name that is not there: each name takes its time."""


def usual_output(packed: int) -> int:
    """The most bytes that a container of ``packed`` bytes may become where nobody says how many: a GiB, or 1,024 times
    its size, and 64 GiB at most. Zeros alone are coded smaller than that."""
    return min(MAX_OUTPUT, max(_MUCH, packed * _USUAL_RATIO))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Place:
    """Where a run of elements lies: elements ``start`` to ``start + count`` of a group."""

    group: int
    start: int
    count: int


class Container:
    """An opened container. Tensors by name; memory: the index, and the groups in use, up to a limit.

    ``max_output``: the most bytes that :meth:`files`, or one tensor, may have (:func:`usual_output`).
    Raises :class:`~edgekit.errors.ContainerError` for anything that an encoder would not have written.
    """

    def __init__(self, path: Path, *, max_output: int | None = None) -> None:
        self.path = path
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise ContainerError(f"{path} is no file", hint="name a .ekz file")
        with ExitStack() as opened:  # closed again where it is not a container
            try:
                self._file: BinaryIO = opened.enter_context(path.open("rb"))
                self._size = path.stat().st_size
            except OSError as e:
                raise unreadable(path, e) from e
            self._limit = usual_output(self._size) if max_output is None else max_output
            self._blocks = Blocks(self._file, self._size)
            self._palettes: dict[int, Ints] = {}
            self._open()
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
        """One tensor as a numpy array. 4-bit integers come as (u)int8, bfloat16 as its uint16 pattern.

        Raises ``MemoryLimitError`` for one that is larger than the free memory.
        """
        number = self.number(name)
        entry = self.index.tensors[number]
        dtype = array_dtype(entry)
        if dtype.itemsize * entry.elements > available_memory():
            raise MemoryLimitError(
                f"the tensor {name} of {self.path} has {entry.size} bytes, more than there is free memory",
                hint="edgekit unpack --tensor writes it piece by piece",
            )
        out = np.empty(entry.elements, dtype)
        at = 0
        for piece in self.pieces(number):
            out[at : at + len(piece)] = piece
            at += len(piece)
        return out.reshape(entry.shape)

    def number(self, name: str) -> int:
        """The place of a tensor in the index. Raises ``UnknownNameError``."""
        for number, entry in enumerate(self.index.tensors):
            if entry.name == name:
                return number
        known = dict.fromkeys(n if len(n) <= _LONG_NAME else f"{n[:_LONG_NAME]} …" for n in self.names)
        raise UnknownNameError("tensor", name, tuple(known)[:_MANY_NAMES], where=str(self.path))

    def pieces(self, number: int) -> Iterator[Array]:
        """Tensor ``number`` of the index, flat, in pieces of at most a group's elements."""
        entry = self.index.tensors[number]
        dtype, left = array_dtype(entry), entry.elements
        self._check_output(entry.size, f"the tensor {entry.name} of {self.path.name}")
        # Neighbouring tensors share groups: random access would decode one group over and over.
        self._blocks.keep(_GROUPS_KEPT)
        for raw in _multiples(self._tensor(number), dtype.itemsize):
            piece = _to_array(raw, entry, left)
            left -= len(piece)
            yield piece

    def files(self) -> Iterator[tuple[str, Iterator[bytes]]]:
        """Each file's path with its contents in pieces; the sha256 is checked when they end."""
        self._check_output(self.index.total, self.path.name)
        loose = _Loose(self._loose_bytes())
        self._last_use = self._find_last_use()
        at = 0
        for entry in self.index.files:
            tensors = range(at, at + entry.tensors)
            at += entry.tensors
            yield entry.path, self._contents(entry, tensors, loose)

    def _open(self) -> None:
        head = Reader(self._blocks.read(0, min(_HEAD, self._size)))
        if bytes(head.take(min(4, head.left))) != MAGIC:
            raise malformed("it does not begin with EKZ and version 1")
        codec, size = head.uint(255), head.uint(MAX_INDEX)
        raw, index = head.uint(general.MAX_CHUNK * 8), head.uint(MAX_INDEX)
        crc = int.from_bytes(head.take(4), "little")
        # The index of an empty file expands more than anything else, hence the floor.
        if index > raw or raw > max(1 << 16, self._size * 4096):
            raise malformed("the index is larger than it can be")
        first = self._blocks.read(head.at, size, crc)
        if raw > general.MAX_CHUNK:
            raise malformed("the index is too large")
        first_raw = general.decode(codec, first, raw)
        self.index = Index.from_bytes(first_raw[:index])
        self._inline = first_raw[index:]
        # No coder here makes more of a byte: it is a bomb, whatever limit the user gave.
        if self.index.total > self._size * _MAX_RATIO:
            raise malformed(f"{self._size} bytes cannot hold {self.index.total}")
        self._blocks.lay_out(head.at + size, self.index.groups, self.index.chunks)
        # Every byte of every file is accounted for before the first is decoded.
        if len(self._inline) + sum(c.raw for c in self.index.chunks) != self.index.loose:
            raise malformed("the bytes outside tensors do not add up")
        self._roots = self.index.roots()
        self._places = self._find_places()

    def _check_output(self, size: int, what: str) -> None:
        if size > self._limit:
            raise ContainerError(
                f"{what} would unpack to {size} bytes, above the limit of {self._limit}",
                hint="if the file is trusted, allow it with a higher limit (--max-bytes)",
            )

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
        tensors, roots = self.index.tensors, self._roots
        user = {root: number for number, root in enumerate(roots)}  # the last of them
        for root, number in list(user.items()):
            if tensors[root].form is Form.RANKED:
                palette = roots[tensors[root].source]
                user[palette] = max(user[palette], number)
        last: dict[int, int] = {}
        for root, number in user.items():
            places, book = self._places[root]
            for place in (*places, *([book] if book else [])):
                last[place.group] = max(last.get(place.group, 0), number)
        out: dict[int, list[int]] = {}
        for group, number in last.items():
            out.setdefault(number, []).append(group)
        return out

    def _part(self, place: _Place) -> tuple[Ints, Ints]:
        magnitude, negative = self._blocks.group(place.group)
        here = slice(place.start, place.start + place.count)
        return magnitude[here].astype(np.int64), negative[here].astype(np.int64)

    def _tensor(self, number: int) -> Iterator[bytes]:
        root = self._roots[number]
        entry = self.index.tensors[root]
        if entry.size != self.index.tensors[number].size:
            raise malformed(f"{self.index.tensors[number].name} is a copy of another size")
        places, book_place = self._places[root]
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
        if source.elements > min(1 << entry.dtype.bits, MAX_ELEMENTS):
            raise malformed(f"the palette of {entry.name} is too large")
        found = self._palettes.pop(entry.source, None)
        if found is None:
            patterns = unpack_elements(b"".join(self._tensor(entry.source)), source.dtype, source.elements)
            found = ranks(patterns, source.dtype)
        self._palettes[entry.source] = found
        while len(self._palettes) > _PALETTES_KEPT:
            del self._palettes[next(iter(self._palettes))]
        return found

    def _book(self, entry: TensorEntry, place: _Place | None) -> Ints:
        if place is None:
            return np.array(entry.values, np.int64)
        magnitude, negative = self._part(place)
        half = 1 << (entry.dtype.bits - 1)
        return ordered(magnitude | negative * half, entry.dtype)

    def _loose_bytes(self) -> Iterator[bytes]:
        if self._inline:
            yield self._inline
        yield from self._blocks.chunks()

    def _contents(self, entry: FileEntry, tensors: range, loose: _Loose) -> Iterator[bytes]:
        sha = hashlib.sha256()
        for piece in self._pieces(entry.size, tensors, loose):
            sha.update(piece)
            yield piece
        if sha.digest()[:DIGEST] != entry.digest:
            raise malformed("a file's sha256 does not match")

    def _pieces(self, size: int, tensors: range, loose: _Loose) -> Iterator[bytes]:
        left = size
        for number in tensors:
            entry = self.index.tensors[number]
            yield from loose.take(entry.gap)
            yield from self._tensor(number)
            for group in self._last_use.get(number, ()):
                self._blocks.forget(group)
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


def array_dtype(entry: TensorEntry) -> np.dtype[np.generic]:
    """The type of numpy's that a tensor's elements are given in."""
    if entry.dtype.bits == 4:
        return np.dtype(np.int8 if entry.dtype.signed else np.uint8)
    name = "uint16" if entry.dtype.name == "bfloat16" else entry.dtype.name
    return np.dtype(name).newbyteorder("<")


def _to_array(raw: bytes, entry: TensorEntry, left: int) -> Array:
    """The elements of a piece, the last of which has ``left``."""
    dtype = entry.dtype
    if dtype.bits != 4:
        return np.frombuffer(raw, array_dtype(entry))
    try:
        patterns = unpack_elements(raw, dtype, min(2 * len(raw), left))
    except ValueError as e:
        raise malformed(f"{entry.name} is a copy that has bits outside its elements") from e
    return ordered(patterns, dtype).astype(array_dtype(entry))


def _multiples(pieces: Iterator[bytes], width: int) -> Iterator[bytes]:
    """The same bytes, cut between elements: a copy may be of another type than what it is a copy of."""
    rest = b""
    for piece in pieces:
        data = rest + piece
        end = len(data) - len(data) % width
        rest = data[end:]
        yield data[:end]
