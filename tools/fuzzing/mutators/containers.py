"""``.ekz``, safetensors and GGUF: what their headers say, with the lengths and checksums around it mended."""

from __future__ import annotations

import json
import random
import struct
import zlib
from dataclasses import replace

from edgekit.entropy import general
from edgekit.entropy.forms import BY_CODE, Form
from edgekit.entropy.index import Block, FileEntry, Index, TensorEntry
from edgekit.entropy.wire import Reader, Writer
from fuzzing import values
from fuzzing.mutators import documents, raw

_HEAD = 64


# --- .ekz ------------------------------------------------------------------------------------------------


def ekz(rng: random.Random, data: bytes) -> bytes:
    """Another index around the same data, or data that are others, checksums mended in both cases."""
    if rng.random() < 0.2:
        return raw.mutate(rng, data)
    index, inline, rest = _taken_apart(data)
    if rng.random() < 0.25 and rest:
        rest = raw.mutate(rng, rest)
    for _ in range(rng.randint(1, 2)):
        index = _changed(rng, index)
    index = _summed(index, rest)
    try:
        body = index.to_bytes()
    except (ValueError, OverflowError, IndexError):
        return raw.mutate(rng, data)
    if rng.random() < 0.2:
        body = raw.mutate(rng, body, most=2)
    return _put_together(rng, body, inline, rest)


def _taken_apart(data: bytes) -> tuple[Index, bytes, bytes]:
    head = Reader(data[:_HEAD])
    head.take(4)
    codec, size, whole, length = head.uint(), head.uint(), head.uint(), head.uint()
    head.take(4)
    first = general.decode(codec, data[head.at : head.at + size], whole)
    return Index.from_bytes(first[:length]), first[length:], data[head.at + size :]


def _put_together(rng: random.Random, body: bytes, inline: bytes, rest: bytes) -> bytes:
    whole = body + inline
    codec, first = general.encode(whole, (general.Codec.LZMA,))
    out = Writer()
    out.data += b"EKZ\x01"
    sizes = [codec, len(first), len(whole), len(body)]
    if rng.random() < 0.08:
        sizes[rng.randrange(4)] = rng.choice((0, 1, 255, 1 << 22, 1 << 28, 1 << 40))
    for value in sizes:
        out.uint(value)
    out.data += zlib.crc32(first).to_bytes(4, "little")
    return bytes(out.data) + first + rest


def _summed(index: Index, rest: bytes) -> Index:
    """The CRCs of the blocks as they are in ``rest`` now."""
    at, sides = 0, []
    for blocks in (index.groups, index.chunks):
        mended = []
        for block in blocks:
            mended.append(replace(block, crc=zlib.crc32(rest[at : at + block.size])))
            at += block.size
        sides.append(tuple(mended))
    return replace(index, groups=sides[0], chunks=sides[1])


def _changed(rng: random.Random, index: Index) -> Index:
    field = rng.choice(("files", "tensors", "tensors", "groups", "chunks", "single"))
    if field == "single":
        return replace(index, single=not index.single)
    rows = list(getattr(index, field))
    if not rows:
        return index
    at = rng.randrange(len(rows))
    match rng.randrange(8):
        case 0:
            del rows[at]
        case 1:
            rows.insert(at, rows[at])
        case 2:
            rows.reverse()
        case _:
            rows[at] = _changed_row(rng, rows[at])
    return replace(index, **{field: tuple(rows)})


def _changed_row(rng: random.Random, row: FileEntry | TensorEntry | Block) -> FileEntry | TensorEntry | Block:
    if isinstance(row, TensorEntry):
        return _changed_tensor(rng, row)
    if isinstance(row, FileEntry) and rng.random() < 0.5:
        return replace(row, path=values.text(rng))
    name = rng.choice(("size", "tensors") if isinstance(row, FileEntry) else ("raw", "size", "codec"))
    return replace(row, **{name: abs(int(_whole(rng, getattr(row, name))))})


def _changed_tensor(rng: random.Random, row: TensorEntry) -> TensorEntry:
    match rng.randrange(9):
        case 0:
            return replace(row, name=values.text(rng))
        case 1:
            return replace(row, dtype=rng.choice(list(BY_CODE.values())))
        case 2:
            return replace(row, form=rng.choice(list(Form)), source=rng.choice((0, 1, 2)))
        case 3:
            return replace(
                row, shape=rng.choice((row.shape[::-1], (1 << 40,), (), (0,), row.shape + (1,) * 20, (3, 7)))
            )
        case 4:
            return replace(row, groups=rng.choice((row.groups * 2, (), (99,), row.groups[:1])))
        case 5:
            return replace(row, values=rng.choice((row.values[:-1], (*row.values, 1 << 61), (0, 1), (-5,))))
        case _:
            name = rng.choice(("gap", "part", "shift", "book", "book_group", "source"))
            return replace(row, **{name: abs(int(_whole(rng, getattr(row, name))))})


def _whole(rng: random.Random, value: int) -> int:
    return rng.choice((value + 1, value - 1, value * 2, rng.choice(values.NUMBERS)))


# --- safetensors -----------------------------------------------------------------------------------------


def safetensors(rng: random.Random, data: bytes) -> bytes:
    """Another header around the same tensors, its length mended; the JSON inside its metadata, too."""
    if rng.random() < 0.2:
        return raw.mutate(rng, data)
    size = struct.unpack_from("<Q", data)[0]
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    inner = header.get("__metadata__", {}).get("edgekit")
    if inner is not None and rng.random() < 0.5:
        changed = documents.dump(rng, documents.mutate(rng, json.loads(inner)))
        header["__metadata__"]["edgekit"] = changed.decode("utf-8", "replace")
    elif rng.random() < 0.3:
        _claim(rng, header)
    else:
        header = documents.mutate(rng, header)
    if rng.random() < 0.2:
        body = raw.mutate(rng, body) if body else b""
    text = documents.dump(rng, header)
    length = len(text) if rng.random() < 0.95 else rng.choice((0, 1, 2**63, 100_000_001))
    return struct.pack("<Q", length) + text + body


def _claim(rng: random.Random, header: dict) -> None:
    """Types and shapes that fit the same bytes, or nearly do."""
    names = [n for n in header if n != "__metadata__"]
    row = header[rng.choice(names)]
    row["dtype"] = rng.choice(("F32", "I32", "F64", "BF16", "U8", "BOOL", "F8_E4M3", "F4", "C64", "I4", "x"))
    if rng.random() < 0.5:
        first, last = row["data_offsets"]
        row["shape"] = rng.choice(([last - first], [(last - first) // 4], [0], [], [1, -1], [2**63]))


# --- GGUF ------------------------------------------------------------------------------------------------


def gguf(rng: random.Random, data: bytes) -> bytes:
    """Counts, types and lengths of the header; the file has no checksum."""
    changed = bytearray(data)
    match rng.randrange(5):
        case 0:
            struct.pack_into("<I", changed, 4, rng.choice((0, 1, 2, 3, 4, 2**32 - 1)))
        case 1:
            struct.pack_into("<Q", changed, rng.choice((8, 16)), rng.choice((0, 1, 2**32, 2**63, 2**64 - 1)))
        case 2:
            at = rng.randrange(24, len(data) - 8) & ~3
            struct.pack_into("<Q", changed, at, rng.choice((0, 1, 2**31, 2**40, 2**64 - 1)))
        case _:
            return raw.mutate(rng, data)
    return bytes(changed)
