"""The index of a container: files, tensors, groups and chunks of bytes. See docs/ekz.md."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from edgekit.entropy.coding import MAX_ELEMENTS
from edgekit.entropy.forms import BY_CODE, MAX_DISTINCT, Dtype, Form, extent
from edgekit.entropy.general import MAX_CHUNK
from edgekit.entropy.wire import Reader, Writer, malformed

MAX_ITEMS = 1 << 20
MAX_FILES = 1 << 16
MAX_NAME = 255
"""Bytes of a file's or folder's name: no common system takes more."""
MAX_PATH = 4096
MAX_DEPTH = 64
_LAST_CODE, _LAST_FORM = max(BY_CODE), max(Form)
DIGEST = 16
"""Bytes of a file's sha256 that the index keeps."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FileEntry:
    """One file of the artifact; ``tensors`` are the next so many of the index."""

    path: str
    size: int
    digest: bytes
    tensors: int


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorEntry:
    """One tensor. ``gap``: bytes of its file between the tensor before and this one.

    ``part``: elements a part; part ``i`` lies in group ``groups[i]``, after what earlier entries of the
    index put there. ``shift``: unused low bits of a float, or the centre of unsigned integers. ``book``:
    number of distinct values; they lie in ``book_group`` (floats) or here in ``values`` (integers).
    ``source``: the tensor that this one is a copy of, or its palette.
    """

    name: str
    dtype: Dtype
    shape: tuple[int, ...]
    gap: int
    form: Form
    part: int = 0
    groups: tuple[int, ...] = ()
    shift: int = 0
    book: int = 0
    book_group: int = 0
    values: tuple[int, ...] = ()
    source: int = 0

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return self.dtype.size(self.elements)


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """A group (``raw`` counts elements, ``codec`` is 0) or a chunk of bytes, as stored."""

    raw: int
    size: int
    crc: int
    codec: int = 0


@dataclass(frozen=True, kw_only=True)
class Index:
    """Everything about a container but its data. ``single``: packed from one file, not a directory."""

    single: bool
    files: tuple[FileEntry, ...]
    tensors: tuple[TensorEntry, ...]
    groups: tuple[Block, ...]
    chunks: tuple[Block, ...]

    def to_bytes(self) -> bytes:
        """Serialise."""
        w = Writer()
        w.uint(int(self.single))
        w.uint(len(self.files))
        for f in self.files:
            w.text(f.path)
            w.uint(f.size)
            w.data += f.digest
            w.uint(f.tensors)
        for t in self.tensors:
            _write_tensor(w, t)
        for blocks in (self.groups, self.chunks):
            w.uint(len(blocks))
            for b in blocks:
                w.uint(b.codec)
                w.uint(b.raw)
                w.uint(b.size)
                w.data += b.crc.to_bytes(4, "little")
        return bytes(w.data)

    @classmethod
    def from_bytes(cls, data: bytes | memoryview) -> Index:
        """Parse and check everything that can be checked without the data. Raises ``ContainerError``."""
        r = Reader(data)
        single = bool(r.uint(1))
        files = tuple(_read_file(r) for _ in range(r.uint(min(MAX_FILES, r.left))))
        count = sum(f.tensors for f in files)
        if count > min(MAX_ITEMS, r.left):
            raise malformed(f"{count} tensors")
        tensors = tuple(_read_tensor(r, i) for i in range(count))
        groups = tuple(_read_block(r, MAX_ELEMENTS) for _ in range(r.uint(min(MAX_ITEMS, r.left))))
        chunks = tuple(_read_block(r, MAX_CHUNK) for _ in range(r.uint(min(MAX_ITEMS, r.left))))
        r.end()
        index = cls(single=single, files=files, tensors=tensors, groups=groups, chunks=chunks)
        index._check()
        return index

    @property
    def total(self) -> int:
        """Bytes of all files."""
        return sum(f.size for f in self.files)

    @property
    def loose(self) -> int:
        """Bytes of all files that belong to no tensor."""
        return self.total - sum(t.size for t in self.tensors)

    def roots(self) -> list[int]:
        """For each tensor the one that its contents are stored with: its own number, or where its copies began."""
        roots: list[int] = []
        for number, t in enumerate(self.tensors):
            roots.append(roots[t.source] if t.form is Form.COPY else number)
        return roots

    def _check(self) -> None:
        if self.single != (len(self.files) == 1 and self.single):
            raise malformed("a single file that is several")
        # On a disk the second of two would win, or the writing would fail half-way.
        paths = {f.path for f in self.files}
        if len(paths) != len(self.files) or any(
            path in paths for f in self.files for path in _folders(f.path)
        ):
            raise malformed("two files of one name, or a file that is also a folder")
        self._check_sizes()
        self._check_sources()
        self._check_groups()

    def _check_sizes(self) -> None:
        at = 0
        for f in self.files:
            mine = self.tensors[at : at + f.tensors]
            at += f.tensors
            if sum(t.gap + t.size for t in mine) > f.size:
                raise malformed(f"the tensors of {f.path} are larger than the file")

    def _check_sources(self) -> None:
        """A palette has its own values, so that a tensor needs one other and no chain of them."""
        roots = self.roots()
        for t in self.tensors:
            if t.form is Form.RANKED and self.tensors[roots[t.source]].form is Form.RANKED:
                raise malformed(f"the palette of {t.name} has a palette itself")

    def _check_groups(self) -> None:
        if sum(len(t.groups) for t in self.tensors) > MAX_ITEMS:
            raise malformed("too many parts")
        filled = [0] * len(self.groups)
        for t in self.tensors:
            left = t.elements
            if len(t.groups) > 1 and t.part * t.dtype.bits % 8:
                raise malformed(f"a part of {t.name} ends within a byte")
            for g in t.groups:
                take = min(left, t.part)
                if not take:
                    raise malformed(f"{t.name} has a part of nothing")
                if g >= len(filled):
                    raise malformed("a group that does not exist")
                filled[g] += take
                left -= take
            if t.form is not Form.COPY and left:
                raise malformed(f"the parts of {t.name} do not add up")
            if t.form is Form.CLUSTERED and not t.values:
                if t.book_group >= len(filled):
                    raise malformed("a group that does not exist")
                filled[t.book_group] += t.book
        # The decoder allocates by these numbers; here they are cheap to compare.
        if filled != [g.raw for g in self.groups]:
            raise malformed("the groups do not hold what the tensors need")


def safe_path(path: str) -> str:
    """A relative path that stays below its folder on every system, and that one can have. Raises ``ContainerError``."""
    if path.count("/") >= MAX_DEPTH or any(len(p) > MAX_NAME for p in _bytes(path).split(b"/")):
        raise malformed(
            f"a file is called {path[:80]!r} …: names have at most {MAX_NAME} bytes, in {MAX_DEPTH} folders"
        )
    parts = PurePosixPath(path).parts
    # Windows takes a colon for a drive or a stream and forbids the others.
    bad = not parts or path.startswith("/") or ".." in parts or str(PurePosixPath(path)) != path
    if bad or path == "." or any(c in path for c in '\\:\0<>"|?*'):
        raise malformed(f"a file is called {path!r}, which could leave its folder")
    if len(_bytes(path)) > MAX_PATH:
        raise malformed(f"a file is called {path[:80]!r} …, in more than {MAX_PATH} bytes")
    return path


def _bytes(path: str) -> bytes:
    return path.encode("utf-8", "surrogateescape")


def _folders(path: str) -> Iterator[str]:
    """The folders that a file is in, one after another: kept together they would be many times the index."""
    at = path.find("/")
    while at >= 0:
        yield path[:at]
        at = path.find("/", at + 1)


def _read_file(r: Reader) -> FileEntry:
    return FileEntry(
        path=safe_path(r.text(MAX_PATH)),
        size=r.uint(),
        digest=bytes(r.take(DIGEST)),
        tensors=r.uint(MAX_ITEMS),
    )


def _write_tensor(w: Writer, t: TensorEntry) -> None:
    w.text(t.name)
    w.uint(t.dtype.code)
    w.uints(list(t.shape))
    w.uint(t.gap)
    w.uint(t.form)
    if t.form is Form.COPY:
        w.uint(t.source)
        return
    w.uint(0 if t.part == t.elements else t.part)
    w.uints(list(t.groups))
    if t.form in (Form.PLAIN, Form.RANKED):
        w.uint(t.shift if t.form is Form.PLAIN else t.source)
        return
    w.uint(t.book)
    w.uint(len(t.values))
    if not t.values:
        w.uint(t.book_group)
        return
    w.sint(t.values[0])
    for a, b in zip(t.values, t.values[1:], strict=False):
        w.uint(b - a - 1)


def _read_tensor(r: Reader, number: int) -> TensorEntry:
    name, code = r.text(), r.uint(_LAST_CODE)
    shape = tuple(r.uints(16))
    gap, form = r.uint(), Form(r.uint(_LAST_FORM))
    dtype, elements = BY_CODE[code], math.prod(shape)
    if not 0 < elements < 1 << 48:
        raise malformed(f"{name} has {elements} elements")
    entry = TensorEntry(name=name, dtype=dtype, shape=shape, gap=gap, form=form)
    if form in (Form.COPY, Form.RANKED) and number == 0:
        raise malformed("a copy of nothing, or a palette that does not come first")
    if form is Form.COPY:
        return replace(entry, source=r.uint(number - 1))
    entry = replace(entry, part=r.uint(MAX_ELEMENTS) or elements, groups=tuple(r.uints(MAX_ITEMS)))
    if form is Form.PLAIN:
        return replace(entry, shift=r.uint(1 << 32))
    if form is Form.RANKED:
        return replace(entry, source=r.uint(number - 1))
    book, count = r.uint(MAX_DISTINCT), r.uint(MAX_DISTINCT)
    if not book or count not in (0, book):
        raise malformed(f"the values of {name} do not add up")
    if not count:
        return replace(entry, book=book, book_group=r.uint(MAX_ITEMS))
    values = [r.sint()]
    for _ in range(count - 1):
        values.append(values[-1] + 1 + r.uint())
    low, high = extent(dtype)
    if values[0] < low or values[-1] >= high:  # they only grow
        raise malformed(f"a value of {name} does not fit {dtype.name}")
    return replace(entry, book=book, values=tuple(values))


def _read_block(r: Reader, limit: int) -> Block:
    codec, raw, size = r.uint(255), r.uint(limit), r.uint()
    return Block(raw=raw, size=size, crc=int.from_bytes(r.take(4), "little"), codec=codec)
