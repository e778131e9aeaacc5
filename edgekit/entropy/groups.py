"""How a group of numbers is coded: by the context model, by Huffman codes, or by Zstandard.

The context model is the smallest by far and the slowest to decode; Huffman codes give whole bits to magnitudes
and signs as they are; Zstandard sees the bytes of the numbers, plane by plane, and needs its package.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence

import numpy as np

from edgekit.entropy import coding, general, huffman
from edgekit.entropy.coding import MAX_ELEMENTS, Family, Part
from edgekit.entropy.rans import Ints
from edgekit.entropy.tensors import Signs
from edgekit.entropy.wire import Reader, Writer, malformed

_MAX_WIDTH = 6


class GroupCodec(enum.IntEnum):
    """How a group is stored. The numbers are those of the format."""

    ADAPTIVE = 0
    HUFFMAN = 1
    ZSTD = 2


def encode(
    codec: GroupCodec, parts: Sequence[Part], family: Family, mantissa: int, *, spread: float
) -> bytes:
    """Code ``parts``; ``mantissa`` and ``spread`` as in :func:`edgekit.entropy.coding.encode_group`."""
    if codec is GroupCodec.ADAPTIVE:
        return coding.encode_group(parts, family, mantissa, spread)
    magnitude = np.concatenate([p.magnitude for p in parts])
    negative = np.concatenate([p.negative for p in parts])
    if len(magnitude) > MAX_ELEMENTS:
        raise ValueError(f"{len(magnitude)} elements in a group")
    if codec is GroupCodec.HUFFMAN:
        return _huffman(magnitude, negative, family, mantissa)
    return _zstd(magnitude, negative)


def decode(codec: int, data: bytes | memoryview, elements: int) -> tuple[Ints, Ints]:
    """(magnitude, negative) of all ``elements`` of a group. Raises ``ContainerError``, and ``MissingExtraError``
    when Zstandard is needed and not there."""
    if codec not in set(GroupCodec):
        raise malformed(f"a group in a code with the number {codec}")
    if codec == GroupCodec.ADAPTIVE:
        return coding.decode_group(data, elements)
    if not 0 < elements <= MAX_ELEMENTS:
        raise malformed(f"a group of {elements} elements")
    return (_from_huffman if codec == GroupCodec.HUFFMAN else _from_zstd)(Reader(data), elements)


def _huffman(magnitude: Ints, negative: Ints, family: Family, mantissa: int) -> bytes:
    out = Writer()
    out.uint(family)
    if family is Family.INTEGER:
        buckets = coding.write_octaves(magnitude, out)
    else:
        buckets = coding.write_binades(magnitude, mantissa, out)
    bucket = buckets.of(magnitude)
    signs = coding.signs_of(magnitude, negative, buckets)
    out.uint(signs)
    symbols = bucket if signs is Signs.NONE else 2 * bucket + negative
    out.blob(huffman.encode(symbols, _alphabet(buckets.count, signs)))
    out.data += coding.pack_low(magnitude - buckets.low[bucket], buckets.width[bucket])
    return bytes(out.data)


def _from_huffman(r: Reader, elements: int) -> tuple[Ints, Ints]:
    buckets = coding.read_buckets(r)
    signs = Signs(r.uint(2))
    symbols = huffman.decode(r.blob(), elements, _alphabet(buckets.count, signs))
    bucket, negative = (
        (symbols, np.zeros_like(symbols)) if signs is Signs.NONE else (symbols >> 1, symbols & 1)
    )
    low = coding.unpack_low(r.take(r.left), buckets.width[bucket])
    return buckets.low[bucket] + low, negative


def _alphabet(buckets: int, signs: Signs) -> int:
    return buckets if signs is Signs.NONE else 2 * buckets


def _zstd(magnitude: Ints, negative: Ints) -> bytes:
    """The numbers as ``2 · magnitude + negative``, their lowest bytes first, then the next …"""
    numbers = magnitude << 1 | negative
    width = max(1, (int(numbers.max(initial=0)).bit_length() + 7) // 8)
    planes = numbers.astype("<i8").view(np.uint8).reshape(-1, 8)[:, :width].T
    out = Writer()
    out.uint(width)
    for plane in planes:
        codec, coded = general.encode(plane.tobytes(), (general.Codec.ZSTD,))
        out.uint(codec)
        out.blob(coded)
    return bytes(out.data)


def _from_zstd(r: Reader, elements: int) -> tuple[Ints, Ints]:
    width = r.uint(_MAX_WIDTH)
    numbers = np.zeros(elements, np.int64)
    for plane in range(width):
        codec = r.uint(general.Codec.ZSTD)
        if codec not in (general.Codec.STORED, general.Codec.ZSTD):
            raise malformed("a plane of bytes in another code")
        raw = general.decode(codec, r.blob(), elements)
        numbers |= np.frombuffer(raw, np.uint8).astype(np.int64) << 8 * plane
    r.end()
    return numbers >> 1, numbers & 1
