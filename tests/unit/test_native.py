"""Native libraries of Android packages: headers of ELF files that are made here, byte by byte."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

import pytest

from edgekit.errors import SourceError, UsageError
from edgekit.package import native
from edgekit.package.maven import Coordinates
from edgekit.package.native import Kind, look


def elf(
    align: int = 16384, *, bits: int = 64, needed: tuple[str, ...] = (), names: bytes = b"", more: int = 0
) -> bytes:
    """A library with one loaded segment (and one of ``more``), a dynamic section, and ``names`` among its bytes."""
    wide = bits == 64
    head, entry = (64, 56) if wide else (52, 32)
    count = 3 if more else 2
    strings = b"\0" + b"".join(n.encode() + b"\0" for n in needed)
    offsets = [1 + sum(len(n) + 1 for n in needed[:i]) for i in range(len(needed))]
    at = head + count * entry
    tags = [(5, 0x10000 + at), *((1, o) for o in offsets), (0, 0)]
    dynamic = b"".join(struct.pack("<QQ" if wide else "<II", *t) for t in tags)
    body = strings + dynamic + names
    total = at + len(body)
    headers = [(1, 0, 0x10000, total, align), (2, at + len(strings), 0x10000, len(dynamic), 8)]
    if more:
        headers.append((1, 0, 0x80000, total, more))
    packed = b"".join(
        struct.pack("<IIQQQQQQ", kind, 4, offset, address, address, size, size, a)
        if wide
        else struct.pack("<IIIIIIII", kind, offset, address, address, size, size, 4, a)
        for kind, offset, address, size, a in headers
    )
    ident = b"\x7fELF" + bytes([2 if wide else 1, 1, 1]) + bytes(9)
    rest = (
        struct.pack("<HHIQQQIHHHHHH", 3, 183, 1, 0, head, 0, 0, head, entry, count, 0, 0, 0)
        if wide
        else struct.pack("<HHIIIIIHHHHHH", 3, 40, 1, 0, head, 0, 0, head, entry, count, 0, 0, 0)
    )
    return ident + rest + packed + body


def archive(path: Path, files: dict[str, bytes], *, kind: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", kind) as out:
        for name, data in files.items():
            out.writestr(name, data)
    return path


def test_pages_of_16_kilobytes(tmp_path: Path) -> None:
    path = archive(
        tmp_path / "runtime.aar",
        {
            "jni/arm64-v8a/libgood.so": elf(16384),
            "jni/arm64-v8a/liblarger.so": elf(65536),
            "jni/arm64-v8a/libold.so": elf(4096),
            "jni/x86_64/libmixed.so": elf(16384, more=4096),
            "jni/armeabi-v7a/libold.so": elf(4096, bits=32),
            "classes.jar": b"nothing",
        },
    )
    found = look(path)
    assert len(found.libraries) == 5
    refused = [f.file for f in found.findings if f.refuses]
    assert refused == ["runtime.aar/jni/arm64-v8a/libold.so", "runtime.aar/jni/x86_64/libmixed.so"]
    assert all(f.kind is Kind.PAGES for f in found.findings)
    assert "4,096" in found.findings[0].message


def test_what_nobody_brings_is_named_with_its_maker(tmp_path: Path) -> None:
    strings = b"\0libLiteRtDispatch_Qualcomm.so\0dlopen\0libneuron_adapter.so\0"
    libraries = {
        "lib/arm64-v8a/librun.so": elf(needed=("libc.so", "liblog.so", "libother.so", "libQnnHtp.so")),
        "lib/arm64-v8a/libother.so": elf(needed=("libm.so",), names=strings),
    }
    found = look(archive(tmp_path / "app.apk", libraries))
    said = {f.file: f.message for f in found.findings}
    assert sorted(said) == ["libLiteRtDispatch_Qualcomm.so", "libQnnHtp.so", "libneuron_adapter.so"]
    assert "MediaTek" in said["libneuron_adapter.so"]
    assert "app.apk/lib/arm64-v8a/librun.so" in said["libQnnHtp.so"]
    assert not any(f.refuses for f in found.findings)
    libraries["lib/arm64-v8a/libQnnHtp.so"] = elf()
    assert "libQnnHtp.so" not in {f.file for f in look(archive(tmp_path / "b.apk", libraries)).findings}


def test_libraries_that_an_apk_stores_begin_at_a_page(tmp_path: Path) -> None:
    name, data = "lib/arm64-v8a/libx.so", elf()
    plain = archive(tmp_path / "plain.apk", {name: data}, kind=zipfile.ZIP_STORED)
    (finding,) = look(plain).findings
    assert (finding.kind, finding.refuses) == (Kind.PLACE, True)
    assert "zipalign -P 16" in finding.message
    assert look(archive(tmp_path / "small.apk", {name: data})).findings == ()
    # An AAR is unpacked by the build that uses it.
    assert look(archive(tmp_path / "a.aar", {name: data}, kind=zipfile.ZIP_STORED)).findings == ()
    padded = zipfile.ZipInfo(name)
    padded.extra = bytes(16384 - 30 - len(name))
    with zipfile.ZipFile(tmp_path / "padded.apk", "w") as out:
        out.writestr(padded, data)
    assert look(tmp_path / "padded.apk").findings == ()


def test_folders_and_single_libraries(tmp_path: Path) -> None:
    (tmp_path / "jni").mkdir()
    (tmp_path / "jni" / "liba.so").write_bytes(elf(4096))
    archive(tmp_path / "b.aar", {"jni/x86_64/libb.so": elf()})
    assert len(look(tmp_path).libraries) == 2
    assert [f.kind for f in look(tmp_path / "jni" / "liba.so").findings] == [Kind.PAGES]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no Android archive"):
        look(tmp_path / "empty")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"MZ" + bytes(200),
        elf()[:70],
        elf()[:16] + bytes(48),
        elf().replace(struct.pack("<HHH", 64, 56, 2), struct.pack("<HHH", 64, 56, 60000)),
        elf().replace(struct.pack("<HHH", 64, 56, 2), struct.pack("<HHH", 64, 0, 2)),
    ],
)
def test_damaged_libraries_are_errors(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(SourceError, match="no ELF library"):
        look(archive(tmp_path / "a.aar", {"jni/x86_64/liba.so": data}))


def test_a_name_that_points_outside_is_none(tmp_path: Path) -> None:
    """The table of names and the entries are taken from the file: wherever they point, nothing is read beyond it."""
    for seed in range(64):
        data = bytearray(elf(needed=("libfar.so", "libc.so")))
        data[176 + seed % (len(data) - 176)] = 0xFF
        found = look(archive(tmp_path / f"{seed}.aar", {"jni/x86_64/liba.so": bytes(data)}))
        assert len(found.libraries) == 1


def test_archives_that_are_damaged_or_none(tmp_path: Path) -> None:
    (tmp_path / "a.apk").write_bytes(b"no archive")
    with pytest.raises(UsageError, match="no Android archive"):
        look(tmp_path / "a.apk")
    path = archive(tmp_path / "b.aar", {"jni/x86_64/libx.so": elf() + bytes(4000)})
    data = bytearray(path.read_bytes())
    data[60:90] = bytes(30)
    path.write_bytes(bytes(data))
    with pytest.raises(SourceError):
        look(path)


def test_coordinates_are_found_in_the_caches_of_this_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("GRADLE_USER_HOME", "MAVEN_REPO_LOCAL"):
        monkeypatch.delenv(name, raising=False)
    need = Coordinates(group="org.acme", artifact="runtime", version="1.2.3")
    (unread,) = native.of_package((need,), ()).findings
    assert unread.kind is Kind.UNREAD
    assert "org.acme:runtime:1.2.3 were not looked at" in unread.message
    gradle = tmp_path / ".gradle/caches/modules-2/files-2.1/org.acme/runtime/1.2.3/0abc"
    gradle.mkdir(parents=True)
    archive(gradle / "runtime-1.2.3.aar", {"jni/x86_64/libx.so": elf(4096)})
    (finding,) = native.of_package((need,), ()).findings
    assert finding.refuses
    # What is given counts in place of the caches; Maven's come before Gradle's.
    given = archive(tmp_path / "given.aar", {"jni/x86_64/libx.so": elf()})
    assert native.of_package((need,), (given,)).findings == ()
    maven = tmp_path / ".m2/repository/org/acme/runtime/1.2.3"
    maven.mkdir(parents=True)
    archive(maven / "runtime-1.2.3.aar", {"jni/x86_64/libx.so": elf()})
    assert native.of_package((need,), ()).findings == ()
