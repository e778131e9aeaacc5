"""General coders for bytes that are no tensor. Encode/decode pairs, the smallest result wins.

``lzma`` and the context mixer need nothing but Python and numpy. ``zstd`` is there for those who want a
quicker decoder and have the package; it is never chosen unasked.
"""

from __future__ import annotations

import enum
import importlib
import lzma
from collections.abc import Iterable
from types import ModuleType

from edgekit.entropy import bytesmodel
from edgekit.entropy.wire import malformed
from edgekit.errors import MissingExtraError

MAX_CHUNK = 1 << 22
_MIXED_UP_TO = 40_000


class Codec(enum.IntEnum):
    """How a chunk of bytes is stored."""

    STORED = 0
    LZMA = 1
    MIXED = 2
    ZSTD = 3


def encode(data: bytes, codecs: Iterable[Codec] = (Codec.LZMA, Codec.MIXED)) -> tuple[Codec, bytes]:
    """The smallest of the ``codecs`` or the data as they are."""
    best = (Codec.STORED, data)
    for codec in codecs:
        # 30 microseconds a byte: above, a second and more for a few bytes.
        if codec is Codec.MIXED and len(data) > _MIXED_UP_TO:
            continue
        coded = _ENCODERS[codec](data)
        if len(coded) < len(best[1]):
            best = (codec, coded)
    return best


def decode(codec: int, data: bytes | memoryview, size: int) -> bytes:
    """The ``size`` bytes of a chunk. Raises ``ContainerError``; allocates no more than ``size``."""
    if not 0 <= size <= MAX_CHUNK:
        raise malformed(f"a chunk of {size} bytes")
    try:
        out = _DECODERS[Codec(codec)](bytes(data), size)
    except (ValueError, lzma.LZMAError) as error:
        raise malformed("a chunk of bytes cannot be decoded") from error
    if len(out) != size:
        raise malformed(f"a chunk has {len(out)} bytes instead of {size}")
    return out


def _stored(data: bytes, size: int) -> bytes:
    del size
    return data


def _filters(size: int) -> list[dict[str, int]]:
    # No larger than the data: the decoder has to allocate it.
    window = 1 << max(12, min(26, (size - 1).bit_length() if size else 0))
    return [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": window, "pb": 2}]


def _lzma_encode(data: bytes) -> bytes:
    return lzma.compress(data, format=lzma.FORMAT_RAW, filters=_filters(len(data)))


def _lzma_decode(data: bytes, size: int) -> bytes:
    reader = lzma.LZMADecompressor(format=lzma.FORMAT_RAW, filters=_filters(size))
    out = reader.decompress(data, max_length=size)
    if not reader.eof and len(out) == size:
        reader.decompress(b"", max_length=0)
    if reader.unused_data:
        raise malformed("a chunk of bytes has a tail")
    return out


def _mixed_decode(data: bytes, size: int) -> bytes:
    if size > bytesmodel.MAX_SIZE:
        raise malformed(f"a mixed chunk of {size} bytes")
    return bytesmodel.decode(data, size)


def _zstandard() -> ModuleType:
    try:
        return importlib.import_module("zstandard")
    except ImportError as error:
        raise MissingExtraError("zstandard", "zstd") from error


def _zstd_encode(data: bytes) -> bytes:
    compressor = _zstandard().ZstdCompressor(level=22, write_checksum=False)
    return bytes(compressor.compress(data))


def _zstd_decode(data: bytes, size: int) -> bytes:
    zstd = _zstandard()
    try:
        if zstd.get_frame_parameters(data).content_size != size:
            raise malformed("a zstd frame of another size")
        decompressor = zstd.ZstdDecompressor(max_window_size=MAX_CHUNK * 2)
        return bytes(decompressor.decompress(data, max_output_size=size))
    except zstd.ZstdError as error:
        raise ValueError(str(error)) from error


_ENCODERS = {Codec.LZMA: _lzma_encode, Codec.MIXED: bytesmodel.encode, Codec.ZSTD: _zstd_encode}
_DECODERS = {
    Codec.STORED: _stored, Codec.LZMA: _lzma_decode, Codec.MIXED: _mixed_decode, Codec.ZSTD: _zstd_decode,
}  # fmt: skip
