"""Bundles of a real artifact, written and replayed on ONNX Runtime."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import package_support as support
import pytest

from edgekit.artifact.manifest import Artifact
from edgekit.errors import (
    ConfigError,
    GateFailedError,
    SourceError,
    UntrustedSourceError,
    UsageError,
)
from edgekit.package import PackageSpec, is_bundle, package, verify_bundle
from edgekit.types import Gate, Verdict, sha256_file

NAME = "com.example.digits"


def spec(**fields: object) -> PackageSpec:
    return PackageSpec(**({"format": "bundle", "name": NAME, "version": "1.0.0", "license": "MIT"} | fields))


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return support.onnx_artifact(tmp_path / "artifact")


@pytest.fixture
def written(artifact: Artifact, tmp_path: Path) -> Path:
    return package(artifact, spec(), tmp_path / "out").directory


def test_bundle_replays_as_folder_and_as_archive(written: Path) -> None:
    for path in (written / f"{NAME}-1.0.0", written / f"{NAME}-1.0.0.zip"):
        assert is_bundle(path)
        report = verify_bundle(path)
        assert report.passed
        assert [c.preprocessed for c in report.cases] == [True] * 6
        assert max(c.error for c in report.cases) == 0.0
        assert report.runtime_versions["onnxruntime"]


def test_bundle_says_what_an_app_must_know(written: Path) -> None:
    folder = written / f"{NAME}-1.0.0"
    document = json.loads((folder / "edgekit.json").read_bytes())
    assert document["preprocessing"]["mean"] == [0.485, 0.456, 0.406]
    assert document["labels"]["count"] == 10
    assert document["runtime"]["name"] == "ONNX Runtime"
    assert {c["label"] for c in document["golden"]["cases"]} <= set(support.LABELS)
    sbom = json.loads((folder / "sbom.cdx.json").read_bytes())
    assert (sbom["bomFormat"], sbom["specVersion"]) == ("CycloneDX", "1.6")
    assert sbom["metadata"]["component"]["hashes"][0]["content"] == document["model_sha256"]
    refs = {sbom["metadata"]["component"]["bom-ref"], *(c["bom-ref"] for c in sbom["components"])}
    assert {d["ref"] for d in sbom["dependencies"]} <= refs
    assert "MIT" in (folder / "LICENSE").read_text()
    checked = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=folder, capture_output=True, check=False)
    assert checked.returncode == 0


def test_the_same_bytes_again(artifact: Artifact, written: Path, tmp_path: Path) -> None:
    again = package(artifact, spec(), tmp_path / "again").directory
    files = sorted(p.relative_to(written) for p in written.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(again) for p in again.rglob("*") if p.is_file())
    assert all((written / f).read_bytes() == (again / f).read_bytes() for f in files)


def rewritten(folder: Path, name: str, data: bytes) -> Path:
    """The bundle with one file changed and its checksums made right again, as an attacker would."""
    from edgekit.package import writing

    (folder / name).write_bytes(data)
    files = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    files.pop("SHA256SUMS")
    files.pop("SHA256SUMS.sig", None)
    (folder / "SHA256SUMS").write_bytes(writing.sums(files))
    return folder


@pytest.mark.parametrize(
    ("field", "value"), [("color", "bgr"), ("mean", [0.0]), ("std", [1.0]), ("filter", "nearest")]
)
def test_a_wrong_contract_is_found(written: Path, field: str, value: object) -> None:
    folder = written / f"{NAME}-1.0.0"
    document = json.loads((folder / "edgekit.json").read_bytes())
    document["preprocessing"][field] = value
    report = verify_bundle(rewritten(folder, "edgekit.json", json.dumps(document).encode()))
    drawn = [c for c in report.cases if c.name.startswith("drawn")]
    assert not report.passed
    assert all(c.preprocessed is False for c in drawn)


def test_wrong_labels_are_found(written: Path) -> None:
    folder = written / f"{NAME}-1.0.0"
    lines = (folder / "labels.txt").read_text().splitlines()
    changed = "\n".join(reversed(lines)) + "\n"
    with pytest.raises(SourceError, match="label"):
        verify_bundle(rewritten(folder, "labels.txt", changed.encode()))


def test_a_changed_model_is_found(written: Path) -> None:
    import onnx
    from onnx import numpy_helper

    folder = written / f"{NAME}-1.0.0"
    path = folder / "model" / "model.onnx"
    model = onnx.load(path)
    bias = next(t for t in model.graph.initializer if t.name == "bias")
    bias.CopyFrom(
        numpy_helper.from_array(
            numpy_helper.to_array(bias) + np.float32(0.3) * np.arange(10, dtype="f4"), "bias"
        )
    )
    report = verify_bundle(rewritten(folder, "model/model.onnx", model.SerializeToString()))
    assert not report.passed
    assert all(c.preprocessed for c in report.cases)


def test_a_damaged_archive_is_refused(written: Path) -> None:
    path = written / f"{NAME}-1.0.0.zip"
    with zipfile.ZipFile(path) as archive:
        files = {n: archive.read(n) for n in archive.namelist()}
    files["labels.txt"] += b"one more\n"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    with pytest.raises(SourceError, match=r"labels\.txt changed"):
        verify_bundle(path)


def test_an_ekz_archive_replays_and_is_smaller(artifact: Artifact, written: Path, tmp_path: Path) -> None:
    made = package(artifact, spec(compress="ekz"), tmp_path / "ekz").directory
    assert sorted(p.name for p in made.iterdir()) == [f"{NAME}-1.0.0", f"{NAME}-1.0.0.ekz"]
    path = made / f"{NAME}-1.0.0.ekz"
    assert is_bundle(path)
    assert verify_bundle(path).passed
    assert path.stat().st_size < (written / f"{NAME}-1.0.0.zip").stat().st_size
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(SourceError):
        verify_bundle(path)


def test_signature(artifact: Artifact, tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    private, public, other = (tmp_path / n for n in ("key.pem", "key.pub", "other.pub"))
    write_keys(private, public)
    write_keys(tmp_path / "other.pem", other)
    folder = package(artifact, spec(sign_key=private), tmp_path / "out").directory / f"{NAME}-1.0.0"
    assert verify_bundle(folder, public_key=public).notes == ()
    assert "signature was not checked" in verify_bundle(folder).notes[0]
    with pytest.raises(UntrustedSourceError, match="signature"):
        verify_bundle(folder, public_key=other)
    # Whoever changes a file and its checksum still cannot sign.
    with pytest.raises(UntrustedSourceError, match="signature"):
        verify_bundle(rewritten(folder, "README.md", b"changed"), public_key=public)
    (folder / "SHA256SUMS.sig").unlink()
    with pytest.raises(UntrustedSourceError, match="not signed"):
        verify_bundle(folder, public_key=public)


def test_a_key_that_is_none(artifact: Artifact, tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    (tmp_path / "key.pem").write_text("no key")
    with pytest.raises(UsageError, match="Ed25519"):
        package(artifact, spec(sign_key=tmp_path / "key.pem"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def write_keys(private: Path, public: Path) -> None:
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    private.write_bytes(key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo))


def refused(artifact: Artifact, tmp_path: Path, error: type[Exception], match: str, **fields: object) -> None:
    with pytest.raises(error, match=match):
        package(artifact, spec(**fields), tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) in (["artifact"], ["artifact", "labels"])


def test_a_failed_gate_is_refused_unless_allowed(artifact: Artifact, tmp_path: Path) -> None:
    gate = Gate(name="metric_drop", verdict=Verdict.FAIL, limit=0.01, value=0.2)
    failed = support.changed(artifact, status="failed", gates=(gate,))
    refused(failed, tmp_path, GateFailedError, "metric_drop")
    made = package(failed, spec(allow_failed=True), tmp_path / "out").directory
    document = json.loads((made / f"{NAME}-1.0.0" / "edgekit.json").read_bytes())
    assert (document["status"], document["gates"][0]["verdict"]) == ("failed", "fail")


def test_labels_of_another_model(artifact: Artifact, tmp_path: Path) -> None:
    refused(support.changed(artifact, labels=("a", "b")), tmp_path, UsageError, "2 labels, but scores has 10")
    (tmp_path / "labels").write_text("".join(f"{i}\n" for i in range(11)))
    refused(artifact, tmp_path, UsageError, "11 labels", labels=tmp_path / "labels")


def test_a_golden_that_does_not_reproduce(artifact: Artifact, tmp_path: Path) -> None:
    path = artifact.directory / "golden.npz"
    arrays = dict(np.load(path))
    arrays["output/2/scores"] = np.roll(arrays["output/2/scores"], 1)
    np.savez(path, **arrays)
    refused(artifact, tmp_path, SourceError, r"golden\.npz missing or changed")
    record = replace(artifact.manifest.golden, sha256=sha256_file(path))
    refused(support.changed(artifact, golden=record), tmp_path, GateFailedError, "do not reproduce")


def test_an_artifact_without_golden(artifact: Artifact, tmp_path: Path) -> None:
    refused(support.changed(artifact, golden=None), tmp_path, SourceError, "golden")


def test_a_pickled_golden_is_not_loaded(artifact: Artifact, tmp_path: Path) -> None:
    np.savez(artifact.directory / "golden.npz", **{"input/0/image": np.array([{}], dtype=object)})
    refused(artifact, tmp_path, SourceError, "golden")


def test_a_model_that_changed_since_the_build(artifact: Artifact, tmp_path: Path) -> None:
    with artifact.model.open("ab") as file:
        file.write(b"\0")
    refused(artifact, tmp_path, SourceError, "changed since the build")


def test_a_contract_of_another_size(artifact: Artifact, tmp_path: Path) -> None:
    other = replace(support.CONTRACT, crop=(12, 12)).to_mapping()
    refused(support.changed(artifact, preprocessing=other), tmp_path, ConfigError, r"\[1, 3, 12, 12\]")


def test_a_bundle_without_images_or_labels(artifact: Artifact, tmp_path: Path) -> None:
    plain = support.changed(artifact, preprocessing={}, labels=())
    made = package(plain, spec(), tmp_path / "out").directory
    report = verify_bundle(made / f"{NAME}-1.0.0")
    assert report.passed
    assert {c.preprocessed for c in report.cases} == {None}


def edgekit(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgekit", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def test_the_command_line_packages_verifies_and_refuses(artifact: Artifact, tmp_path: Path) -> None:
    named = ("--name", NAME, "--version", "1.0.0")
    first = edgekit("package", artifact.directory, "--format", "bundle", *named, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    folder = tmp_path / f"{NAME}-1.0.0-bundle"
    archive = folder / f"{NAME}-1.0.0.zip"
    verified = edgekit("verify", archive, "--json", cwd=tmp_path)
    assert verified.returncode == 0, verified.stderr
    assert json.loads(verified.stdout)["artifacts"][0]["status"] == "passed"
    before = sorted(tmp_path.rglob("*"))
    again = edgekit("package", artifact.directory, "--format", "bundle", *named, cwd=tmp_path)
    assert (again.returncode, "exists" in again.stderr) == (2, True)
    wrong = edgekit(
        "package",
        artifact.directory,
        "--format",
        "web",
        "--name",
        "Digits",
        "--version",
        "1.0.0",
        cwd=tmp_path,
    )
    assert (wrong.returncode, "package id" in wrong.stderr) == (2, True)
    unknown = edgekit("package", artifact.directory, "--format", "coreml", *named, cwd=tmp_path)
    assert (unknown.returncode, "coreml" in unknown.stderr) == (2, True)
    missing = edgekit("package", tmp_path / "nowhere", "--format", "bundle", *named, cwd=tmp_path)
    assert missing.returncode == 3
    assert sorted(tmp_path.rglob("*")) == before
    with archive.open("r+b") as file:
        file.seek(archive.stat().st_size // 2)
        file.write(b"\0\0\0\0")
    assert edgekit("verify", archive, cwd=tmp_path).returncode == 3


def test_what_the_author_says_of_other_inputs_is_carried_along(artifact: Artifact, tmp_path: Path) -> None:
    stated = {"tokenizer": "bert-wordpiece-uncased", "max_tokens": 64}
    made = package(
        support.changed(artifact, preprocessing=stated, labels=()), spec(), tmp_path / "out"
    ).directory
    folder = made / f"{NAME}-1.0.0"
    assert json.loads((folder / "edgekit.json").read_bytes())["stated"] == stated
    assert '- tokenizer: `"bert-wordpiece-uncased"`' in (folder / "README.md").read_text()
    assert verify_bundle(folder).passed
