"""Bills of materials: valid by CycloneDX' own schema, and the right component for each kind of package."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import package_support as support
import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from edgekit.artifact.manifest import Artifact, StepRecord
from edgekit.package import PackageSpec, package

pytest.importorskip("ai_edge_litert")

NAME = "com.example.digits"
FORMATS = {
    ("onnxruntime", "bundle"): ("", "pkg:maven/com.microsoft.onnxruntime/onnxruntime-android"),
    ("onnxruntime", "ort"): ("", "pkg:maven/com.microsoft.onnxruntime/onnxruntime-android"),
    ("onnxruntime", "web"): (f"pkg:npm/{NAME}@1.2.3", "pkg:npm/onnxruntime-web@1.30.0"),
    ("onnxruntime", "react-native"): (f"pkg:npm/{NAME}@1.2.3", "pkg:npm/onnxruntime-react-native@1.23.0"),
    ("onnxruntime", "ios-spm"): (
        "",
        "pkg:swift/github.com/microsoft/onnxruntime-swift-package-manager@1.24.2",
    ),
    ("onnxruntime", "android-aar"): (
        "pkg:maven/com.example/digits@1.2.3?type=aar",
        "pkg:maven/com.microsoft.onnxruntime/onnxruntime-android@1.23.0",
    ),
    ("tflite", "web"): (f"pkg:npm/{NAME}@1.2.3", "pkg:npm/%40litertjs/core@2.5.3"),
    ("tflite", "react-native"): (f"pkg:npm/{NAME}@1.2.3", "pkg:npm/react-native-fast-tflite@3.0.1"),
    ("tflite", "android-aar"): (
        "pkg:maven/com.example/digits@1.2.3?type=aar",
        "pkg:maven/com.google.ai.edge.litert/litert@1.4.2",
    ),
    ("tflite", "ai-pack"): ("", "pkg:maven/com.google.ai.edge.litert/litert"),
}


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    root = tmp_path_factory.mktemp("sbom")
    return {
        "onnxruntime": support.onnx_artifact(root / "onnx"),
        "tflite": support.tflite_artifact(root / "tflite"),
    }


def bill(artifact: Artifact, format_: str, out: Path, **fields: Any) -> dict[str, Any]:
    spec = PackageSpec(**{"format": format_, "name": NAME, "version": "1.2.3", "license": "MIT", **fields})
    package(artifact, spec, out)
    (file,) = out.rglob("sbom.cdx.json")
    text = file.read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    return dict(json.loads(text))


@pytest.mark.parametrize(("backend", "format_"), sorted(FORMATS))
def test_the_component_is_what_the_ecosystem_knows(
    backend: str, format_: str, artifacts: dict[str, Artifact], tmp_path: Path
) -> None:
    if format_ == "android-aar" and not shutil.which("javac"):
        pytest.skip("no JDK")
    own, runtime = FORMATS[backend, format_]
    found = bill(artifacts[backend], format_, tmp_path / "out")
    component = found["metadata"]["component"]
    assert component.get("purl", "") == own
    assert component["version"] == "1.2.3"
    parts = {c["bom-ref"]: c for c in found["components"]} | {component["bom-ref"]: component}
    assert parts["runtime"]["purl"] == runtime
    assert parts["runtime"].get("version", "") == runtime.partition("@")[2]
    assert parts["model"]["hashes"][0]["content"] == artifacts[backend].manifest.files[0].sha256 or (
        format_ == "ort"  # another file of the same model
    )
    assert parts["model"]["licenses"] == [{"expression": "MIT"}]
    assert "pypi/edgekit" not in json.dumps(found)
    needs = {d["ref"]: d.get("dependsOn", []) for d in found["dependencies"]}
    assert "runtime" in needs[component["bom-ref"]]


@pytest.mark.parametrize(
    ("license_", "both"),
    [
        ("", "Apache-2.0"),
        ("Apache-2.0", "Apache-2.0"),
        ("MIT OR GPL-2.0-only", "(MIT OR GPL-2.0-only) AND Apache-2.0"),
        ("LicenseRef-Own.x", "(LicenseRef-Own.x) AND Apache-2.0"),
    ],
)
def test_licences_of_model_and_wrapper(
    license_: str, both: str, artifacts: dict[str, Artifact], tmp_path: Path
) -> None:
    found = bill(artifacts["onnxruntime"], "web", tmp_path / "out", license=license_)
    assert found["metadata"]["component"]["licenses"] == [{"expression": both}]
    model = next(c for c in found["components"] if c["bom-ref"] == "model")
    assert model.get("licenses", []) == ([{"expression": license_}] if license_ else [])


def test_what_made_the_model_is_named_without_projects_that_are_not_meant(
    artifacts: dict[str, Artifact], tmp_path: Path
) -> None:
    step = StepRecord(
        name="export",
        output_sha256="0" * 64,
        versions={"torch": "2.13.0", "edgekit": "0.1.0", "python": "3.11.2", "": "1", "a b": "2"},
        seconds=1.0,
    )
    artifact = artifacts["onnxruntime"]
    changed = replace(artifact, manifest=replace(artifact.manifest, steps=(step,)))
    tools = bill(changed, "bundle", tmp_path / "out")["metadata"]["tools"]["components"]
    assert {t["name"]: t.get("purl") for t in tools} == {
        "edgekit": None,
        "python": None,
        "": None,
        "a b": None,
        "torch": "pkg:pypi/torch@2.13.0",
    }
