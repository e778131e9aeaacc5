"""Native libraries that a linker made, and a published runtime's, through the command line."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path

import package_support as support
import package_tools as tools
import pytest
from cli_process import edgekit

AAR = tools.NODE_MODULES / "com.github.asus4.onnxruntime/Plugins/Android/onnxruntime.aar"


def linked(path: Path, page: int, *more: str) -> bytes:
    tools.need("gcc")
    (path.parent / "a.c").write_text("int f(void) { return 1; }\n")
    flags = ["-shared", "-fPIC", "-nostdlib", f"-Wl,-z,max-page-size={page}", *more]
    subprocess.run(["gcc", *flags, "-o", path, path.parent / "a.c"], check=True)
    return path.read_bytes()


def test_what_a_linker_wrote(tmp_path: Path) -> None:
    good, old = (linked(tmp_path / f"lib{p}.so", p) for p in (16384, 4096))
    for name, data, code in (("good", good, 0), ("old", old, 5)):
        with zipfile.ZipFile(tmp_path / f"{name}.aar", "w") as out:
            out.writestr("jni/arm64-v8a/libacme.so", data)
        done = edgekit("verify", tmp_path / f"{name}.aar", "--json")
        assert done.code == code, done.out + done.err
        document = done.json
        assert document["artifacts"][0]["native"]["libraries"][0]["alignment"] == (4096 if code else 16384)
    done = edgekit("verify", tmp_path / "old.aar")
    assert "libacme.so is laid out for pages of 4,096" in " ".join(done.err.split())


def test_a_published_runtime_is_laid_out_for_16_kilobytes() -> None:
    tools.need(AAR)
    done = edgekit("verify", AAR, "--json")
    assert done.code == 0, done.out
    libraries = done.json["artifacts"][0]["native"]["libraries"]
    assert {lib["file"].split("/")[2] for lib in libraries} == {"arm64-v8a", "armeabi-v7a", "x86", "x86_64"}
    assert all(lib["alignment"] == 16384 for lib in libraries)


def test_a_package_says_what_it_brings(tmp_path: Path) -> None:
    tools.need("javac")
    artifact = support.onnx_artifact(tmp_path / "artifact")
    old = linked(tmp_path / "libold.so", 4096)
    with zipfile.ZipFile(tmp_path / "old.aar", "w") as out:
        out.writestr("jni/arm64-v8a/libold.so", old)
    common = ["package", artifact.directory, "--format", "android-aar", "--name", "com.example.digits"]
    common += ["--version", "1.0.0"]
    done = edgekit(*common, "--out", tmp_path / "a", "--native", tmp_path / "old.aar", "--json")
    assert done.code == 0, done.err
    (finding,) = done.json["package"]["native"]["findings"]
    assert finding["kind"] == "pages"
    plain = edgekit(*common, "--out", tmp_path / "b", env={"HOME": str(tmp_path)})
    said = " ".join(plain.err.split())
    assert "com.microsoft.onnxruntime:onnxruntime-android:1.23.0 were not looked at" in said
    other = [*common[:3], "web", *common[4:]]
    refused = edgekit(*other, "--out", tmp_path / "c", "--native", tmp_path / "old.aar")
    assert refused.code == 2
    assert "no native libraries of Android" in refused.err


@pytest.mark.parametrize("name", ["none.apk", "text.aar"])
def test_what_is_no_archive_is_said(tmp_path: Path, name: str) -> None:
    if name == "text.aar":
        (tmp_path / name).write_text("text")
    done = edgekit("verify", tmp_path / name)
    assert done.code in (2, 3)
    assert name in done.err
