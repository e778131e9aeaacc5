"""Lossless coding of artifacts: ``.ekz`` containers, bit for bit the files that went in.

:func:`pack` recognises the tensors inside ONNX, TFLite, OpenVINO and safetensors files and codes them
with an adaptive context model (or Huffman codes, or Zstandard); everything else goes through a general coder.
Decoding needs Python and numpy only. The format is in docs/ekz.md.
"""

from __future__ import annotations

import mmap
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.errors import ContainerError, SourceError, UnknownNameError, UsageError

if TYPE_CHECKING:
    from edgekit.entropy.container import Container

__all__ = ["CODERS", "PackReport", "UnpackReport", "open", "pack", "unpack", "write_tensor"]

CODERS = ("adaptive", "huffman", "zstd")
"""How tensors can be coded, from the smallest file to the quickest decoder that was there before."""


@dataclass(frozen=True, kw_only=True)
class PackReport:
    """What :func:`pack` did. Sizes in bytes, times in seconds; the decoder was run to verify."""

    path: Path
    original: int
    packed: int
    tensors: int
    encode_seconds: float
    decode_seconds: float

    @property
    def ratio(self) -> float:
        """Original size over packed size."""
        return self.original / max(1, self.packed)

    @property
    def decode_mb_per_second(self) -> float:
        """Speed of the decoder on this machine, in 10**6 bytes of the original a second."""
        return self.original / 1e6 / max(self.decode_seconds, 1e-9)


@dataclass(frozen=True, kw_only=True)
class UnpackReport:
    """What :func:`unpack` did: where the result is, its bytes, and the seconds that decoding, checking and writing
    took."""

    path: Path
    size: int
    seconds: float

    @property
    def mb_per_second(self) -> float:
        """10**6 bytes of the original a second."""
        return self.size / 1e6 / max(self.seconds, 1e-9)


def pack(path: Path, out: Path, *, coder: str = "adaptive") -> PackReport:
    """Pack a file or a directory into the container ``out``, then decode it and compare every byte.

    ``coder``: ``adaptive`` (context model and rANS), the smallest; ``huffman``, which decodes at a hundred times the
    speed; ``zstd``, Zstandard for everything, which needs its package to decode, too. Empty directories,
    permissions and times are not kept. Raises ``SourceError`` if ``path`` cannot be packed (missing, a link or
    special file inside), ``UnknownNameError`` for another coder, ``UsageError`` where ``out`` cannot be written.
    """
    from edgekit.entropy import packing

    if coder not in packing.CODERS:
        raise UnknownNameError("coder", coder, packing.CODERS)
    begin = time.perf_counter()
    with ExitStack() as stack:
        files = {name: _map(stack, file) for name, file in _files(path).items()}
        data = packing.build(files, single=not path.is_dir(), coder=packing.CODERS[coder])
        encoded = time.perf_counter()
        with _appearing(out) as temporary:  # verified before it gets its name
            temporary.write_bytes(data)
            tensors = _verify(temporary, files)
        original = sum(len(v) for v in files.values())
    return PackReport(
        path=out,
        original=original,
        packed=len(data),
        tensors=tensors,
        encode_seconds=encoded - begin,
        decode_seconds=time.perf_counter() - encoded,
    )


def unpack(path: Path, out: Path, *, max_output: int | None = None) -> UnpackReport:
    """Restore what was packed to ``out``: a file, or a directory that must not exist yet.

    Streams; nothing appears under ``out`` unless all of it was verified. ``max_output`` limits the total
    size in bytes (without it 1 GiB, or 1,024 times the container, and 64 GiB at most). Raises ``ContainerError`` for a
    damaged or hostile container, ``SourceError`` where it cannot be read, ``UsageError`` where ``out`` cannot be
    written.
    """
    begin = time.perf_counter()
    with _opened(path, max_output) as container:
        with _appearing(out) as temporary:  # it gets its name only when every sha256 was right
            for name, pieces in container.files():
                target = temporary if container.index.single else temporary / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("wb") as f:
                    f.writelines(pieces)
        return UnpackReport(path=out, size=container.index.total, seconds=time.perf_counter() - begin)


def write_tensor(path: Path, name: str, out: Path, *, max_output: int | None = None) -> None:
    """Write one tensor of a container as ``.npy``, piece by piece. ``max_output`` and errors as in :func:`unpack`;
    ``UnknownNameError`` for a tensor that is not there."""
    from numpy.lib import format as npy

    from edgekit.entropy.container import array_dtype

    with _opened(path, max_output) as container:
        number = container.number(name)
        entry = container.index.tensors[number]
        descr = npy.dtype_to_descr(array_dtype(entry))
        with _appearing(out) as temporary, temporary.open("wb") as f:
            header = {"descr": descr, "fortran_order": False, "shape": entry.shape}
            npy.write_array_header_1_0(f, header)
            f.writelines(piece.tobytes() for piece in container.pieces(number))


def open(path: Path) -> Container:
    """Open a container for random access: ``with entropy.open(p) as c: c["conv1.weight"]``."""
    return _opened(path, None)


def _opened(path: Path, max_output: int | None) -> Container:
    from edgekit.entropy.blocks import unreadable
    from edgekit.entropy.container import Container

    try:
        if path.is_file():
            return Container(path, max_output=max_output)
    except OSError as e:
        raise unreadable(path, e) from e
    raise SourceError(f"there is no file {path}", hint="give the .ekz that `edgekit pack` wrote")


@contextmanager
def _appearing(out: Path) -> Iterator[Path]:
    """A temporary name for what becomes ``out`` at the end. Raises ``UsageError`` where that cannot be written."""
    from edgekit.core.files import inside, unwritable, whole

    try:
        if out.is_dir():
            raise UsageError(
                f"{out} is a directory that exists",
                hint="name a file or directory that does not exist (--out)",
            )
        with inside(out.parent), whole(out) as temporary:
            yield temporary
    except OSError as e:
        raise unwritable(out, e) from e


def _files(path: Path) -> dict[str, Path]:
    """:func:`_collect`, with names that a container can have."""
    from edgekit.entropy.blocks import unreadable
    from edgekit.entropy.index import safe_path

    try:
        files = _collect(path)
    except OSError as e:
        raise unreadable(path, e) from e
    for name, file in files.items():
        try:
            safe_path(name)
        except ContainerError as e:
            raise SourceError(
                f"{file} has a name that not every system can have: {e.message.partition(': ')[2]}",
                hint="rename it before it is packed",
            ) from e
    return files


def _collect(path: Path) -> dict[str, Path]:
    """Relative name → file, sorted by name."""
    if path.is_file():
        return {path.name: path}
    if not path.is_dir():
        raise SourceError(f"there is no file or directory {path}", hint="give an artifact to pack")
    out = {}
    for file in sorted(path.rglob("*")):
        if file.is_symlink() or not (file.is_file() or file.is_dir()):
            raise SourceError(
                f"{file} is a link or a special file", hint="replace it by the file it stands for"
            )
        if file.is_file():
            out[file.relative_to(path).as_posix()] = file
    if not out:
        raise SourceError(f"{path} has no files", hint="give an artifact to pack")
    return out


def _map(stack: ExitStack, path: Path) -> memoryview:
    from edgekit.entropy.blocks import unreadable

    try:
        if path.stat().st_size == 0:
            return memoryview(b"")
        f = stack.enter_context(path.open("rb"))
        view = memoryview(stack.enter_context(mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)))
    except OSError as e:
        raise unreadable(path, e) from e
    stack.callback(view.release)  # before the map is closed, which would else hide what happened
    return view


def _verify(packed: Path, files: dict[str, memoryview]) -> int:
    with _opened(packed, sum(map(len, files.values()))) as container:
        for name, pieces in container.files():
            if not _same(pieces, files[name]):
                raise ContainerError(f"{name} did not survive packing", hint="please report this file")
        return len(container.index.tensors)


def _same(pieces: Iterator[bytes], data: memoryview) -> bool:
    at = 0
    for piece in pieces:
        if piece != data[at : at + len(piece)]:
            return False
        at += len(piece)
    return at == len(data)
