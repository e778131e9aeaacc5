"""ONNX: initialisers, constants and subgraphs, read from the protobuf wire format without protobuf.

Field numbers are those of onnx.proto3. Only offsets are needed, and the library would copy everything.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath

from edgekit.entropy.parse.span import Span

_DTYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 10: "float16", 16: "bfloat16",
    21: "uint4", 22: "int4",
}  # fmt: skip
_MAX_DEPTH = 32
_Field = tuple[int, int, int, int]  # number, wire type, begin, end (or value, 0 for a varint)


def spans(name: str, data: memoryview, files: Mapping[str, memoryview]) -> list[Span]:
    """The tensors of one model, in the file itself or in external data files among ``files``."""
    out: list[Span] = []
    try:
        for number, wire, begin, end in _fields(data, 0, len(data)):
            if (number, wire) == (7, 2):
                _graph(name, data, begin, end, out, 0)
    except ValueError:
        pass  # Not protobuf after all: what was found so far still only suggests.
    return [s for s in out if s.file in files]


def _varint(data: memoryview, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise ValueError("a varint is cut off")


def _fields(data: memoryview, at: int, end: int) -> Iterator[_Field]:
    while at < end:
        key, at = _varint(data, at, end)
        wire = key & 7
        if wire == 0:
            value, at = _varint(data, at, end)
            yield key >> 3, wire, value, 0
            continue
        if wire == 2:
            length, at = _varint(data, at, end)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise ValueError("a group or an unknown wire type")
        if length > end - at:
            raise ValueError("a field is cut off")
        yield key >> 3, wire, at, at + length
        at += length


def _graph(file: str, data: memoryview, begin: int, end: int, out: list[Span], depth: int) -> None:
    # A file may nest deeper than Python's stack.
    if depth > _MAX_DEPTH:
        return
    for number, wire, b, e in _fields(data, begin, end):
        if (number, wire) == (5, 2):
            _tensor(file, data, b, e, out)
        elif (number, wire) == (1, 2):
            for n2, w2, b2, e2 in _fields(data, b, e):
                if (n2, w2) == (5, 2):
                    _attribute(file, data, b2, e2, out, depth)


def _attribute(file: str, data: memoryview, begin: int, end: int, out: list[Span], depth: int) -> None:
    for number, wire, b, e in _fields(data, begin, end):
        if wire != 2:
            continue
        if number in (5, 10):
            _tensor(file, data, b, e, out)
        elif number in (6, 11):
            _graph(file, data, b, e, out, depth + 1)


def _tensor(file: str, data: memoryview, begin: int, end: int, out: list[Span]) -> None:
    dims: list[int] = []
    kind, label, raw = 0, "", None
    external: dict[bytes, bytes] = {}
    for number, wire, b, e in _fields(data, begin, end):
        if number == 1 and wire == 0:
            dims.append(b)
        elif number == 1 and wire == 2:
            while b < e:
                value, b = _varint(data, b, e)
                dims.append(value)
        elif (number, wire) == (2, 0):
            kind = b
        elif (number, wire) == (8, 2):
            label = bytes(data[b:e]).decode("utf-8", "replace")
        elif (number, wire) == (9, 2) or ((number, wire) == (4, 2) and kind == 1):
            raw = (b, e)
        elif (number, wire) == (13, 2):
            entry = {n: bytes(data[b2:e2]) for n, w, b2, e2 in _fields(data, b, e) if w == 2}
            external[entry.get(1, b"")] = entry.get(2, b"")
    dtype = _DTYPES.get(kind)
    if dtype is None:
        return
    shape = tuple(dims)
    if raw is not None:
        out.append(Span(file=file, name=label, dtype=dtype, shape=shape, offset=raw[0], size=raw[1] - raw[0]))
    elif b"location" in external:
        where = str(PurePosixPath(file).parent / external[b"location"].decode("utf-8", "replace"))
        bits = 4 if dtype.endswith("int4") else 8 if dtype.endswith("int8") else 16 if "16" in dtype else 32
        offset = int(external.get(b"offset", b"0"))
        size = int(external.get(b"length", b"%d" % ((math.prod(shape) * bits + 7) // 8)))
        out.append(Span(file=where, name=label, dtype=dtype, shape=shape, offset=offset, size=size))
