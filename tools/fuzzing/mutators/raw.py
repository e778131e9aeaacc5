"""Bytes: flipped, overwritten by lengths that cannot be, cut, repeated and spliced."""

from __future__ import annotations

import random
import struct

_WIDE = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
_MARKS = b"0(9,{[\"'<|\xff\x00\n="


def mutate(rng: random.Random, data: bytes, most: int = 4) -> bytes:
    """A few changes anywhere in ``data``."""
    changed = bytearray(data or b"\0")
    for _ in range(rng.randint(1, most)):
        if not changed:
            return b""
        _change(rng, changed)
    return bytes(changed)


def _change(rng: random.Random, data: bytearray) -> None:
    at = rng.randrange(len(data))
    span = rng.choice((1, 2, 4, 8, 16, 64))
    match rng.randrange(9):
        case 0:
            data[at] ^= 1 << rng.randrange(8)
        case 1:
            data[at] = rng.choice(_MARKS)
        case 2:
            at -= at % 4
            data[at : at + 4] = struct.pack("<I", rng.choice(_WIDE))
        case 3:
            data[at : at + 8] = struct.pack("<Q", rng.choice((*_WIDE, 2**63, 2**64 - 1, 2**40)))
        case 4:
            del data[at : at + span]
        case 5:
            data[at:at] = data[at : at + span]
        case 6:
            other = rng.randrange(len(data))
            data[at : at + span] = data[other : other + span]
        case 7:
            del data[at:]
        case _:
            data[at : at + span] = rng.randbytes(span)
