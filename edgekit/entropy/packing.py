"""Writing ``.ekz``: which bytes are tensors, which form suits each, which of them share a group."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from edgekit.entropy import general
from edgekit.entropy.coding import Family, Part
from edgekit.entropy.container import MAGIC
from edgekit.entropy.forms import (
    DTYPES,
    Form,
    distinct,
    ordered,
    ranks,
    split_float,
    split_sign,
    trailing_zeros,
    unordered,
    unpack_elements,
    zero_index,
)
from edgekit.entropy.groups import GroupCodec
from edgekit.entropy.groups import encode as encode_group
from edgekit.entropy.index import DIGEST, Block, FileEntry, Index, TensorEntry
from edgekit.entropy.parse import Span, find_spans
from edgekit.entropy.rans import Ints
from edgekit.entropy.wire import Writer

_PART = 1 << 19
_GROUP = 1 << 19
_MAX_OPEN = 8
_NEW_GROUP_BITS = 2400
"""About what a model that starts from nothing costs until it has learnt."""
_MIN_ELEMENTS = 48
_INLINE_UP_TO = 40_000
_PROBE = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Coder:
    """What the user chooses: how tensors are coded, and how what is no tensor."""

    group: GroupCodec
    rest: tuple[general.Codec, ...]


CODERS = {
    "adaptive": Coder(group=GroupCodec.ADAPTIVE, rest=(general.Codec.LZMA, general.Codec.MIXED)),
    "huffman": Coder(group=GroupCodec.HUFFMAN, rest=(general.Codec.LZMA,)),
    "zstd": Coder(group=GroupCodec.ZSTD, rest=(general.Codec.ZSTD,)),
}


@dataclass(kw_only=True)
class _Group:
    """A group that still grows. ``profile`` counts its magnitudes by size class."""

    number: int
    family: Family
    mantissa: int
    profile: Ints
    parts: list[Part] = field(default_factory=list)
    elements: int = 0


class _Groups:
    """Collects parts: each goes to the group of its key whose distribution is nearest, or to a new one."""

    def __init__(self) -> None:
        self.all: list[_Group] = []
        self._open: dict[tuple[str, int], list[_Group]] = {}

    def add(self, key: tuple[str, int], family: Family, mantissa: int, part: Part) -> int:
        """The number of the group that took ``part``."""
        profile = _profile(part, mantissa)
        mine = self._open.setdefault(key, [])
        costs = [_cost_together(g.profile, profile) for g in mine]
        best = int(np.argmin(costs)) if costs else -1
        if best < 0 or costs[best] > _NEW_GROUP_BITS:
            group = _Group(number=len(self.all), family=family, mantissa=mantissa, profile=profile)
            self.all.append(group)
            mine.append(group)
        else:
            group = mine[best]
            group.profile = group.profile + profile
        group.parts.append(part)
        group.elements += len(part.magnitude)
        if group.elements >= _GROUP or len(mine) > _MAX_OPEN:
            mine.remove(group if group.elements >= _GROUP else mine[0])
        return group.number


def _profile(part: Part, mantissa: int) -> Ints:
    """Histogram over size classes: exponents of floats, octaves (eight direct) of integers."""
    if mantissa:
        return np.bincount(np.minimum(part.magnitude >> mantissa, 255), minlength=256)
    direct = np.minimum(part.magnitude, 7)
    octave = np.log2(np.maximum(part.magnitude, 8)).astype(np.int64) - 3
    return np.bincount(2 * (direct + octave) + part.negative, minlength=256)


def _cost_together(a: Ints, b: Ints) -> float:
    """Bits that two sets cost more under their common distribution than each under its own."""

    def bits(h: Ints) -> float:
        some = h[h > 0]
        return float(some.sum() * np.log2(some.sum()) - (some * np.log2(some)).sum())

    return bits(a + b) - bits(a) - bits(b)


@dataclass(kw_only=True)
class _Earlier:
    """What earlier tensors offer to later ones: contents by hash, palettes (number, ranks) by name.

    ``ranked``: those that need a palette themselves; a reader takes none of them for one.
    """

    wanted: frozenset[str]
    tensors: dict[bytes, int] = field(default_factory=dict)
    ranked: set[int] = field(default_factory=set)
    palettes: dict[str, tuple[int, Ints]] = field(default_factory=dict)


def build(files: Mapping[str, memoryview], *, single: bool, coder: Coder) -> bytes:
    """The container of ``files`` (relative name → contents)."""
    by_file = _usable_spans(files)
    groups = _Groups()
    earlier = _Earlier(wanted=frozenset(s.palette for spans in by_file.values() for s in spans if s.palette))
    entries: list[FileEntry] = []
    tensors: list[TensorEntry] = []
    loose: list[bytes] = []
    for path, data in files.items():
        at = count = 0
        for span in by_file.get(path, []):
            raw = data[span.offset : span.offset + span.size]
            entry = _tensor(span, raw, len(tensors), groups, earlier)
            if entry is None:
                continue
            tensors.append(replace(entry, gap=span.offset - at))
            loose.append(bytes(data[at : span.offset]))
            at = span.offset + span.size
            count += 1
        loose.append(bytes(data[at:]))
        digest = hashlib.sha256(data).digest()[:DIGEST]
        entries.append(FileEntry(path=path, size=len(data), digest=digest, tensors=count))
    return _write(tuple(entries), tuple(tensors), groups.all, b"".join(loose), single, coder)


def _usable_spans(files: Mapping[str, memoryview]) -> dict[str, list[Span]]:
    """Spans that fit their file and dtype and do not overlap, by file, in order."""
    out: dict[str, list[Span]] = {}
    for span in sorted(find_spans(files), key=lambda s: (s.file, s.offset, -s.size)):
        mine = out.setdefault(span.file, [])
        elements = int(np.prod(span.shape, dtype=object)) if all(d > 0 for d in span.shape) else 0
        if span.offset < 0 or span.offset + span.size > len(files[span.file]) or span.dtype not in DTYPES:
            continue
        # A tensor's entry in the index takes about as much as the model saves on so few.
        if elements < _MIN_ELEMENTS or DTYPES[span.dtype].size(elements) != span.size:
            continue
        # Two readers may see one tensor; each byte is stored once.
        if mine and span.offset < mine[-1].offset + mine[-1].size:
            continue
        mine.append(span)
    return out


def _tensor(
    span: Span, raw: memoryview, number: int, groups: _Groups, earlier: _Earlier
) -> TensorEntry | None:
    """Put a tensor into groups; ``None`` if it is better off among the loose bytes."""
    dtype = DTYPES[span.dtype]
    entry = TensorEntry(name=span.name, dtype=dtype, shape=span.shape, gap=0, form=Form.PLAIN)
    try:
        patterns = unpack_elements(raw, dtype, entry.elements)
    except ValueError:
        return None
    # Tied weights, and the same file twice in one folder.
    key = hashlib.sha256(raw).digest() + bytes([dtype.code])
    indices = bool(span.palette) or earlier.tensors.get(key) in earlier.ranked
    if span.name in earlier.wanted and span.name not in earlier.palettes and not indices:
        earlier.palettes[span.name] = number, ranks(patterns, dtype)
    if key in earlier.tensors:
        return replace(entry, form=Form.COPY, source=earlier.tensors[key])
    if span.name not in earlier.wanted and _repetitive(raw, patterns):
        return None
    earlier.tensors[key] = number
    palette = earlier.palettes.get(span.palette)
    if palette is not None and int(patterns.max()) < len(palette[1]) <= 1 << dtype.bits:
        earlier.ranked.add(number)
        return _ranked(entry, span, patterns, palette, groups)
    book = distinct(patterns, dtype)
    if book is not None:
        return _clustered(entry, span, patterns, book, groups)
    if dtype.family is Family.INTEGER:
        values = ordered(patterns, dtype)
        # Unsigned weights lie around their zero point, which is the most frequent value.
        shift = 0 if dtype.signed else int(np.bincount(values[: 1 << 20]).argmax())
        magnitude, negative = split_sign(values - shift)
        group_key, mantissa = (dtype.name, 0), 0
    else:
        assert dtype.mantissa is not None
        magnitude, negative = split_float(patterns, dtype)
        shift = trailing_zeros(magnitude, dtype.mantissa)
        magnitude >>= shift
        group_key, mantissa = (dtype.name, shift), dtype.mantissa - shift
    numbers, part = _add_parts(groups, (group_key, dtype.family, mantissa), span, magnitude, negative)
    return replace(entry, part=part, groups=numbers, shift=shift)


def _ranked(
    entry: TensorEntry, span: Span, patterns: Ints, palette: tuple[int, Ints], groups: _Groups
) -> TensorEntry:
    source, order = palette
    magnitude, negative = split_sign(order[patterns])
    key = ("ranked", entry.dtype.bits)
    numbers, part = _add_parts(groups, (key, Family.INTEGER, 0), span, magnitude, negative)
    return replace(entry, form=Form.RANKED, part=part, groups=numbers, source=source)


def _clustered(entry: TensorEntry, span: Span, patterns: Ints, book: Ints, groups: _Groups) -> TensorEntry:
    dtype = entry.dtype
    at = np.searchsorted(book, ordered(patterns, dtype)) - zero_index(book)
    magnitude, negative = split_sign(at)
    key = ("index", (len(book) - 1).bit_length())
    numbers, part = _add_parts(groups, (key, Family.INTEGER, 0), span, magnitude, negative)
    entry = replace(entry, form=Form.CLUSTERED, part=part, groups=numbers, book=len(book))
    if dtype.mantissa is None:
        return replace(entry, values=tuple(int(v) for v in book))
    magnitude, negative = split_float(unordered(book, dtype), dtype)
    table = Part(magnitude=magnitude, negative=negative)
    return replace(entry, book_group=groups.add((dtype.name, 0), dtype.family, dtype.mantissa, table))


def _add_parts(
    groups: _Groups, kind: tuple[tuple[str, int], Family, int], span: Span, magnitude: Ints, negative: Ints
) -> tuple[tuple[int, ...], int]:
    """(group of each part, elements a part): whole rows of the matrix as far as they fit."""
    rows, kernel = _geometry(span)
    columns = len(magnitude) // rows
    part_rows = max(1, _PART // columns)
    part_rows += part_rows * columns * DTYPES[span.dtype].bits // 4 % 2  # a part ends with a byte
    size = min(len(magnitude), part_rows * columns if columns <= _PART else _PART)
    numbers = []
    for at in range(0, len(magnitude), size):
        m, n = magnitude[at : at + size], negative[at : at + size]
        mine = len(m) // columns if columns <= _PART else 1
        numbers.append(groups.add(*kind, Part(magnitude=m, negative=n, rows=mine, kernel=kernel)))
    return tuple(numbers), size


def _geometry(span: Span) -> tuple[int, int]:
    """(rows, columns a channel) of a tensor as a matrix."""
    shape = tuple(d for d in span.shape)
    if len(shape) < 2:
        return 1, 1
    rows = shape[0]
    # Depthwise kernels and the like: too few rows to have neighbours above.
    if rows < 8 and len(shape) > 2:
        return int(np.prod(shape[:-1])), 1
    if len(shape) == 2:
        return rows, 1
    kernel = shape[-1] if span.channels_last else int(np.prod(shape[2:]))
    return rows, kernel


def _repetitive(raw: memoryview, patterns: Ints) -> bool:
    """Whether a probe of the tensor holds repeats that no context of ours would see."""
    probe = bytes(raw[:_PROBE])
    some = patterns[: max(1, len(patterns) * len(probe) // len(raw))]
    counts = np.unique(some, return_counts=True)[1]
    p = counts / counts.sum()
    floor = float(-(p * np.log2(p)).sum()) * len(some) / 8 + 32
    return len(zlib.compress(probe, 6)) < 0.8 * min(floor, len(probe))


def _write(
    files: tuple[FileEntry, ...], tensors: tuple[TensorEntry, ...], groups: list[_Group], loose: bytes,
    single: bool, coder: Coder,
) -> bytes:  # fmt: skip
    spread = _spread(sum(g.elements for g in groups))
    coded = [encode_group(coder.group, g.parts, g.family, g.mantissa, spread=spread) for g in groups]
    inline = loose if len(loose) <= _INLINE_UP_TO else b""
    chunks = []
    for at in range(0, len(loose) - len(inline), general.MAX_CHUNK):
        raw = loose[at : at + general.MAX_CHUNK]
        chunks.append((len(raw), *general.encode(raw, coder.rest)))
    index = Index(
        single=single,
        files=files,
        tensors=tensors,
        groups=tuple(
            Block(raw=g.elements, size=len(c), crc=zlib.crc32(c), codec=coder.group)
            for g, c in zip(groups, coded, strict=True)
        ),
        chunks=tuple(Block(raw=n, size=len(c), crc=zlib.crc32(c), codec=codec) for n, codec, c in chunks),
    ).to_bytes()
    codec, first = general.encode(index + inline, coder.rest)
    out = Writer()
    out.data += MAGIC
    for value in (codec, len(first), len(index) + len(inline), len(index)):
        out.uint(value)
    out.data += zlib.crc32(first).to_bytes(4, "little")
    return b"".join([bytes(out.data), first, *coded, *(c for _, _, c in chunks)])


def _spread(elements: int) -> float:
    """More lanes for large models: they take a hundredth more bytes and half the time."""
    return 1.0 if elements < 1 << 22 else 3.0
