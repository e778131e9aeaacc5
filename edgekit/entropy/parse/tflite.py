"""TensorFlow Lite: tensors' buffers, read from the flatbuffer without generated code.

Field numbers are those of schema.fbs: Model (subgraphs 2, buffers 4), SubGraph (tensors 0), Tensor
(shape 0, type 1, buffer 2, name 3, quantization 4), Buffer (data 0, offset 1, size 2).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from edgekit.entropy.parse.span import Span

_DTYPES = {
    0: "float32",
    1: "float16",
    2: "int32",
    3: "uint8",
    7: "int16",
    9: "int8",
    16: "uint16",
    17: "int4",
}
_MAX_ITEMS = 1 << 20


def spans(name: str, data: memoryview, files: Mapping[str, memoryview]) -> list[Span]:
    """The constant tensors of one model; none if it is not a model."""
    del files
    try:
        return _model(name, data)
    except (struct.error, ValueError):
        return []


def _model(file: str, data: memoryview) -> list[Span]:
    if bytes(data[4:8]) != b"TFL3":
        return []
    root = _u32(data, 0)
    buffers = _vector(data, _field(data, root, 4))
    out: list[Span] = []
    seen: set[int] = set()
    for graph in _tables(data, _field(data, root, 2)):
        for tensor in _tables(data, _field(data, graph, 0)):
            out += _scales(file, data, tensor)
            kind_at, buffer_at = _field(data, tensor, 1), _field(data, tensor, 2)
            index = _u32(data, buffer_at) if buffer_at else 0
            dtype = _DTYPES.get(data[kind_at] if kind_at else 0)
            if not index or index in seen or index >= buffers[1] or dtype is None:
                continue
            seen.add(index)
            begin, size = _buffer(data, buffers[0] + 4 * index)
            if size:
                shape = _shape(data, _field(data, tensor, 0))
                label = _string(data, _field(data, tensor, 3))
                out.append(
                    Span(
                        file=file, name=label, dtype=dtype, shape=shape, offset=begin, size=size,
                        channels_last=True,
                    )
                )  # fmt: skip
    return out


def _scales(file: str, data: memoryview, tensor: int) -> list[Span]:
    """The scales of a tensor that is quantized per channel: quantization is field 4, its scale field 2.

    Minima and maxima beside them repeat the scales' mantissas: a general coder makes more of those.
    """
    at = _field(data, tensor, 4)
    if not at:
        return []
    begin, count = _vector(data, _field(data, at + _u32(data, at), 2))
    name = _string(data, _field(data, tensor, 3)) + "/scale"
    return [Span(file=file, name=name, dtype="float32", shape=(count,), offset=begin, size=4 * count)]


def _u32(data: memoryview, at: int) -> int:
    return int(struct.unpack_from("<I", data, at)[0])


def _field(data: memoryview, table: int, number: int) -> int:
    """Where a field of a table is, 0 if it is absent."""
    vtable = table - int(struct.unpack_from("<i", data, table)[0])
    if vtable < 0:
        raise ValueError("a vtable before the file")
    at = 4 + 2 * number
    if at + 2 > struct.unpack_from("<H", data, vtable)[0]:
        return 0
    offset = struct.unpack_from("<H", data, vtable + at)[0]
    return table + int(offset) if offset else 0


def _vector(data: memoryview, at: int) -> tuple[int, int]:
    """(first element, count) of the vector that the field at ``at`` points to."""
    if not at:
        return 0, 0
    begin = at + _u32(data, at)
    count = _u32(data, begin)
    if count > len(data):
        raise ValueError("a vector longer than the file")
    return begin + 4, count


def _tables(data: memoryview, at: int) -> list[int]:
    begin, count = _vector(data, at)
    if count > _MAX_ITEMS:
        raise ValueError("too many tables")
    return [begin + 4 * i + _u32(data, begin + 4 * i) for i in range(count)]


def _buffer(data: memoryview, at: int) -> tuple[int, int]:
    table = at + _u32(data, at)
    inline = _vector(data, _field(data, table, 0))
    if inline[1]:
        return inline
    offset, size = _field(data, table, 1), _field(data, table, 2)
    if not offset or not size:
        return 0, 0
    return int(struct.unpack_from("<Q", data, offset)[0]), int(struct.unpack_from("<Q", data, size)[0])


def _shape(data: memoryview, at: int) -> tuple[int, ...]:
    begin, count = _vector(data, at)
    return struct.unpack_from(f"<{min(count, 16)}i", data, begin)


def _string(data: memoryview, at: int) -> str:
    begin, count = _vector(data, at)
    return bytes(data[begin : begin + count]).decode("utf-8", "replace")
