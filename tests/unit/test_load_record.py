"""Which files were read, and whether they are still the same. No torch."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import pkgutil
import sys
from pathlib import Path

import pytest

from edgekit.core.dependency import Kind, unchanged
from edgekit.core.versions import environment
from edgekit.load import Recorder


def names(recorder: Recorder) -> set[str]:
    return {Path(d.name).name for d in recorder.dependencies if d.kind in (Kind.FILE, Kind.FOLDER)}


def test_files_read_are_recorded_files_written_are_not(tmp_path: Path) -> None:
    (tmp_path / "read.txt").write_text("a")
    (tmp_path / "before.txt").write_text("a")
    (tmp_path / "before.txt").read_text()
    with Recorder() as recorder:
        (tmp_path / "read.txt").read_text()
        (tmp_path / "written.txt").write_text("b")
        os.close(os.open(tmp_path / "read.txt", os.O_RDONLY))
        Path(os.devnull).read_text()
        assert not (tmp_path / "missing").exists()
    (tmp_path / "read.txt").read_text()
    assert names(recorder) == {"read.txt"}
    absent = {Path(d.name).name for d in recorder.dependencies if d.kind is Kind.ABSENT}
    assert absent == {"missing"}


def test_modules_are_recorded_installed_ones_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recorded_sibling.py").write_text("import xml.dom.minidom\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with Recorder() as recorder:
        importlib.import_module("recorded_sibling")
    assert "recorded_sibling.py" in names(recorder)
    assert "minidom.py" not in names(recorder)
    del sys.modules["recorded_sibling"]


def test_a_listed_directory_changes_with_its_names(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "a.npy").write_text("")
    with Recorder() as recorder:
        list(data.glob("*.npy"))
    assert unchanged(recorder.dependencies)
    (data / "b.npy").write_text("")
    assert not unchanged(recorder.dependencies)


def test_looking_for_modules_lists_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working directory is on ``sys.path``: an output folder that appears there changes no source."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    with Recorder() as recorder:
        importlib.invalidate_caches()
        list(importlib.metadata.distributions())
        list(pkgutil.iter_modules())
    assert str(tmp_path) not in {d.name for d in recorder.dependencies}


def test_unchanged_by_content_not_by_time(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("same")
    with Recorder() as recorder:
        file.read_text()
    os.utime(file, ns=(1, 1))
    assert unchanged(recorder.dependencies)
    file.write_text("more")
    os.utime(file, ns=(2, 2))
    assert not unchanged(recorder.dependencies)
    file.unlink()
    assert not unchanged(recorder.dependencies)


def test_safetensors_are_recorded(tmp_path: Path) -> None:
    numpy = pytest.importorskip("safetensors.numpy")
    import numpy as np
    from safetensors import safe_open

    numpy.save_file({"a": np.zeros(2, np.float32)}, tmp_path / "w.safetensors")
    with Recorder() as recorder:
        import safetensors

        with safetensors.safe_open(tmp_path / "w.safetensors", framework="numpy") as file:
            file.get_tensor("a")
    assert names(recorder) == {"w.safetensors"}
    import safetensors

    assert safetensors.safe_open is safe_open


def test_nested_recorders(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    (tmp_path / "b").write_text("")
    with Recorder() as outer:
        (tmp_path / "a").read_text()
        with Recorder() as inner:
            (tmp_path / "b").read_text()
    assert names(outer) == {"a", "b"}
    assert names(inner) == {"b"}


def test_the_environment_follows_what_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    before = environment()
    assert before == environment()
    (tmp_path / "thing-1.0.dist-info").mkdir()
    assert before != environment()


def _onnxruntime(path):
    import onnxruntime
    from onnx import TensorProto, helper

    info = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", info[:1], info[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    session = lambda: onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])  # noqa: E731
    return session, lambda: onnxruntime.InferenceSession(
        path.read_bytes(), providers=["CPUExecutionProvider"]
    )


def _torch(path):
    import torch

    path.write_bytes(b"\0" * 16)
    return lambda: torch.from_file(str(path), size=4), None


def _tokenizers(path):
    tokenizers = pytest.importorskip("tokenizers")
    tokenizers.Tokenizer(tokenizers.models.BPE()).save(str(path))
    return lambda: tokenizers.Tokenizer.from_file(str(path)), lambda: tokenizers.Tokenizer(
        tokenizers.models.BPE()
    )


@pytest.mark.parametrize("kind", [_onnxruntime, _torch, _tokenizers])
def test_files_that_native_code_opens_are_seen(tmp_path, kind):
    read, other = kind(tmp_path / "file")
    with Recorder() as recorder:
        read()
    assert str(tmp_path / "file") in {d.name for d in recorder.dependencies}
    if other is not None:  # what takes no path names none
        with Recorder() as recorder:
            other()
        assert all(len(d.name) < 4096 for d in recorder.dependencies)
    import onnxruntime

    assert isinstance(onnxruntime.InferenceSession, type)
