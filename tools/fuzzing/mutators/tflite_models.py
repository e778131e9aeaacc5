"""TFLite models: their tables field by field, or the offsets and lengths of the flatbuffer itself."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from fuzzing import values
from fuzzing.mutators import raw


def mutate(rng: random.Random, data: bytes) -> bytes:
    """Changed tables packed anew, or changed places in the buffer."""
    if rng.random() < 0.35:
        return _offsets(rng, data) if rng.random() < 0.7 else raw.mutate(rng, data)
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0))
    for _ in range(rng.randint(1, 3)):
        _change(rng, model)
    try:
        builder = flatbuffers.Builder(len(data))
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())
    # A table that cannot be written, whatever the reason: its buffer is damaged in its place.
    except Exception:  # noqa: BLE001
        return _offsets(rng, data)


def _tables(value: object) -> Iterator[object]:
    if isinstance(value, list):
        for item in value:
            yield from _tables(item)
    elif type(value).__module__ == schema.__name__:
        yield value
        for inner in vars(value).values():
            yield from _tables(inner)


def _change(rng: random.Random, model: object) -> None:
    table = rng.choice(list(_tables(model)))
    names = list(vars(table))
    if not names:
        return
    name = rng.choice(names)
    setattr(table, name, _value(rng, getattr(table, name)))


def _value(rng: random.Random, value: object) -> object:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice((value + 1, value - 1, -1, 0, 127, 2**31 - 1, -(2**31), rng.randrange(200)))
    if isinstance(value, float):
        return rng.choice(values.FLOATS)
    if isinstance(value, bytes | str):
        return values.text(rng).encode("utf-8", "replace")
    if isinstance(value, np.ndarray):
        return _array(rng, value)
    if isinstance(value, list):
        return rng.choice((None, [], value[:-1], value * 2, value[::-1]))
    return None


def _array(rng: random.Random, value: np.ndarray) -> object:
    changed = value.copy()
    match rng.randrange(5):
        case 0:
            return None
        case 1:
            return changed[:-1]
        case 2:
            return np.concatenate([changed, changed])
        case _:
            if changed.size:
                edges = (0, 1, -1, 99, 2**31 - 1, -(2**31)) if changed.dtype.kind == "i" else (0, 1, 255)
                at = rng.randrange(changed.size)
                changed.flat[at] = np.array(rng.choice(edges)).astype(changed.dtype)
            return changed


def _offsets(rng: random.Random, data: bytes) -> bytes:
    """Words that are offsets, lengths or parts of vtables, changed to others of the file."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(0, max(1, len(data) - 8)) & ~1
        word = struct.unpack_from("<I", data, at & ~3)[0]
        match rng.randrange(5):
            case 0:
                other = rng.randrange(0, len(data) - 4) & ~3
                struct.pack_into("<I", changed, at & ~3, struct.unpack_from("<I", data, other)[0])
            case 1:
                struct.pack_into("<I", changed, at & ~3, (word + rng.choice((-4, 4, -1, 1, 16))) % 2**32)
            case 2:
                struct.pack_into("<H", changed, at, rng.choice((0, 2, 4, 6, 8, 0xFFFF)))
            case 3:
                struct.pack_into("<I", changed, at & ~3, rng.choice((0, len(data), 2**31, 2**32 - 1)))
            case _:
                struct.pack_into("<i", changed, at & ~3, rng.choice((-1, -4, -16, -len(data))))
    return bytes(changed)
