"""Trees of files and archives, byte for byte the same on every run: sorted names, fixed times and modes."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import IO

from edgekit.package.contents import Content
from edgekit.types import sha256_bytes, sha256_file

# The oldest time that a zip archive can express.
_EPOCH = (1980, 1, 1, 0, 0, 0)
_MODE = 0o100644 << 16

SUMS = "SHA256SUMS"


def read(content: Content) -> bytes:
    """The bytes of one file."""
    return content if isinstance(content, bytes) else content.read_bytes()


def sha256(content: Content) -> str:
    """Hex sha256 of one file."""
    return sha256_bytes(content) if isinstance(content, bytes) else sha256_file(content)


def write_tree(files: Mapping[str, Content], folder: Path) -> None:
    """Write every file below ``folder``. Names are relative, with forward slashes."""
    # Sorted: two runs then write in one order, whatever made the mapping.
    for name, content in sorted(files.items()):
        pure = PurePosixPath(name)
        assert not pure.is_absolute(), name
        assert ".." not in pure.parts, name
        path = folder / pure
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(read(content))


def write_zip(files: Mapping[str, Content], path: Path | IO[bytes], *, stored: tuple[str, ...] = ()) -> None:
    """A zip archive in sorted order; files that end in one of ``stored`` are not compressed."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in sorted(files.items()):
            kind = zipfile.ZIP_STORED if name.endswith(stored) else zipfile.ZIP_DEFLATED
            archive.writestr(entry(name, kind), read(content), compresslevel=9)


def entry(name: str, kind: int = zipfile.ZIP_STORED) -> zipfile.ZipInfo:
    """A zip entry whose time, mode and origin are the same everywhere."""
    # ZipFile would take the time of day, and the umask through the file.
    info = zipfile.ZipInfo(name, date_time=_EPOCH)
    info.external_attr = _MODE
    info.create_system = 3
    info.compress_type = kind
    return info


def zip_bytes(files: Mapping[str, Content], *, stored: tuple[str, ...] = ()) -> bytes:
    """:func:`write_zip` into memory."""
    buffer = io.BytesIO()
    write_zip(files, buffer, stored=stored)
    return buffer.getvalue()


def sums(files: Mapping[str, Content]) -> bytes:
    """``SHA256SUMS`` in the format of ``sha256sum``, sorted by name."""
    return "".join(f"{sha256(content)}  {name}\n" for name, content in sorted(files.items())).encode()
