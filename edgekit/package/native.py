"""The native libraries that an Android package brings: pages of 16 KB, and libraries that nobody brings.

Google Play refuses apps for Android 15 and newer whose 64-bit libraries are laid out for pages of 4 KB only
(https://developer.android.com/guide/practices/page-sizes). What counts are the ``PT_LOAD`` segments of each library,
and in an APK that stores its libraries uncompressed, where they begin. The files are read, not loaded: they may come
from anybody.
"""

from __future__ import annotations

import enum
import os
import re
import struct
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath

from edgekit.core import files
from edgekit.core.files import DAMAGED_ZIP
from edgekit.errors import SourceError, UsageError
from edgekit.package.maven import Coordinates

PAGE = 16384
ARCHIVES = (".aar", ".apk", ".aab")

_MOST_LIBRARY = 1 << 30
_MOST_FILES = 10_000
_MOST_HEADERS = 512
_MOST_NEEDED = 1024
_LOAD, _DYNAMIC = 1, 2
_NEEDED, _STRTAB = 1, 5

_SYSTEM = re.compile(
    r"lib(c|m|dl|log|z|android|EGL|GLESv[123]|vulkan|OpenSLES|aaudio|amidi|camera2ndk|jnigraphics|mediandk|"
    r"nativewindow|neuralnetworks|binder_ndk|icu|sync|OpenMAXAL|nativehelper|stdc\+\+)\.so"
)
"""What Android gives to every app: https://developer.android.com/ndk/guides/stable_apis."""

_MAKERS = (
    (re.compile(rb"lib(Qnn\w+|LiteRtDispatch_Qualcomm|cdsprpc|SNPE\w*)\.so"), "Qualcomm"),
    (re.compile(rb"lib(neuron\w*|LiteRtDispatch_Mediatek|apu\w*)\.so", re.IGNORECASE), "MediaTek"),
    (re.compile(rb"lib(LiteRtDispatch_GoogleTensor|edgetpu\w*|darwinn\w*)\.so"), "Google Tensor"),
    (re.compile(rb"lib(enn\w*|eden\w*|LiteRtDispatch_Samsung)\.so"), "Samsung"),
    (re.compile(rb"lib(LiteRtDispatch)\.so"), "an NPU's maker"),
)


class Kind(enum.StrEnum):
    """What may be wrong with a package's native libraries."""

    PAGES = "pages"
    PLACE = "place"
    MISSING = "missing"
    UNREAD = "unread"


@dataclass(frozen=True, kw_only=True)
class Library:
    """One shared library. ``alignment`` is the smallest of its loaded segments, in bytes; ``place`` where it begins
    in an APK that stores it as it is."""

    file: str
    bits: int
    alignment: int
    needed: tuple[str, ...] = ()
    npu: tuple[tuple[str, str], ...] = ()
    place: int | None = None

    @property
    def aligned(self) -> bool:
        """Whether it loads on a device with pages of 16 KB; 32-bit ones never run there."""
        return self.bits == 32 or (
            self.alignment % PAGE == 0 and (self.place is None or self.place % PAGE == 0)
        )


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that an app developer has to know. ``refuses``: Google Play takes no app with it."""

    kind: Kind
    file: str
    message: str

    @property
    def refuses(self) -> bool:
        """Whether the store, and ``edgekit verify``, refuse it."""
        return self.kind in (Kind.PAGES, Kind.PLACE)


@dataclass(frozen=True, kw_only=True)
class Native:
    """What was looked at, and what came of it."""

    libraries: tuple[Library, ...] = ()
    findings: tuple[Finding, ...] = ()


def look(path: Path) -> Native:
    """Every ``.so`` in an AAR, an APK, a bundle for the store or a folder of such.

    Raises :class:`SourceError` for what is damaged, and :class:`UsageError` where there is nothing of the kind.
    """
    libraries = tuple(_libraries(path))
    return Native(libraries=libraries, findings=tuple(_findings(libraries)))


def of_package(needs: Sequence[Coordinates], given: Sequence[Path]) -> Native:
    """The libraries that Maven coordinates bring: ``given``, else what Maven's and Gradle's caches of this user have.
    Coordinates that are at hand nowhere are findings of their own."""
    found: list[Library] = []
    unread: list[Finding] = []
    for path in given:
        found += _libraries(path)
    for need in () if given else needs:
        archives = _cached(need)
        for archive in archives[:1]:
            found += _libraries(archive)
        if not archives:
            name = f"{need.group}:{need.artifact}:{need.version}"
            message = (
                f"the native libraries of {name} were not looked at: it is in no Maven or Gradle cache here "
                "(--native FILE.aar, or edgekit verify APP.apk)"
            )
            unread.append(Finding(kind=Kind.UNREAD, file=name, message=message))
    return Native(libraries=tuple(found), findings=(*_findings(found), *unread))


def is_android(path: Path) -> bool:
    """Whether ``path`` is an Android archive by its name, or a library."""
    return path.is_file() and path.suffix in (*ARCHIVES, ".so")


def elf(data: bytes, name: str, *, place: int | None = None) -> Library:
    """What a library's program headers say. Raises :class:`SourceError` where it is no ELF file."""
    try:
        return _elf(data, name, place)
    except (struct.error, IndexError, ValueError) as e:
        raise SourceError(f"{name} is no ELF library: {e}", hint="it is damaged, or no library") from e


def _elf(data: bytes, name: str, place: int | None) -> Library:
    if data[:4] != b"\x7fELF" or data[4] not in (1, 2) or data[5] != 1:
        raise ValueError("its first bytes are others")
    wide = data[4] == 2
    offset, size, count = _table(data, wide)
    if count > _MOST_HEADERS or size < (56 if wide else 32):
        raise ValueError(f"{count} program headers of {size} bytes")
    headers = [_header(data, offset + i * size, wide) for i in range(count)]
    loads = [h for h in headers if h.kind == _LOAD]
    if not loads:
        raise ValueError("nothing of it is loaded")
    return Library(
        file=name,
        bits=64 if wide else 32,
        alignment=min(h.align for h in loads),
        needed=_needed(data, headers, wide),
        npu=_npu(data),
        place=place,
    )


@dataclass(frozen=True)
class _Header:
    kind: int
    offset: int
    address: int
    size: int
    align: int


def _table(data: bytes, wide: bool) -> tuple[int, int, int]:
    if wide:
        (offset,) = struct.unpack_from("<Q", data, 0x20)
        size, count = struct.unpack_from("<HH", data, 0x36)
    else:
        (offset,) = struct.unpack_from("<I", data, 0x1C)
        size, count = struct.unpack_from("<HH", data, 0x2A)
    return offset, size, count


def _header(data: bytes, at: int, wide: bool) -> _Header:
    if wide:
        kind, _, offset, address, _, size, _, align = struct.unpack_from("<IIQQQQQQ", data, at)
    else:
        kind, offset, address, _, size, _, _, align = struct.unpack_from("<IIIIIIII", data, at)
    return _Header(kind, offset, address, size, align)


def _needed(data: bytes, headers: Sequence[_Header], wide: bool) -> tuple[str, ...]:
    """Names of the libraries that the loader looks for before this one."""
    names: list[int] = []
    entry, table = "<QQ" if wide else "<II", None
    for header in headers:
        if header.kind != _DYNAMIC:
            continue
        step = struct.calcsize(entry)
        for at in range(header.offset, min(header.offset + header.size, len(data) - step + 1), step):
            tag, value = struct.unpack_from(entry, data, at)
            if tag == 0:
                break
            if tag == _STRTAB:
                table = _place(headers, value)
            elif tag == _NEEDED and len(names) < _MOST_NEEDED:
                names.append(value)
    if table is None:
        return ()
    return tuple(_string(data, table + value) for value in names)


def _place(headers: Sequence[_Header], address: int) -> int | None:
    for h in headers:
        if h.kind == _LOAD and h.address <= address < h.address + h.size:
            return h.offset + address - h.address
    return None


def _string(data: bytes, at: int) -> str:
    end = data.find(b"\0", at, at + 256)
    return data[at : end if end >= 0 else at].decode("ascii", "replace")


def _npu(data: bytes) -> tuple[tuple[str, str], ...]:
    """Libraries of NPUs' makers that it opens by name while it runs."""
    names = {(n.group().decode(), maker) for form, maker in _MAKERS for n in form.finditer(data)}
    return tuple(sorted(names))


def _libraries(path: Path) -> Iterator[Library]:
    if path.is_dir():
        inside = sorted(p for p in islice(path.rglob("*"), _MOST_FILES) if is_android(p))
        if not inside:
            raise UsageError(
                f"{path} has no Android archive and no library",
                hint="name an .aar, an .apk or a folder of .so",
            )
        for file in inside:
            yield from _libraries(file)
    elif path.suffix == ".so":
        yield elf(_read(path), str(path))
    elif zipfile.is_zipfile(path):
        try:
            yield from _in_archive(path)
        except DAMAGED_ZIP as e:
            raise SourceError(f"{path} cannot be read: {e}", hint="fetch it again") from e
    else:
        raise UsageError(f"{path} is no Android archive", hint="name an .aar, an .apk or a folder of .so")


def _read(path: Path) -> bytes:
    try:
        return files.read(path, most=_MOST_LIBRARY)
    except OSError as e:
        raise SourceError(f"{path} cannot be read: {e.strerror or e}", hint="name a library") from e


def _in_archive(path: Path) -> Iterator[Library]:
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if len(entries) > _MOST_FILES:
            raise SourceError(f"{path} has {len(entries):,} entries", hint="no Android archive has so many")
        for entry in entries:
            if PurePosixPath(entry.filename).suffix != ".so":
                continue
            if entry.file_size > _MOST_LIBRARY:
                raise SourceError(f"{entry.filename} in {path} is too large", hint="no library is")
            # An AAR is unpacked by the build; an APK is mapped as it is, unless it compresses its libraries.
            mapped = path.suffix == ".apk" and entry.compress_type == zipfile.ZIP_STORED
            place = _start(path, entry) if mapped else None
            yield elf(archive.read(entry), f"{path.name}/{entry.filename}", place=place)


def _start(path: Path, entry: zipfile.ZipInfo) -> int:
    """Where an entry's bytes begin: behind its own header, whose lengths are not those of the directory."""
    with path.open("rb") as file:
        file.seek(entry.header_offset + 26)
        name, extra = struct.unpack("<HH", file.read(4))
    return int(entry.header_offset + 30 + name + extra)


def _findings(libraries: Iterable[Library]) -> Iterator[Finding]:
    libraries = tuple(libraries)
    names = {PurePosixPath(lib.file).name for lib in libraries}
    missing: dict[str, list[str]] = {}
    for lib in libraries:
        if lib.bits == 64 and lib.alignment % PAGE:
            message = (
                f"{lib.file} is laid out for pages of {lib.alignment:,} bytes: Google Play refuses apps for "
                f"Android 15 with it, and devices with pages of {PAGE:,} do not load it"
            )
            yield Finding(kind=Kind.PAGES, file=lib.file, message=message)
        elif not lib.aligned:
            message = f"{lib.file} begins at {lib.place:,} of the APK, which is no multiple of {PAGE:,}"
            yield Finding(kind=Kind.PLACE, file=lib.file, message=f"{message}: zipalign -P 16")
        makers = dict(lib.npu)
        for name in (*lib.needed, *makers):
            if name and name not in names and not _SYSTEM.fullmatch(name):
                of = f" of {makers[name]}" if name in makers else ""
                missing.setdefault(f"{name}{of}", []).append(lib.file)
    for what, by in missing.items():
        message = f"{what} is asked for by {', '.join(sorted(set(by))[:3])}, and is not there: the app or device has to"
        yield Finding(kind=Kind.MISSING, file=what.partition(" ")[0], message=f"{message} bring it")


def _cached(need: Coordinates) -> list[Path]:
    """Archives of the coordinates in this user's caches, Maven's first."""
    try:
        home = Path.home()
    except RuntimeError:  # nobody's process
        return []
    maven = Path(os.environ.get("MAVEN_REPO_LOCAL") or home / ".m2" / "repository") / need.folder
    gradle = Path(os.environ.get("GRADLE_USER_HOME") or home / ".gradle")
    modules = gradle / "caches" / "modules-2" / "files-2.1" / need.group / need.artifact / need.version
    name = f"{need.stem}.aar"
    return [p for p in (maven / name, *sorted(modules.glob(f"*/{name}"))) if p.is_file()]
