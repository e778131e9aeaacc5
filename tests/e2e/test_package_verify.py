"""edgekit verify takes every folder that edgekit package prints, and finds what was changed in it."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import package_support as support
import pytest
from cli_process import edgekit

from edgekit.artifact.manifest import Artifact
from edgekit.errors import SourceError, UntrustedSourceError
from edgekit.package import PackageSpec, is_bundle, package, verify_bundle, writing
from edgekit.package.formats import carries, writers

pytest.importorskip("ai_edge_litert")

NAME = "com.example.hand_digits"
BACKENDS = ("onnxruntime", "tflite")
CASES = [
    (backend, name)
    for backend in BACKENDS
    for name, w in writers().items()
    if carries(name, w.FORMAT, backend) and not w.FORMAT.tokenizer
]


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    root = tmp_path_factory.mktemp("verify")
    return {
        "onnxruntime": support.onnx_artifact(root / "onnx"),
        "tflite": support.tflite_artifact(root / "tflite"),
    }


def spec(format_: str, **fields: object) -> PackageSpec:
    if format_ == "android-aar" and not shutil.which("javac"):
        pytest.skip("no JDK")
    return PackageSpec(**{"format": format_, "name": NAME, "version": "1.0.0", **fields})


def test_there_are_formats_of_each_runtime() -> None:
    assert len(CASES) >= 11


@pytest.mark.parametrize(("backend", "format_"), CASES)
def test_the_printed_folder_verifies(
    backend: str, format_: str, artifacts: dict[str, Artifact], tmp_path: Path
) -> None:
    out = package(artifacts[backend], spec(format_), tmp_path / "out").directory
    done = edgekit("verify", out, "--json")
    assert done.code == 0, done.err
    verified = done.json["artifacts"]
    assert len(verified) == (2 if format_ == "bundle" else 1)
    assert all(v["status"] == "passed" and len(v["bundle"]["cases"]) == 6 for v in verified)


@pytest.mark.parametrize("format_", ["android-aar", "ios-spm", "web", "react-native", "ai-pack"])
def test_a_changed_package_is_found(format_: str, artifacts: dict[str, Artifact], tmp_path: Path) -> None:
    out = package(artifacts["onnxruntime"], spec(format_), tmp_path / "out").directory
    assert is_bundle(out)
    assert verify_bundle(out).passed
    readme = (out / "README.md").read_bytes()
    (out / "README.md").write_bytes(readme + b"more")
    with pytest.raises(SourceError, match=r"README\.md changed"):
        verify_bundle(out)
    (out / "README.md").write_bytes(readme)
    (out / "added.js").write_text("1")
    with pytest.raises(SourceError, match=r"added\.js not listed"):
        verify_bundle(out)
    (out / "added.js").unlink()
    (out / "LICENSE").unlink()
    with pytest.raises(SourceError, match="LICENSE missing"):
        verify_bundle(out)


def test_a_signature_is_over_the_whole_package(artifacts: dict[str, Artifact], tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    private, public = tmp_path / "private.pem", tmp_path / "public.pem"
    private.write_bytes(key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo))
    out = package(artifacts["onnxruntime"], spec("web", sign_key=private), tmp_path / "out").directory
    assert verify_bundle(out, public_key=public).passed
    (out / "index.js").write_text("export const Model = null;")
    files = {p.relative_to(out).as_posix(): p for p in out.rglob("*") if p.is_file() and "SUMS" not in p.name}
    (out / "SHA256SUMS").write_bytes(writing.sums(files))
    assert verify_bundle(out).passed  # checksums say nothing about who wrote them
    with pytest.raises(UntrustedSourceError, match="signature"):
        verify_bundle(out, public_key=public)
    unsigned = package(artifacts["onnxruntime"], spec("web"), tmp_path / "unsigned").directory
    with pytest.raises(UntrustedSourceError, match="not signed"):
        verify_bundle(unsigned, public_key=public)


def test_a_library_that_leaves_its_folder_or_has_no_model(
    artifacts: dict[str, Artifact], tmp_path: Path
) -> None:
    out = package(artifacts["onnxruntime"], spec("android-aar"), tmp_path / "out").directory
    (aar,) = out.rglob("*.aar")
    for name, error in (("assets/../../escaped", UntrustedSourceError), ("assets/other", SourceError)):
        with zipfile.ZipFile(aar, "w") as archive:
            archive.writestr(name, b"x")
        files = {p.relative_to(out).as_posix(): p for p in out.rglob("*") if p.is_file()}
        files.pop("SHA256SUMS")
        (out / "SHA256SUMS").write_bytes(writing.sums(files))
        with pytest.raises(error):
            verify_bundle(out)
    assert not list(tmp_path.rglob("escaped"))


def test_a_folder_of_several_packages_is_none_itself(artifacts: dict[str, Artifact], tmp_path: Path) -> None:
    for name in ("one", "two"):
        (made,) = (
            p
            for p in package(
                artifacts["onnxruntime"], spec("bundle"), tmp_path / f"{name}-out"
            ).directory.iterdir()
            if p.is_dir()
        )
        shutil.copytree(made, tmp_path / "all" / name)
    done = edgekit("verify", tmp_path / "all")
    assert done.code == 2
    assert "none itself" in done.err
