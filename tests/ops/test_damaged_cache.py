"""Each file of a build's cache is flipped or cut, one at a time: the build gives what it gave before, and says so."""

from __future__ import annotations

import hashlib
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper  # noqa: E402

import edgekit  # noqa: E402
from edgekit.core import targets  # noqa: E402
from edgekit.core.config import Options  # noqa: E402
from edgekit.core.progress import Silent  # noqa: E402
from edgekit.core.store import Store  # noqa: E402
from edgekit.load import parse  # noqa: E402
from edgekit.pipeline.build import run  # noqa: E402
from edgekit.pipeline.request import Request  # noqa: E402
from edgekit.pipeline.stages import BuildContext  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
import kills  # noqa: E402


def graph(path: Path) -> Path:
    weight = np.random.default_rng(3).normal(size=(4, 3)).astype(np.float32)
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])]
    tensor = helper.make_tensor("w", TensorProto.FLOAT, [4, 3], weight.tobytes(), raw=True)
    body = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", inputs, outputs, [tensor])
    onnx.save(helper.make_model(body, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def build(root: Path, folder: Path, said: list[str]) -> dict[str, str]:
    options = Options(out=folder / "out", speed_gate=False, calib=str(folder / "data"))
    request = Request(
        source=parse(str(folder / "graph.onnx")),
        targets=targets.select("ort-int8"),
        options=options,
        calibration=options.calib,
    )
    (outcome,) = run(
        request, BuildContext(store=Store(root, said.append), options=options, progress=Silent())
    )
    assert outcome.artifact is not None, outcome.error
    found = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in outcome.artifact.directory.iterdir()}
    timeless = replace(
        outcome.artifact.manifest,
        steps=tuple(replace(s, seconds=0.0) for s in outcome.artifact.manifest.steps),
    )
    return found | {"manifest.json": repr(timeless)}


def test_no_damage_reaches_an_artifact(tmp_path):
    cache = tmp_path / "cache"
    graph(tmp_path / "graph.onnx")
    (tmp_path / "data").mkdir()
    for number in range(4):
        np.save(tmp_path / "data" / f"{number}.npy", np.random.default_rng(number).normal(size=(1, 4)))
        array = np.load(tmp_path / "data" / f"{number}.npy").astype(np.float32)
        np.save(tmp_path / "data" / f"{number}.npy", array)
    said: list[str] = []
    whole = build(cache, tmp_path, said)
    cached = sorted(p for place in ("steps", "notes") for p in (cache / place).rglob("*") if p.is_file())
    assert {p.parent.parent.name for p in cached} >= {
        "export",
        "calibrate",
        "quantize",
        "lower",
        "golden",
        "verify",
    }
    for number, path in enumerate(cached):
        if number % 2:
            path.write_bytes(b"")
        else:
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 16
            times = path.stat().st_mtime_ns
            path.write_bytes(data)
            os.utime(path, ns=(times, times))
        del said[:]
        assert build(cache, tmp_path, said) == whole, path
        # A note that says where a source was built is written by a build, and read by others.
        assert len([s for s in said if "damaged" in s]) == (0 if "built-from" in path.parts else 1), (
            path,
            said,
        )
    del said[:]
    assert build(cache, tmp_path, said) == whole
    assert said == []


def everything(folder: Path, said: list[str]) -> dict[str, str]:
    """A build with a recipe and two targets: sha256 of every file, the seconds in manifests left out."""
    options = Options(
        target=("ort-int8", "tflite-int8"),
        recipe=kills.RECIPE,
        task="classification(batch=32)",
        train=f"{folder}/model.py:train",
        eval=f"{folder}/model.py:evaluation",
        calib=f"{folder}/model.py:calibration",
        max_drop=0.1,
        speed_gate=False,
        out=folder / "out",
    )
    result = edgekit.build(
        f"{folder}/model.py:model", options=options, progress=lambda e: said.append(e.text)
    )
    result.raise_for_failures()
    return kills.contents(folder / "out")


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["flipped", "cut"])
def test_no_damage_to_any_file_of_a_build_with_a_recipe_reaches_an_artifact(damage, tmp_path, monkeypatch):
    pytest.importorskip("ai_edge_litert")
    cache, said = tmp_path / "cache", []
    monkeypatch.setenv("EDGEKIT_CACHE", str(cache))
    (tmp_path / "model.py").write_text(kills.SOURCE)
    whole = everything(tmp_path, said)
    cached = sorted(p for place in ("steps", "notes") for p in (cache / place).rglob("*") if p.is_file())
    assert len(cached) > 50
    untold = []
    for path in cached:
        data, times = bytearray(path.read_bytes()), path.stat().st_mtime_ns
        if damage == "cut":
            del data[len(data) // 2 :]
        else:
            data[len(data) // 2] ^= 16
        path.write_bytes(data)
        os.utime(path, ns=(times, times))
        del said[:]
        assert everything(tmp_path, said) == whole, path
        if not any("damaged" in text and "is made again" in text for text in said):
            untold.append(path.relative_to(cache).parts[1])
    print(f"{damage}: {len(cached)} files, {len(untold)} not told of: {untold}")
    # Notes that say what was made here are written by a build, and read by others.
    assert set(untold) <= {"artifact", "built-from", "plan"}
