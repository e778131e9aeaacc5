"""`edgekit diff` from the command line: the example of its documentation, and what it refuses."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from cli_process import edgekit

PAGE = Path(__file__).parents[2] / "docs" / "diff.md"
SAID = ("starts at", "try:", "built again", "PyTorch →", "exported ONNX →", "quantized ONNX →")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example of the page, built as the page says."""
    pytest.importorskip("ai_edge_litert")
    folder = tmp_path_factory.mktemp("diff")
    page = PAGE.read_text(encoding="utf-8")
    (folder / "net.py").write_text(re.findall(r"```python\n(.*?)```", page, re.S)[0], encoding="utf-8")
    done = edgekit(*commands()[0], cwd=folder)
    assert done.code == 0, done.err
    return folder


def commands() -> list[list[str]]:
    page = PAGE.read_text(encoding="utf-8")
    console = re.findall(r"```console\n(.*?)```", page, re.S)[0]
    return [line.split()[2:] for line in console.splitlines() if line.startswith("$ edgekit")]


def said(text: str) -> list[str]:
    """The sentences of an output, without figures."""
    return [re.sub(r"-?\d+\.?\d*", "#", line.strip()) for line in text.splitlines() if line.startswith(SAID)]


def test_the_page_is_what_it_prints(built: Path) -> None:
    shutil.copytree(built, again := built.parent / "again")
    assert edgekit(*commands()[0], cwd=again).code == 0  # a source is known by where it lies
    done = edgekit(*commands()[1], cwd=again)
    assert done.code == 0, done.err
    assert said(done.out) == said(PAGE.read_text(encoding="utf-8"))


def test_json_names_the_layer_and_the_flags(built: Path) -> None:
    done = edgekit("diff", "build/tflite-int8", "--json", cwd=built)
    assert done.code == 5
    document = json.loads(done.out)
    assert document["starts_at"]["module"] == "stem.0"
    assert document["stage"] == "quantized ONNX"
    assert document["suggestions"][0]["flags"] == ["--method", "minmax"]


def test_min_snr_is_a_gate(built: Path) -> None:
    float_one = ("diff", "net.py:factory", "net.py:factory")
    assert edgekit(*float_one, cwd=built).code == 0
    assert edgekit(*float_one, "--min-snr", "199", cwd=built).code == 5


def test_a_file_that_was_changed_after_the_build_is_to_be_built_again(built: Path) -> None:
    shutil.copytree(built, other := built.parent / "tampered")
    file = other / "build/tflite-int8/model.tflite"
    data = bytearray(file.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 64] = bytes(64)
    file.write_bytes(data)
    done = edgekit("diff", "build/tflite-int8", "--trust", "--json", cwd=other)
    assert "changed since the build" in done.out
    assert done.code == 5
    assert "build it again" in json.loads(done.out)["suggestions"][0]["why"]


def test_a_source_alone_has_nothing_to_be_compared_with(built: Path) -> None:
    done = edgekit("diff", "net.py:factory", cwd=built)
    assert done.code == 2
    assert "hint:" in done.err


def received(built: Path, name: str) -> Path:
    """The built project as somebody else would send it: its code now leaves a mark when it is executed."""
    shutil.copytree(built, folder := built.parent / name)
    source = folder / "net.py"
    source.write_text(f"open({str(folder / 'executed')!r}, 'w')\n" + source.read_text(encoding="utf-8"))
    return folder


def test_a_received_artifacts_code_is_not_executed(built: Path) -> None:
    folder = received(built, "received")
    done = edgekit("diff", "build/tflite-int8", cwd=folder)
    assert not (folder / "executed").exists()
    assert done.code == 3
    assert "net.py:factory" in done.err
    assert "--trust" in done.err


def test_a_received_artifacts_code_is_executed_when_it_is_trusted(built: Path) -> None:
    folder = received(built, "trusted")
    done = edgekit("diff", "build/tflite-int8", "--trust", cwd=folder)
    assert (folder / "executed").exists()
    assert done.code == 5, done.err


def test_a_source_that_the_user_names_needs_no_trust(built: Path) -> None:
    folder = received(built, "named")
    assert edgekit("diff", "net.py:factory", "build/tflite-int8", cwd=folder).code == 5


def test_the_source_is_the_reference_whatever_the_order(built: Path) -> None:
    options = ("-t", "tflite-int8", "--calib", "net.py:images", "--no-speed-gate", "-o", "healthy")
    assert edgekit("build", "net.py:factory", *options, cwd=built).code == 0
    right = edgekit("diff", "net.py:factory", "healthy/tflite-int8", "--json", cwd=built)
    other = edgekit("diff", "healthy/tflite-int8", "net.py:factory", "--json", cwd=built)
    assert (right.code, other.code) == (0, 0), other.err
    first, second = json.loads(right.out), json.loads(other.out)
    assert "net.py:factory is the reference" in second["notes"][0]
    assert {**second, "notes": second["notes"][1:]} == first


def test_two_models_that_share_no_input(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Linear):\n"
        "    def forward(self, NAME):\n"
        "        return super().forward(NAME)\n".replace("NAME", "first")
        + "class Other(torch.nn.Linear):\n"
        "    def forward(self, second):\n"
        "        return super().forward(second)\n"
        "def one():\n    return Net(4, 2), (torch.zeros(1, 4),)\n"
        "def two():\n    return Other(4, 2), (torch.zeros(1, 4),)\n"
    )
    for name in ("one", "two"):
        assert edgekit("build", f"nets.py:{name}", "-t", "ort-fp32", "-o", name, cwd=tmp_path).code == 0
    for pair in (("one/ort-fp32", "two/ort-fp32"), ("nets.py:one", "two/ort-fp32")):
        result = edgekit("diff", *pair, cwd=tmp_path)
        assert result.code == 2, result.err
        assert "are two models: one takes first, the other second" in result.err
