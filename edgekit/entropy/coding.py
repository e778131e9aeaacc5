"""One group: arrays of signed numbers of one kind, coded together by one model.

A group is what can be decoded on its own. Its payload holds the alphabet, the planes (geometry), the
entropy-coded stream and the low bits that are not worth a model, plane by plane of equal significance.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgekit.entropy.alphabet import MAX_BUCKETS, Buckets, Tree, binades, octaves
from edgekit.entropy.rans import Decoder, Encoder, Ints
from edgekit.entropy.tensors import Plane, Signs, TensorModel, Values
from edgekit.entropy.wire import Reader, Writer, malformed

MAX_ELEMENTS = 1 << 21
"""Elements of a group: what a decoder must be ready to hold (about 100 bytes each while it works)."""

MAX_LANES = 4096
MAX_MAGNITUDE = (1 << 40) - 1
_VECTOR_COLUMNS = 64
_SMALL = 1 << 15
"""Coded bytes below which every byte counts more than the time."""
_SPREAD_OF_SMALL = 0.25
_STREAM_LIMIT = 1 << 31


class Family(enum.IntEnum):
    """How magnitudes fall into buckets."""

    INTEGER = 0
    FLOAT = 1


@dataclass(frozen=True, kw_only=True)
class Part:
    """One array of a group, flat, with its geometry. ``kernel``: columns a channel (1: no structure)."""

    magnitude: Ints
    negative: Ints
    rows: int = 1
    kernel: int = 1


@dataclass(frozen=True, kw_only=True)
class _Geometry:
    """A plane whose rows were each cut into ``pieces``, one below another, to have more lanes."""

    plane: Plane
    pieces: int

    def to_plane(self, flat: Ints) -> Ints:
        p = self.plane
        cut = flat.reshape(p.rows // self.pieces, self.pieces, p.columns)
        return np.ascontiguousarray(cut.transpose(1, 0, 2)).reshape(p.rows, p.columns)

    def from_plane(self, matrix: Ints) -> Ints:
        p = self.plane
        cut = matrix.reshape(self.pieces, p.rows // self.pieces, p.columns)
        return np.ascontiguousarray(cut.transpose(1, 0, 2)).reshape(-1)


def encode_group(parts: Sequence[Part], family: Family, mantissa: int, spread: float) -> bytes:
    """Code ``parts``. ``mantissa``: for floats, the bits below the exponent. ``spread`` scales the number
    of lanes: more is quicker, fewer is smaller; 1 is about 200 columns for a coded size of 40 KB."""
    magnitude = np.concatenate([p.magnitude for p in parts])
    negative = np.concatenate([p.negative for p in parts])
    if len(magnitude) > MAX_ELEMENTS:
        raise ValueError(f"{len(magnitude)} elements in a group")
    out = Writer()
    out.uint(family)
    buckets = (
        write_octaves(magnitude, out) if family is Family.INTEGER else write_binades(magnitude, mantissa, out)
    )
    bucket = buckets.of(magnitude)
    histogram = np.bincount(bucket, minlength=buckets.count)
    tree = Tree.balanced(histogram)
    number = tree.number()
    out.blob(number.to_bytes((number.bit_length() + 7) // 8, "little"))
    signs = signs_of(magnitude, negative, buckets)
    modelled = min(1, int(buckets.width.max()))
    out.uint(signs)
    out.uint(modelled)
    # What a coder without contexts would take: good enough to choose the number of lanes.
    bits = _entropy(histogram) + float((histogram * buckets.width).sum() / len(bucket))
    if bits * len(bucket) < 8 * _SMALL:
        spread = min(spread, _SPREAD_OF_SMALL)
    geometries = _plan(parts, bits, spread)
    out.uint(len(geometries))
    for g in geometries:
        for value in (g.plane.rows, g.plane.columns, g.plane.kernel, g.plane.lanes, g.pieces):
            out.uint(value)
    width = buckets.width[bucket]
    low = magnitude - buckets.low[bucket]
    lead = low >> np.maximum(width - modelled, 0)
    coder = Encoder()
    model = TensorModel(buckets, tree, signs=signs, modelled=modelled)
    at = 0
    for g in geometries:
        here = slice(at, at + g.plane.rows * g.plane.columns)
        at = here.stop
        model.code(coder, g.plane, _values(g, bucket[here], negative[here], lead[here]))
        model.next_tensor()
    out.blob(coder.finish())
    out.data += pack_low(low, np.maximum(width - modelled, 0))
    return bytes(out.data)


def decode_group(data: bytes | memoryview, elements: int) -> tuple[Ints, Ints]:
    """(magnitude, negative) of all ``elements`` of a group. Raises ``ContainerError``."""
    if not 0 < elements <= MAX_ELEMENTS:
        raise malformed(f"a group of {elements} elements")
    r = Reader(data)
    buckets = read_buckets(r)
    number = int.from_bytes(r.blob(4 * MAX_BUCKETS), "little")
    tree = Tree.from_number(buckets.count, number)
    signs = Signs(r.uint(2))
    modelled = r.uint(1)
    geometries = [_read_geometry(r) for _ in range(r.uint(elements))]
    if sum(g.plane.rows * g.plane.columns for g in geometries) != elements:
        raise malformed("the planes of a group do not add up to its elements")
    coder = Decoder(r.blob(_STREAM_LIMIT))
    model = TensorModel(buckets, tree, signs=signs, modelled=modelled)
    parts: list[tuple[Ints, Ints, Ints]] = []
    for g in geometries:
        v = model.code(coder, g.plane, None)
        parts.append((g.from_plane(v.bucket), g.from_plane(v.negative), g.from_plane(v.low)))
        model.next_tensor()
    coder.finish()
    bucket, negative, lead = (np.concatenate(a) for a in zip(*parts, strict=True))
    rest = np.maximum(buckets.width[bucket] - modelled, 0)
    low = (lead << rest) | unpack_low(r.take(r.left), rest)
    return buckets.low[bucket] + low, negative


def _values(g: _Geometry, bucket: Ints, negative: Ints, low: Ints) -> Values:
    return Values(bucket=g.to_plane(bucket), negative=g.to_plane(negative), low=g.to_plane(low))


def write_octaves(magnitude: Ints, out: Writer) -> Buckets:
    """Integer buckets of least cost for these magnitudes, noted in ``out``."""
    top = int(magnitude.max(initial=0))
    best: tuple[float, int] | None = None
    for direct in (2, 4, 8, 16, 32, 64, 128, 256):
        b = octaves(direct, top)
        histogram = np.bincount(b.of(magnitude), minlength=b.count)
        cost = _entropy(histogram) + float((histogram * b.width).sum() / max(1, len(magnitude)))
        # A larger alphabet has to earn its longer description.
        if best is None or cost < best[0] * 0.999:
            best = (cost, direct)
        if direct > top:
            break
    assert best is not None
    out.uint(best[1].bit_length() - 1)
    out.uint(top)
    return octaves(best[1], top)


def write_binades(magnitude: Ints, mantissa: int, out: Writer) -> Buckets:
    """Buckets of floats: two a binade, from the least to the largest there is, noted in ``out``."""
    shift = max(0, mantissa - 1)
    high = magnitude >> shift
    some = high[magnitude > 0]
    first, last = (int(some.min()), int(some.max())) if len(some) else (0, 0)
    for value in (shift, first, last):
        out.uint(value)
    return binades(shift, first, last)


def read_buckets(r: Reader) -> Buckets:
    """What :func:`write_octaves` or :func:`write_binades` noted, behind the family. Raises ``ContainerError``."""
    if r.uint(1) == Family.INTEGER:
        direct = r.uint(8)
        if direct < 1:
            raise malformed("an alphabet without buckets")
        return octaves(1 << direct, r.uint(MAX_MAGNITUDE))
    shift, first, last = r.uint(40), r.uint(1 << 16), r.uint(1 << 16)
    if not first <= last < first + MAX_BUCKETS - 1 or last << shift > MAX_MAGNITUDE:
        raise malformed("an alphabet that is too large")
    return binades(shift, first, last)


def signs_of(magnitude: Ints, negative: Ints, buckets: Buckets) -> Signs:
    """Which magnitudes have to carry their sign."""
    if not negative.any():
        return Signs.NONE
    # A negative zero is a bit pattern of its own and has to come back.
    if buckets.width[0] > 0 or negative[magnitude == 0].any():
        return Signs.ALL
    return Signs.NONZERO


def _entropy(histogram: Ints) -> float:
    p = histogram[histogram > 0] / max(1, histogram.sum())
    return float(-(p * np.log2(p)).sum())


def _plan(parts: Sequence[Part], bits: float, spread: float) -> list[_Geometry]:
    """Planes that cover all parts in order; runs of vectors share planes of 64 columns."""
    out: list[_Geometry] = []
    run = 0
    for part in [*parts, None]:
        if part is not None and part.rows == 1:
            run += len(part.magnitude)
            continue
        if run:
            out += _vector(run, bits, spread)
            run = 0
        if part is not None:
            out += [_matrix(part.rows, len(part.magnitude) // part.rows, part.kernel, bits, spread)]
    return out


def _vector(count: int, bits: float, spread: float) -> list[_Geometry]:
    columns = min(_VECTOR_COLUMNS, count)
    rows, rest = divmod(count, columns)
    out = [_matrix(rows, columns, 1, bits, spread)]
    if rest:
        out.append(_Geometry(plane=Plane(rows=1, columns=rest), pieces=1))
    return out


def _matrix(rows: int, columns: int, kernel: int, bits: float, spread: float) -> _Geometry:
    """Lanes in proportion to the square root of the coded size: steps and what they cost grow alike."""
    coded = rows * columns * max(bits, 0.05) / 8
    wish = max(1, min(MAX_LANES, round(math.sqrt(coded) * spread)))
    pieces = 1
    if wish > rows:
        for candidate in range(min(wish // rows, columns // 32), 1, -1):
            if columns % candidate == 0 and columns // candidate % kernel == 0:
                pieces = candidate
                break
    plane = Plane(
        rows=rows * pieces, columns=columns // pieces, kernel=kernel, lanes=min(wish, rows * pieces)
    )
    return _Geometry(plane=plane, pieces=pieces)


def _read_geometry(r: Reader) -> _Geometry:
    rows, columns = r.uint(MAX_ELEMENTS), r.uint(MAX_ELEMENTS)
    kernel, lanes, pieces = r.uint(MAX_ELEMENTS), r.uint(MAX_LANES), r.uint(MAX_LANES)
    if min(rows, columns, kernel, lanes, pieces) < 1 or rows * columns > MAX_ELEMENTS:
        raise malformed("a plane of an impossible size")
    # Also what would divide by zero below.
    if lanes > rows or rows % pieces:
        raise malformed("a plane with impossible lanes")
    return _Geometry(plane=Plane(rows=rows, columns=columns, kernel=kernel, lanes=lanes), pieces=pieces)


def pack_low(low: Ints, width: Ints) -> bytes:
    """The ``width`` lowest bits of each number, plane by plane, the lowest bits of all first."""
    planes = [low[width > b] >> b & 1 for b in range(int(width.max(initial=0)))]
    return np.packbits(np.concatenate(planes).astype(np.uint8)).tobytes() if planes else b""


def unpack_low(data: memoryview, width: Ints) -> Ints:
    """The inverse of :func:`pack_low`. Raises ``ContainerError`` unless ``data`` is exactly that."""
    total = int(width.sum())
    if len(data) != (total + 7) // 8:
        raise malformed("the low bits of a group have the wrong length")
    bits = np.unpackbits(np.frombuffer(data, np.uint8), count=total).astype(np.int64)
    out = np.zeros(len(width), np.int64)
    at = 0
    for b in range(int(width.max(initial=0))):
        who = np.flatnonzero(width > b)
        out[who] |= bits[at : at + len(who)] << b
        at += len(who)
    return out
