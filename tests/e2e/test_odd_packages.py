"""Packages and folders of them, asked for in ways that nobody meant."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from cli_process import edgekit

import edgekit as api
from edgekit.package import writing

pytestmark = [pytest.mark.e2e]
SPEC = ("--name", "com.example.net", "--version", "1.0.0", "--format", "bundle")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    torch.manual_seed(1)
    module = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
    out = tmp_path_factory.mktemp("odd")
    result = api.build(
        module, torch.randn(1, 6), targets=["ort-fp32"], out=out, options=api.Options(speed_gate=False)
    )
    assert not result.failures
    return out / "ort-fp32"


def test_labels_and_licences_that_are_no_files(built: Path, tmp_path: Path) -> None:
    for option in ("--labels", "--license-file"):
        for file in ("/dev/zero", str(tmp_path)):
            result = edgekit("package", built, *SPEC, option, file, "--out", tmp_path / "p")
            assert result.code == 2, result.err
            assert file in result.err
    assert not (tmp_path / "p").exists()


def test_a_package_inside_of_the_artifact_would_be_gone_with_it(built: Path) -> None:
    result = edgekit("package", built, *SPEC, "--out", built / "package")
    assert result.code == 2, result.err
    assert "which the next build replaces" in result.err
    assert not (built / "package").exists()


def test_a_folder_around_bundles_names_them(built: Path, tmp_path: Path) -> None:
    result = edgekit("package", built, *SPEC, "--out", tmp_path / "p")
    assert result.code == 0, result.err
    result = edgekit("verify", tmp_path / "p")
    assert result.code in (0, 2), result.err
    if result.code == 2:
        assert "com.example.net-1.0.0" in result.err
    result = edgekit("verify", built.parent)
    assert result.code == 2
    assert f"edgekit verify {built}" in result.err


def test_files_that_were_exchanged_are_not_shown_as_those_that_passed(built: Path, tmp_path: Path) -> None:
    shutil.copytree(built, tmp_path / "copy")
    assert edgekit("inspect", tmp_path / "copy").code == 0
    (tmp_path / "copy" / "model.onnx").write_bytes(b"other")
    result = edgekit("inspect", tmp_path / "copy")
    assert result.code == 3
    assert "missing or changed since the build" in result.err


def test_a_bundle_of_a_language_model_is_refused_its_library(built: Path, tmp_path: Path) -> None:
    """A bundle names its backend itself: the settings beside the model are looked at there, too."""
    pytest.importorskip("onnxruntime_genai", reason="needs the extra genai")
    result = edgekit("package", built, *SPEC, "--out", tmp_path / "p")
    assert result.code == 0, result.err
    (described,) = tmp_path.glob("p/**/edgekit.json")
    folder = described.parent
    (main,) = (p for p in folder.glob("model/*") if p.suffix == ".onnx")
    settings = {"model": {"decoder": {"session_options": {"custom_ops_library": "./evil.so"}}}}
    main.with_name("genai_config.json").write_text(json.dumps(settings))
    document = json.loads(described.read_text())
    document["backend"] = "onnxruntime_genai"
    document["files"] = [*document["files"], "model/genai_config.json"]
    described.write_text(json.dumps(document))
    (folder / "SHA256SUMS").unlink()
    files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    (folder / "SHA256SUMS").write_bytes(writing.sums(files))
    result = edgekit("verify", folder)
    assert result.code == 3, result.err
    assert "custom_ops_library" in result.err
