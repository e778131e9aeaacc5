"""The blocks of a container's file: read, checked by CRC-32, decoded, and kept as long as there is room."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from edgekit.core import contained
from edgekit.entropy import general
from edgekit.entropy.groups import decode as decode_group
from edgekit.entropy.index import Block
from edgekit.entropy.wire import malformed
from edgekit.errors import SourceError

if TYPE_CHECKING:
    from edgekit.types import Array

_KEPT_BYTES = 256 << 20
_KEPT_SIZES = 8
"""Decoded groups are kept up to so many bytes, and so many times the file: more than a file of ours has in use."""

_BEAT_BYTES = 1 << 14
"""After so much of a file something was done. Groups that say nothing take no bytes, whatever time they take."""


class Blocks:
    """The blocks of an open file of ``size`` bytes, groups before chunks."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size = file, size
        self._groups: tuple[Block, ...] = ()
        self._chunks: tuple[Block, ...] = ()
        self._offsets: list[int] = []
        self._decoded: dict[int, tuple[Array, Array]] = {}
        self._held = self._unsaid = 0
        self._room = max(_KEPT_BYTES, _KEPT_SIZES * size)
        self._seen: set[int] = set()

    def lay_out(self, at: int, groups: tuple[Block, ...], chunks: tuple[Block, ...]) -> None:
        """Take note of all blocks, the first of which lies ``at``; the file must end with the last one."""
        self._groups, self._chunks, self._offsets = groups, chunks, []
        for block in (*groups, *chunks):
            self._offsets.append(at)
            at += block.size
        if at != self._size:
            raise malformed(f"the file has {self._size} bytes instead of {at}")

    def read(self, offset: int, size: int, crc: int | None = None) -> bytes:
        """Bytes of the file. Raises ``ContainerError``, and ``SourceError`` where the system cannot read them."""
        if size > self._size - offset:
            raise malformed("it is truncated")
        try:
            self._file.seek(offset)
            data = self._file.read(size)
        except OSError as e:
            raise unreadable(self._file.name, e) from e
        if len(data) != size or (crc is not None and zlib.crc32(data) != crc):
            raise malformed("a checksum does not match")
        return data

    def group(self, number: int) -> tuple[Array, Array]:
        """(magnitude, negative) of one group, decoded again where it had to make room."""
        found = self._decoded.pop(number, None)
        if found is None:
            block = self._groups[number]
            data = self._read_block(number, block)
            magnitude, negative = decode_group(block.codec, data, block.raw)
            narrow = np.min_scalar_type(int(magnitude.max(initial=0)))
            found = magnitude.astype(narrow), negative.astype(np.bool_)
            self._held += _bytes(found)
        self._decoded[number] = found  # the last of them is the one that was used last
        while self._held > self._room and len(self._decoded) > 1:
            self.forget(next(iter(self._decoded)))
        return found

    def forget(self, number: int) -> None:
        """A group is not needed any more."""
        found = self._decoded.pop(number, None)
        self._held -= 0 if found is None else _bytes(found)

    def keep(self, count: int) -> None:
        """Forget all but the last ``count`` groups."""
        while len(self._decoded) > count:
            self.forget(next(iter(self._decoded)))

    def chunks(self) -> Iterator[bytes]:
        """The bytes outside tensors."""
        for number, block in enumerate(self._chunks, len(self._groups)):
            yield general.decode(block.codec, self._read_block(number, block), block.raw)

    def _read_block(self, number: int, block: Block) -> bytes:
        data = self.read(self._offsets[number], block.size, block.crc)
        if number not in self._seen:
            self._seen.add(number)
            self._unsaid += block.size
        if self._unsaid >= _BEAT_BYTES:
            self._unsaid = 0
            contained.beat()
        return data


def unreadable(path: object, error: OSError) -> SourceError:
    """What to raise where the system does not give what is in a file or folder."""
    return SourceError(
        f"cannot read {path}: {error.strerror or error}",
        hint="name a file that is there and that you may read",
    )


def _bytes(decoded: tuple[Array, Array]) -> int:
    return sum(array.nbytes for array in decoded)
