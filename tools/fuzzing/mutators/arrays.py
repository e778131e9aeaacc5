"""``.npy`` records and ``.npz`` archives: headers that claim other types, orders and shapes than the data have."""

from __future__ import annotations

import random
import struct

from fuzzing import values
from fuzzing.mutators import archives, raw

_TYPES = (
    "<f4", ">f4", "<f8", "<f2", "|u1", "<i8", ">u2", "|b1", "<c16", "|O", "|V8", "<U5", "|S3", "<M8[ns]",
    "<m8", "<f16", "?",
    "<f3", "<U999999999", "|V2147483647", "", "f4,f4", "x", "<i4, (1000,)f8", "O", "<V0", "<U0",
)  # fmt: skip
_DESCRIPTIONS = (
    "[('a', '<f4')]",
    "[('a', '|O')]",
    "[('a', '<f4', (1000, 1000, 1000))]",
    "[]",
    "()",
    "None",
    "1",
    "{}",
    "[('', '<f4')]",
)
_SHAPES = (
    "()", "(0,)", "(-1,)", "(1,)", "(2, 3, 8, 8)", "(1000000000000,)", "(65536, 65536, 65536)", "(1.5,)",
    "('a',)", "(None,)",
    "5", "[1, 2]", "(True,)", "(2, -3)", "(1,) * 9", "(1, " + "1, " * 70 + ")", "(9223372036854775807,)",
    "(" + "9" * 4400 + ",)",
)  # fmt: skip


def record(rng: random.Random, data: bytes) -> bytes:
    """One ``.npy`` file with another header, or other bytes."""
    if not data.startswith(b"\x93NUMPY") or rng.random() < 0.25:
        return raw.mutate(rng, data)
    size = struct.unpack_from("<H", data, 8)[0]
    body = data[10 + size :]
    if rng.random() < 0.2:
        body = rng.choice((b"", body[:-1], body[: len(body) // 2], body * 2))
    return _with_header(rng, _header(rng), body)


def _header(rng: random.Random) -> str:
    kind = rng.choice(_DESCRIPTIONS) if rng.random() < 0.3 else repr(rng.choice(_TYPES))
    kind = "'<f4'" if rng.random() < 0.4 else kind
    shape = rng.choice(_SHAPES) if rng.random() < 0.6 else "(1, 3, 8, 8)"
    order = rng.choice(("False", "True", "None", "1", "'x'")) if rng.random() < 0.3 else "False"
    header = f"{{'descr': {kind}, 'fortran_order': {order}, 'shape': {shape}, }}"
    match rng.randrange(12):
        case 0:
            header = header.replace("'shape'", rng.choice(("'shap'", "'descr'", "__import__('os')")))
        case 1:
            header = rng.choice(
                ("", "{}", "[" * 5000, "__import__('os').mkdir('x')", "1", "{'descr': '<f4'}")
            )
        case 2:
            header += values.text(rng)
    return header


def _with_header(rng: random.Random, header: str, body: bytes) -> bytes:
    text = header.encode("utf-8", "replace").ljust(117) + b"\n"
    version = rng.choice((1, 1, 1, 1, 2, 3, 9))
    length = struct.pack("<H" if version == 1 else "<I", min(len(text), 65535))
    return b"\x93NUMPY" + bytes([version, 0]) + length + text + body


def archive(rng: random.Random, data: bytes) -> bytes:
    """An ``.npz`` file whose members or directory were changed."""
    if rng.random() < 0.15:
        return raw.mutate(rng, data)
    return archives.mutate(rng, data, lambda chance, _name, member: record(chance, member))
