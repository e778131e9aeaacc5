"""What a SOURCE text means, and what is said when it means nothing. No torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgekit.errors import SourceError
from edgekit.load import load, parse


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("model.py", "model.pt2", "model.onnx", "weights.pt", "net.keras", "old.h5", "w.safetensors"):
        (tmp_path / name).write_text("")
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "saved_model.pb").write_text("")
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "config.json").write_text("{}")
    return tmp_path


@pytest.mark.parametrize(
    ("text", "kind", "attribute"),
    [
        ("model.py:factory", "factory", "factory"),
        ("./model.py:Net.make", "factory", "Net.make"),
        ("package.module:factory", "factory", "factory"),
        ("model.pt2", "pt2", ""),
        ("model.onnx", "onnx", ""),
        ("weights.pt", "pt", ""),
        ("net.keras", "keras", ""),
        ("old.h5", "keras", ""),
        ("saved", "savedmodel", ""),
        ("hf:hub", "hf", ""),
        ("hf:org/name", "hf", "org/name"),
    ],
)
def test_kinds(text: str, kind: str, attribute: str) -> None:
    spec = parse(text)
    assert (spec.kind, spec.attribute, spec.text) == (kind, attribute, text)


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("modle.py:factory", "there is no modle.py", "model.py"),
        ("modle.onnx", "there is no modle.onnx", "model.onnx"),
        ("nowhere/model.onnx", "no directory nowhere", "path"),
        ("model.py", "no factory in it", "model.py:NAME"),
        ("hub", "Hugging Face", "hf:hub"),
        (".", "not a SavedModel", "model.onnx"),
        ("w.safetensors", "weights without a model", "factory"),
        ("", "empty", "file.py:factory"),
        ("hf:", "names no directory", "hf:DIR"),
        ("hf:./missing", "there is no missing", "check"),
    ],
)
def test_what_is_no_source(text: str, message: str, hint: str) -> None:
    with pytest.raises(SourceError) as caught:
        parse(text)
    assert message in caught.value.message
    assert hint in caught.value.hint or hint == "check"
    assert caught.value.exit_code == 3


def test_unknown_suffix(folder: Path) -> None:
    (folder / "a.xyz").write_text("")
    with pytest.raises(SourceError, match="no kind of source"):
        parse("a.xyz")


def test_parsing_imports_nothing_heavy() -> None:
    code = (
        "import sys; from edgekit.load import parse, Recorder\n"
        "from edgekit.core.versions import environment; environment()\n"
        "parse('model.onnx'); print([m for m in ('torch', 'onnx', 'numpy', 'onnx_ir') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_what_is_there_and_is_no_file_is_named_as_what_it_is(tmp_path):
    os.mkfifo(tmp_path / "pipe.onnx")
    (tmp_path / "link.onnx").symlink_to("nowhere.onnx")
    for name, what in (("pipe.onnx", "a pipe or a device"), ("link.onnx", "a link to nothing")):
        with pytest.raises(SourceError, match=f"is {what}, not a file"):
            parse(str(tmp_path / name))


@pytest.mark.parametrize(
    "text", ["x" * 5000, "hf:" + "x" * 5000, "x" * 5000 + ".onnx", "x" * 5000 + ".py:f", "a\0b.onnx"]
)
def test_a_name_that_no_file_can_have_is_no_source(text: str) -> None:
    with pytest.raises(SourceError) as error:
        load(parse(text))
    assert len(error.value.message) < 6000
