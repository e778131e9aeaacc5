"""Zip archives: entries changed inside with their CRCs mended, hostile names, kinds, sizes and numbers of entries."""

from __future__ import annotations

import io
import random
import struct
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass

from fuzzing import values
from fuzzing.mutators import raw

Inner = Callable[[random.Random, str, bytes], bytes]
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
_LINK, _FIFO, _DEVICE = 0o120777 << 16, 0o010644 << 16, 0o020644 << 16


@dataclass
class Entry:
    """One member: what it is called, what it holds, its mode and how it is compressed."""

    name: str
    data: bytes
    mode: int = 0o100644 << 16
    method: int = zipfile.ZIP_STORED


def read(data: bytes) -> list[Entry]:
    """The members of an archive that is whole."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return [
            Entry(i.filename, archive.read(i), i.external_attr, i.compress_type) for i in archive.infolist()
        ]


def write(entries: list[Entry]) -> bytes:
    """An archive with right CRCs and lengths, whatever its entries are called."""
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w") as archive:
        warnings.simplefilter("ignore")  # two entries of one name are meant
        for entry in entries:
            info = zipfile.ZipInfo("x", date_time=(1980, 1, 1, 0, 0, 0))
            info.filename = info.orig_filename = entry.name.encode("utf-8", "replace").decode()
            info.external_attr, info.compress_type, info.create_system = entry.mode, entry.method, 3
            archive.writestr(info, entry.data)
    return buffer.getvalue()


def mutate(
    rng: random.Random, data: bytes, inner: Inner, mend: Callable[[list[Entry]], None] | None = None
) -> bytes:
    """Change entries by ``inner`` (which knows the form of each by its name), or the archive around them.

    ``mend`` puts right what the archive says about its own entries, so that a change is seen behind that check.
    """
    entries = read(data)
    for _ in range(rng.randint(1, 2)):
        if rng.random() < 0.7:
            entry = rng.choice(entries)
            entry.data = inner(rng, entry.name, entry.data)
        else:
            _rearrange(rng, entries)
    if mend is not None and rng.random() < 0.9:
        mend(entries)
    made = write(entries)
    return _lie(rng, made) if rng.random() < 0.15 else made


def _rearrange(rng: random.Random, entries: list[Entry]) -> None:
    entry = rng.choice(entries)
    match rng.randrange(9):
        case 0:
            entry.name = values.text(rng)
        case 1:
            entries.append(Entry(rng.choice((entry.name, entry.name.upper(), entry.name + "/")), entry.data))
        case 2:
            if len(entries) > 1:
                entries.remove(entry)
        case 3:
            entry.mode = rng.choice((_LINK, _FIFO, _DEVICE, 0, 0o040755 << 16))
            entry.data = rng.choice((b"../canary", b"/etc/passwd", entry.data))
        case 4:
            entry.method = rng.choice(_METHODS)
        case 5:
            entries += [Entry(f"many/{i}", b"") for i in range(rng.choice((10, 2000)))]
        case 6:
            entries.append(Entry(rng.choice(values.paths()), b"import os\n"))
        case 7:
            entry.data, entry.method = b"\0" * rng.choice((1 << 16, 1 << 22)), zipfile.ZIP_DEFLATED
        case _:
            entry.name = rng.choice(("a/" * 200, entry.name + "/" + entry.name, "model", "x" * 300))


def _lie(rng: random.Random, data: bytes) -> bytes:
    """Sizes, CRCs, flags or methods in the directory that are not those of the entries."""
    changed = bytearray(data)
    places = [i for i in range(len(data) - 46) if data[i : i + 4] == b"PK\1\2"]
    if not places:
        return raw.mutate(rng, data)
    at = rng.choice(places)
    match rng.randrange(5):
        case 0:
            struct.pack_into("<I", changed, at + 24, rng.choice((0, 1, 1 << 30, 0xFFFFFFFE)))
        case 1:
            struct.pack_into("<I", changed, at + 16, rng.getrandbits(32))
        case 2:
            struct.pack_into("<H", changed, at + 10, rng.choice((1, 8, 12, 14, 93, 99)))
        case 3:
            struct.pack_into("<H", changed, at + 8, rng.choice((1, 8, 0x40, 0x800, 0xFFFF)))
        case _:
            struct.pack_into("<I", changed, at + 42, rng.choice((0, 4, len(data), 0xFFFFFFFF)))
    return bytes(changed)
