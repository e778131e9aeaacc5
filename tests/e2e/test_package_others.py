"""The ORT format and Play's AI packs."""

from __future__ import annotations

from pathlib import Path

import package_support as support
import pytest

from edgekit.errors import UnsupportedError
from edgekit.package import PackageSpec, package, verify_bundle


def spec(format_: str) -> PackageSpec:
    return PackageSpec(format=format_, name="com.example.digits", version="1.0.0", license="MIT")


def test_ort_format_replays_and_is_reproducible(tmp_path: Path) -> None:
    artifact = support.onnx_artifact(tmp_path / "artifact")
    made = package(artifact, spec("ort"), tmp_path / "out").directory
    report = verify_bundle(made)
    assert report.passed
    assert report.descriptor.files == ("digits.ort",)
    assert (made / "digits.ort").read_bytes()[4:8] == b"ORTM"
    again = package(artifact, spec("ort"), tmp_path / "again").directory
    assert (again / "digits.ort").read_bytes() == (made / "digits.ort").read_bytes()


def test_ai_pack_has_the_assets_where_the_wrapper_looks(tmp_path: Path) -> None:
    artifact = support.onnx_artifact(tmp_path / "artifact")
    made = package(artifact, spec("ai-pack"), tmp_path / "out").directory
    assets = made / "digits_pack" / "src" / "main" / "assets" / "com.example.digits"
    assert (assets / "model" / "model.onnx").read_bytes() == artifact.model.read_bytes()
    assert 'packName = "digits_pack"' in (made / "digits_pack" / "build.gradle.kts").read_text()
    assert "not built with the Android Gradle plugin" in (made / "README.md").read_text()


def test_formats_of_another_runtime_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert")
    artifact = support.tflite_artifact(tmp_path / "artifact")
    with pytest.raises(UnsupportedError, match="LiteRT"):
        package(artifact, spec("ort"), tmp_path / "out")
