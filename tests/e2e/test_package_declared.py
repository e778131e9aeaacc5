"""The post-processing contract declared where the model is: at the source, or in edgekit.toml; kept by packages."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from cli_process import edgekit

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("package-declared")]

SOURCE = '''
import torch
from edgekit.types import TorchModel


class Two(torch.nn.Module):
    """Features, and scores of three classes: what a head ends in is the test's."""

    def __init__(self, end):
        super().__init__()
        torch.manual_seed(3)
        self.body, self.head, self.end = torch.nn.Linear(8, 6), torch.nn.Linear(6, 3), end

    def forward(self, rows):
        features = torch.tanh(self.body(rows))
        return features, self.end(4 * self.head(features))


def declared(end, **contract):
    example = {"rows": torch.linspace(-2, 2, 8)[None]}
    labels = ("cat", "dog", "owl")
    return TorchModel(module=Two(end), example_inputs=example, labels=labels, postprocessing=contract)


def logits():
    return declared(torch.nn.Identity(), kind="softmax")


def independent():
    return declared(torch.nn.Sigmoid(), kind="none")


def silent():
    return declared(torch.nn.Sigmoid())


def twice():
    return declared(torch.nn.Softmax(-1), kind="softmax")


def unknown():
    return declared(torch.nn.Identity(), kind="softmaks")


def features():
    return declared(torch.nn.Identity(), kind="softmax", output="output_0")


def other():
    return declared(torch.nn.Identity(), kind="softmax", output="logits")
'''


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("declared")
    (folder / "model.py").write_text(SOURCE)
    return folder


def build(project: Path, factory: str, out: Path, target: str = "ort-fp32", cwd: Path | None = None):
    return edgekit("build", f"{project}/model.py:{factory}", "-t", target, "-o", out, cwd=cwd or out.parent)


def packaged(artifact: Path, out: Path, *more: str):
    name = ("--name", "com.example.two", "--version", "1.0.0", "--format", "bundle")
    return edgekit("package", artifact, *name, "--out", out, *more)


def manifest(artifact: Path) -> dict:
    return json.loads((artifact / "manifest.json").read_text())


def contract(package: Path) -> dict:
    return json.loads((package / "com.example.two-1.0.0/edgekit.json").read_text())


def test_a_package_keeps_what_the_source_declares(project: Path, tmp_path: Path) -> None:
    done = build(project, "logits", tmp_path / "out", "ort-fp32,tflite-fp32")
    assert done.code == 0, done.err
    for target in ("ort-fp32", "tflite-fp32"):
        recorded = manifest(tmp_path / "out" / target)
        output = recorded["outputs"][1]["name"]
        assert recorded["postprocessing"] == {"kind": "softmax", "output": output}
        done = packaged(tmp_path / "out" / target, tmp_path / target)
        assert done.code == 0, done.err
        assert "note: post-processing" not in done.err
        described = contract(tmp_path / target)
        assert (described["postprocessing"]["kind"], described["labels"]["output"]) == ("softmax", output)
        case = described["golden"]["cases"][0]
        folder = tmp_path / target / "com.example.two-1.0.0"
        scores = np.fromfile(folder / case["outputs"][1]["file"], np.float32).astype("f8")
        shares = np.fromfile(folder / case["result"]["file"], np.float32)
        assert abs(scores.sum() - 1) > 0.1
        np.testing.assert_allclose(shares, np.exp(scores) / np.exp(scores).sum(), atol=1e-6)


def test_what_the_package_is_told_counts_more_and_is_said(project: Path, tmp_path: Path) -> None:
    assert build(project, "logits", tmp_path / "out").code == 0
    done = packaged(tmp_path / "out/ort-fp32", tmp_path / "package", "--postprocess", "sigmoid")
    assert done.code == 0, done.err
    assert "kind = 'sigmoid' was asked for and counts; the artifact declares kind = 'softmax'" in done.err
    after = contract(tmp_path / "package")["postprocessing"]
    assert (after["kind"], after["output"]) == (
        "sigmoid",
        manifest(tmp_path / "out/ort-fp32")["outputs"][1]["name"],
    )


def test_the_projects_file_goes_before_the_source(project: Path, tmp_path: Path) -> None:
    (tmp_path / "edgekit.toml").write_text('[postprocessing]\nkind = "sigmoid"\n')
    # The source's own is wrong (a second softmax), and does not count here.
    done = build(project, "unknown", tmp_path / "out", cwd=tmp_path)
    assert done.code == 0, done.err
    assert manifest(tmp_path / "out/ort-fp32")["postprocessing"]["kind"] == "sigmoid"


def test_a_declaration_answers_what_a_package_would_ask(project: Path, tmp_path: Path) -> None:
    assert build(project, "silent", tmp_path / "silent").code == 0
    assert manifest(tmp_path / "silent/ort-fp32")["postprocessing"] == {}
    asked = packaged(tmp_path / "silent/ort-fp32", tmp_path / "asked")
    assert asked.code == 2
    assert "do not add up to 1" in asked.err
    assert "TorchModel(postprocessing=" in asked.err
    assert build(project, "independent", tmp_path / "told").code == 0
    assert packaged(tmp_path / "told/ort-fp32", tmp_path / "package").code == 0
    assert contract(tmp_path / "package")["postprocessing"]["kind"] == "none"


@pytest.mark.parametrize(
    ("factory", "table", "words"),
    [
        ("twice", "", ["is the result of a softmax already", 'kind = "none"']),
        ("twice", 'kind = "sigmoid"', ["is the result of a softmax already"]),
        ("unknown", "", ["unknown post-processing 'softmaks'", "softmax"]),
        ("features", "", ["6 classes", "3 labels"]),
        ("other", "", ["'logits'", "postprocessing"]),
        ("logits", 'kind = "softmax"\noutptu = "x"', ["'outptu'", "output"]),
        ("logits", 'output = "x"', ["kind"]),
        ("logits", 'kind = "boxes"\nboxes = "x"', ["'x'"]),
    ],
)
def test_a_wrong_declaration_ends_the_build(
    factory: str, table: str, words: list[str], project: Path, tmp_path: Path
) -> None:
    if table:
        (tmp_path / "edgekit.toml").write_text(f"[postprocessing]\n{table}\n")
    done = build(project, factory, tmp_path / "out", cwd=tmp_path)
    assert done.code == 2, done.err
    assert "hint:" in done.err
    assert "Traceback" not in done.err
    for word in words:
        assert word in done.err, done.err
    assert not (tmp_path / "out").exists()
