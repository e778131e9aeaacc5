"""Names and versions, archives that are not to be trusted, golden arithmetic: all without a runtime."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path

import numpy as np
import pytest

from edgekit.artifact.manifest import Artifact, Manifest
from edgekit.errors import (
    SourceError,
    UnknownNameError,
    UnsupportedError,
    UntrustedSourceError,
    UsageError,
)
from edgekit.package import PackageSpec, bundle, golden, package, templates, writing
from edgekit.package.formats import carries, writers
from edgekit.types import Precision, SourceRecord, Target, sha256_bytes


def spec(**fields: str) -> PackageSpec:
    return PackageSpec(**({"format": "bundle", "name": "com.example.digits", "version": "1.0.0"} | fields))


@pytest.mark.parametrize(
    "name",
    [
        "digits",
        "com.Example.x",
        "com..x",
        "com.1x",
        "com/example",
        "com.x y",
        "../com.x",
        "com.x\n",
        "com.exämple",
        "com.example.x-y",
        "",
        "com." + "x" * 200,
    ],
)
def test_ids_of_another_form_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="no valid package id"):
        spec(name=name)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("com.example.class", "class is a reserved word of Java"),
        ("com.native.digits", "native is a reserved word of Java"),
        ("com.example.aux", "Windows reserves"),
        ("java.digits", "belongs to the platform"),
        ("android.digits", "belongs to the platform"),
        ("favicon.ico", "npm"),
        ("com.example.self", "Swift module Self"),
        ("com.example.foundation", "Swift module Foundation"),
    ],
)
def test_ids_that_a_platform_keeps_for_itself_are_refused(name: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        spec(name=name)


def test_an_id_that_is_nearly_one_comes_with_what_it_could_be() -> None:
    with pytest.raises(UsageError) as raised:
        spec(name="com.Example.Hand-Digits")
    assert "com.example.hand_digits?" in raised.value.hint


@pytest.mark.parametrize(
    "version",
    [
        "1",
        "1.0",
        "01.0.0",
        "v1.0.0",
        "1.0.0/..",
        "",
        "1.0.0-",
        "1.0.0-01",
        "1.0.0-a..b",
        "1.0.0+5",
        "1.0.0\n",
    ],
)
def test_invalid_versions_are_refused(version: str) -> None:
    with pytest.raises(UsageError, match="version"):
        spec(version=version)


@pytest.mark.parametrize(
    "license_", ['MIT", system("x")', "MIT\nx", "<b>", "-x", "a'b", "nope", "MIT OR", "(MIT", "mit"]
)
def test_what_is_no_license_expression_is_refused(license_: str) -> None:
    with pytest.raises(UsageError, match="SPDX"):
        spec(license=license_)


def test_only_bundles_are_archives() -> None:
    for format_ in ("web", "android-aar", "ios-spm", "react-native", "ai-pack"):
        with pytest.raises(UsageError, match=f"{format_} has no archive") as raised:
            spec(format=format_, compress="ekz")
        assert "edgekit unpack" in raised.value.hint
    with pytest.raises(UnknownNameError, match="compression"):
        spec(compress="rar")


def test_valid_ids() -> None:
    assert spec(name="org.acme_1.net2").short_name == "net2"
    with pytest.raises(UsageError, match="no version"):
        spec(version="99999999999999999999.0.0")
    for version in ("1.2.3-beta.1", "0.0.0", "10.20.30-rc-1", "1.0.0-0a"):
        assert spec(version=version).version == version
    assert spec(license="(MIT OR Apache-2.0) AND LicenseRef-Own.x").license


def artifact(backend: str = "acme") -> Artifact:
    target = Target(name="t", backend=backend, precision=Precision.FP32, runs_on="cpu", file="m")
    made = Manifest(
        edgekit="0",
        status="passed",
        target=target,
        source=SourceRecord(text="", kind="onnx", sha256=""),
    )
    return Artifact(directory=Path("nowhere"), manifest=made)


def test_an_unknown_format_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError) as raised:
        package(artifact(), spec(format="bundel"), Path("x"))
    assert "bundle" in raised.value.hint


def test_an_existing_output_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="exists"):
        package(artifact("onnxruntime"), spec(), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_every_format_has_a_module() -> None:
    assert set(writers()) >= {"bundle", "android-aar", "ios-spm", "web", "react-native", "ai-pack", "ort"}
    assert all(writer.FORMAT.help for writer in writers().values())


CARRIED = {
    "onnxruntime": "bundle android-aar ios-spm web react-native ai-pack ort transformers-js",
    "tflite": "bundle android-aar web react-native ai-pack tflite-metadata",
    "openvino": "bundle",
    "tensorrt": "bundle",
    "a backend that is not installed": "bundle",
}


@pytest.mark.parametrize("backend", CARRIED)
def test_what_carries_a_backend_is_what_has_its_template(backend: str) -> None:
    able = [name for name, writer in writers().items() if carries(name, writer.FORMAT, backend)]
    assert able == CARRIED[backend].split()


def archive(path: Path, name: str, mode: int = 0o100644) -> Path:
    with zipfile.ZipFile(path, "w") as out:
        entry = zipfile.ZipInfo("x" * len(name))
        entry.external_attr = mode << 16
        out.writestr(entry, b"data")
    # ZipFile cleans names when it writes: put the hostile one in place in both headers.
    path.write_bytes(path.read_bytes().replace(b"x" * len(name), name.encode()))
    return path


@pytest.mark.parametrize(
    "name", ["../evil", "/etc/evil", "a/../../evil", "..\\evil1", "C:\\evil", "a/../b/evil"]
)
def test_an_archive_that_leaves_its_folder_is_refused(tmp_path: Path, name: str) -> None:
    with (
        pytest.raises(UntrustedSourceError, match="leaves its folder"),
        bundle.opened(archive(tmp_path / "b.zip", name)),
    ):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["b.zip"]


def test_a_link_in_an_archive_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UntrustedSourceError), bundle.opened(archive(tmp_path / "b.zip", "link", 0o120777)):
        pass


def test_two_entries_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "b.zip"
    with zipfile.ZipFile(path, "w") as out:
        out.writestr("a", b"1")
        out.writestr("A", b"2")
    with pytest.raises(UntrustedSourceError, match="two entries"), bundle.opened(path):
        pass


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(bundle, "MAX_BYTES", 1000)
    path = tmp_path / "b.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("a", bytes(2000))
    with pytest.raises(UntrustedSourceError, match="unpacks to more"), bundle.opened(path):
        pass


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 torn", b"no archive"])
def test_what_is_no_archive_is_no_bundle(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "b.zip"
    path.write_bytes(content)
    with pytest.raises(SourceError), bundle.opened(path):
        pass


def folder(tmp_path: Path, files: dict[str, bytes]) -> Path:
    writing.write_tree({**files, "SHA256SUMS": writing.sums(files)}, tmp_path / "b")
    return tmp_path / "b"


def test_checksums_find_missing_added_and_changed_files(tmp_path: Path) -> None:
    path = folder(tmp_path, {"a": b"1", "b": b"2"})
    (path / "a").write_bytes(b"3")
    (path / "b").unlink()
    (path / "c").write_bytes(b"4")
    with pytest.raises(SourceError, match="b missing; c not listed; a changed"), bundle.opened(path):
        pass


def test_a_checksum_list_that_points_outside_is_refused(tmp_path: Path) -> None:
    path = folder(tmp_path, {"a": b"1"})
    (tmp_path / "secret").write_bytes(b"s")
    with (path / "SHA256SUMS").open("a") as sums:
        sums.write(f"{sha256_bytes(b's')}  ../secret\n")
    with pytest.raises(UntrustedSourceError, match="secret"), bundle.opened(path):
        pass


def test_links_in_a_folder_are_refused(tmp_path: Path) -> None:
    path = folder(tmp_path, {"a": b"1"})
    (path / "a").unlink()
    (tmp_path / "other").write_bytes(b"1")
    (path / "a").symlink_to(tmp_path / "other")
    with pytest.raises(UntrustedSourceError, match="links"), bundle.opened(path):
        pass


def test_a_folder_without_descriptor_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"edgekit\.json"), bundle.opened(folder(tmp_path, {"a": b"1"})):
        pass


def test_zips_have_the_same_bytes_whatever_the_clock(tmp_path: Path, monkeypatch) -> None:
    files = {"b/model.tflite": bytes(500), "a.txt": b"hello" * 100}
    first = writing.zip_bytes(files, stored=(".tflite",))
    monkeypatch.setattr("time.time", lambda: 2e9)
    assert writing.zip_bytes(dict(reversed(files.items())), stored=(".tflite",)) == first
    path = tmp_path / "x.zip"
    path.write_bytes(first)
    kinds = {i.filename: i.compress_type for i in zipfile.ZipFile(path).infolist()}
    assert kinds == {"a.txt": zipfile.ZIP_DEFLATED, "b/model.tflite": zipfile.ZIP_STORED}


def test_a_template_depends_on_a_runtime_that_is_new_enough() -> None:
    own = {"RUNTIME_VERSION": "^1.23.0"}
    made = templates.Template(
        version=1, values=own, files={}, newer={"LiteRT 2.1": {"RUNTIME_VERSION": "2.1.5"}}
    )
    for minimum in ("1.9", "1.23.0", "1.23", "", "LiteRT 2.1 (TensorFlow Lite 2.17)"):
        assert made.for_runtime(minimum).values == own
    assert made.for_runtime("LiteRT 2.1").values == {"RUNTIME_VERSION": "2.1.5"}
    with pytest.raises(UnsupportedError, match=r"needs version 1\.24\.1"):
        made.for_runtime("1.24.1")


@pytest.mark.parametrize("format_", ["android-aar", "ios-spm", "web", "react-native"])
@pytest.mark.parametrize("minimum", ["1.12", "1.23", "1.24"])
def test_every_template_has_a_runtime_for_every_operator_set(format_: str, minimum: str) -> None:
    assert templates.load("onnxruntime", format_).for_runtime(minimum).values["RUNTIME_VERSION"]


def test_relative_error_is_of_the_largest_value() -> None:
    expected = np.array([1.0, -4.0], np.float32)
    assert golden.relative_error(np.array([1.0, -3.0], np.float32), expected) == 0.25
    assert golden.relative_error(np.array([np.nan, -4.0], np.float32), expected) == math.inf
    assert golden.relative_error(np.zeros(3), expected) == math.inf
    assert golden.relative_error(np.zeros(2), np.zeros(2)) == 0.0
    assert golden.relative_error(np.ones(2), np.zeros(2)) == math.inf


def test_drawn_images_tell_channels_rows_and_columns_apart() -> None:
    image = golden.drawn_image(33, 40, 0)
    assert image.shape == (33, 40, 3)
    assert not np.array_equal(image, image[..., ::-1])
    assert not np.array_equal(image, image[::-1])
    assert not np.array_equal(image, image[:, ::-1])
    assert not np.array_equal(image, golden.drawn_image(33, 40, 1))
    assert image.std() > 30
