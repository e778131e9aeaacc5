"""Records of engines that were altered with all hashes done again: refuted without a GPU, where they can be."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper

from edgekit.artifact import manifest
from edgekit.artifact.manifest import Artifact, FileRecord, Manifest, Status
from edgekit.artifact.summary import messages
from edgekit.backends.nvidia import offline
from edgekit.backends.nvidia.engine import EngineKey, read_key, write_record
from edgekit.backends.nvidia.flags import flags_of
from edgekit.backends.nvidia.recipe import read_recipe, write_recipe
from edgekit.cli import cli
from edgekit.core import targets
from edgekit.errors import SourceError
from edgekit.graph import io
from edgekit.report.collect import collect
from edgekit.types import CHECKED, Gate, SourceRecord, Verdict

PROFILES = {"x": ((1, 3), (1, 3), (8, 3))}
LISTED: dict[str, Any] = {"x": [[1, 3], [1, 3], [8, 3]]}


def graph(path: Path) -> str:
    shape = ["batch", 3]
    made = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
    return io.digest(path)


def tensorrt(folder: Path) -> tuple[Path, EngineKey]:
    """As it is built on a Jetson."""
    sha256 = graph(folder / "model.onnx")
    options = {"typing": "auto", "workspace_mib": 512, "dla": 0, "minutes": 30}
    write_recipe(targets.find("tensorrt-int8"), PROFILES, options, (), folder)
    engine = folder / "model.engine"
    engine.write_bytes(b"an engine")
    return engine, EngineKey(
        graph_sha256=sha256,
        runtime="tensorrt",
        version="10.3.0",
        gpu="Orin",
        compute_capabilities=("8.7",),
        driver="R36.4.0 540.4.0",
        flags=flags_of(read_recipe(folder / "recipe.json"), "10.3.0"),
    )


def rtx(folder: Path) -> tuple[Path, EngineKey]:
    """As the builder writes it here."""
    sha256 = graph(folder / "model.onnx")
    engine = folder / "model.engine"
    engine.write_bytes(b"vtrt".ljust(16, b"\0") + struct.pack("<Q", 32) + bytes([1, 7, 1, 116]) + b"rest")
    flags: dict[str, Any] = {"profiles": LISTED, "tf32": False}
    return engine, EngineKey(
        graph_sha256=sha256,
        runtime="tensorrt_rtx",
        version="1.7.1.116",
        compute_capabilities=("8.6", "8.9"),
        flags=flags,
    )


DETAILS = {"tensorrt": {}, "tensorrt_rtx": {"profiles": LISTED}}


def said(engine: Path, key: EngineKey, runtime: str) -> str:
    """All hashes are right for ``key``."""
    write_record(engine, key)
    return "; ".join(offline.contradictions(engine, runtime, DETAILS[runtime]))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"compute_capabilities": ("8.6",)}, "Orin with compute capability 8.6, and that one has 8.7"),
        ({"gpu": "NVIDIA H100 80GB HBM3"}, "that one has 9.0"),
        ({"compute_capabilities": ("8.7", "8.9")}, "a GPU has one"),
        ({"compute_capabilities": ("99",)}, "no compute capability '99'"),
        ({"version": "10"}, "no version '10'"),
        ({"version": "ten.three"}, "no version"),
        ({"version": "7.2.1"}, "none before 8.5"),
        ({"version": "11.0.0"}, "precisions, typing"),
        ({"graph_sha256": "ab" * 32}, "another graph"),
        ({"runtime": "tensorrt_rtx"}, "for tensorrt_rtx, and the artifact is for tensorrt"),
        ({"flags": {}}, "dla, float32, precisions, profiles, tf32, typing, workspace"),
    ],
)
def test_what_cannot_be_of_an_engine_of_tensorrt(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    engine, key = tensorrt(tmp_path)
    assert said(engine, key, "tensorrt") == ""
    assert words in said(engine, replace(key, **changes), "tensorrt")


@pytest.mark.parametrize("flag", ["dla", "precisions", "profiles", "tf32", "typing", "workspace", "float32"])
def test_each_flag_is_that_of_the_recipe(flag: str, tmp_path: Path) -> None:
    engine, key = tensorrt(tmp_path)
    assert flag in said(engine, replace(key, flags={**key.flags, flag: "other"}), "tensorrt")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": "1.6.0.12"}, "says version 1.6.0.12, and the engine itself 1.7.1.116"),
        ({"version": "1.7.1.117"}, "the engine itself"),
        ({"graph_sha256": "ab" * 32}, "another graph"),
        ({"compute_capabilities": ("8.6", "nine")}, "no compute capability 'nine'"),
        ({"flags": {"profiles": {}, "tf32": False}}, "profiles"),
        ({"flags": {"profiles": LISTED, "tf32": True}}, "tf32"),
    ],
)
def test_what_cannot_be_of_an_engine_of_tensorrt_for_rtx(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    engine, key = rtx(tmp_path)
    assert said(engine, key, "tensorrt_rtx") == ""
    assert words in said(engine, replace(key, **changes), "tensorrt_rtx")


def test_something_else_is_no_engine(tmp_path: Path) -> None:
    engine, key = rtx(tmp_path)
    engine.write_bytes(b"\x7fELF" * 20)
    assert "does not begin as an engine" in said(engine, key, "tensorrt_rtx")
    assert said(engine, replace(key, version="2.0.0.1"), "tensorrt_rtx") == ""  # how these begin is not known


@pytest.mark.parametrize("kept", [5, 16, 25, 28, 31])
def test_an_engine_that_was_cut_short_is_seen_by_its_own_header(kept: int, tmp_path: Path) -> None:
    engine, key = rtx(tmp_path)
    engine.write_bytes(engine.read_bytes()[:kept])
    assert "cut short" in said(engine, key, "tensorrt_rtx") or f"and it has {kept}" in said(
        engine, key, "tensorrt_rtx"
    )


@pytest.mark.parametrize(
    ("gpu", "capability"),
    [
        ("NVIDIA A100-SXM4-40GB", "8.0"),
        ("NVIDIA A10", "8.6"),
        ("NVIDIA A10G", "8.6"),
        ("NVIDIA L4", "8.9"),
        ("NVIDIA RTX A4000", "8.6"),
        ("NVIDIA RTX 6000 Ada Generation", "8.9"),
        ("Quadro RTX 6000", "7.5"),
        ("NVIDIA GeForce RTX 3060 Ti", "8.6"),
        ("NVIDIA GeForce RTX 4090", "8.9"),
        ("NVIDIA H200", "9.0"),
        ("Thor", "11.0"),
        ("Orin (nvgpu)", "8.7"),
        ("A GPU of next year", "13.0"),
    ],
)
def test_no_contradiction_is_invented(gpu: str, capability: str, tmp_path: Path) -> None:
    engine, key = tensorrt(tmp_path)
    assert said(engine, replace(key, gpu=gpu, compute_capabilities=(capability,)), "tensorrt") == ""


def artifact(folder: Path, make: Callable[[Path], tuple[Path, EngineKey]], **changes: Any) -> Artifact:
    """A whole one, whose manifest has the hashes of what lies there."""
    engine, key = make(folder)
    write_record(engine, replace(key, **changes))
    names = ("model.engine", *sorted(p.name for p in folder.iterdir() if p.name != "model.engine"))
    made = Manifest(
        edgekit="1",
        status=Status.NOT_RUN,
        target=targets.find("tensorrt-int8" if make is tensorrt else "tensorrt-rtx-int8"),
        source=SourceRecord(text="m.onnx", kind="onnx", sha256="0" * 64),
        files=tuple(
            FileRecord(name=n, size=(folder / n).stat().st_size, sha256=manifest.sha256_file(folder / n))
            for n in names
        ),
        details=DETAILS[key.runtime],
    )
    manifest.write(made, folder)
    return manifest.read(folder)


@pytest.mark.parametrize("make", [tensorrt, rtx])
def test_an_artifact_with_such_a_record_is_changed_whatever_its_hashes_say(
    make: Callable[[Path], tuple[Path, EngineKey]], tmp_path: Path
) -> None:
    for name in ("good", "bad"):
        (tmp_path / name).mkdir()
    manifest.check_files(artifact(tmp_path / "good", make))
    wrong = artifact(tmp_path / "bad", make, graph_sha256="ab" * 32)
    assert read_key(wrong.model).graph_sha256 == "ab" * 32
    with pytest.raises(SourceError, match="another graph"):
        manifest.check_files(wrong)
    entries, _ = collect([tmp_path / "good", tmp_path / "bad"])
    assert [bool(e.changed) for e in entries] == [False, True]
    assert "another graph" in entries[1].changed


def cut(folder: Path) -> tuple[Path, EngineKey]:
    """The copy ended early, and whoever passed it on did the hashes again."""
    engine, key = rtx(folder)
    engine.write_bytes(engine.read_bytes()[:-3])
    return engine, key


def test_each_command_says_that_an_engine_was_cut_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("cut").mkdir()
    artifact(Path("cut"), cut)
    for command in (["inspect", "cut"], ["verify", "cut", "--trust"]):
        result = CliRunner().invoke(cli, command)
        error = result.exception
        assert 3 in (getattr(error, "exit_code", None), result.exit_code)
        assert "states 32 bytes, and it has 29" in f"{error} {result.output}"
    shown = CliRunner().invoke(cli, ["report", "cut"])
    assert "cut does not count:" in shown.output


@pytest.mark.parametrize("make", [tensorrt, rtx])
@pytest.mark.parametrize("first", ["engine.json", "recipe.json"])
def test_what_comes_first_is_an_engine_or_a_graph(
    make: Callable[[Path], tuple[Path, EngineKey]], first: str, tmp_path: Path
) -> None:
    (tmp_path / "a").mkdir()
    made = artifact(tmp_path / "a", make)
    files = sorted(made.manifest.files, key=lambda f: f.name != first)
    if files[0].name != first:
        pytest.skip("it has no such file")
    manifest.write(replace(made.manifest, files=tuple(files)), tmp_path / "a")
    with pytest.raises(SourceError, match=f"its first file, '{first}', is neither"):
        manifest.check_files(manifest.read(tmp_path / "a"))


def test_a_record_that_is_damaged_is_said(tmp_path: Path) -> None:
    engine, _ = rtx(tmp_path)
    engine.with_name("engine.json").write_text(json.dumps({"schema": 1}))
    assert "missing or damaged" in "; ".join(offline.contradictions(engine, "tensorrt_rtx", {}))


@pytest.mark.parametrize("make", [tensorrt, rtx])
def test_each_command_says_why_such_an_artifact_does_not_count(
    make: Callable[[Path], tuple[Path, EngineKey]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad").mkdir()
    artifact(Path("bad"), make, graph_sha256="ab" * 32)
    for command in (["inspect", "bad"], ["verify", "bad"]):
        result = CliRunner().invoke(cli, command)
        error = result.exception
        assert (isinstance(error, SourceError) and error.exit_code == 3) or result.exit_code == 3
    shown = CliRunner().invoke(cli, ["report", "bad"])
    assert (shown.exit_code, "bad does not count:" in shown.output, "another graph" in shown.output) == (
        0,
        True,
        True,
    )
    (row,) = json.loads(CliRunner().invoke(cli, ["report", "bad", "--json"]).stdout)["artifacts"]
    assert "another graph" in row["changed"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"precision": "fp16"}, "its recipe is for fp16, and tensorrt-int8 is int8"),
        ({"schema": 3}, "does not say how to build the engine"),
        ({"minimum_version": "99"}, "does not say how to build the engine"),
        ({"minimum_version": "7.1"}, "for TensorRT 7.1, and edgekit builds from 8.5 on"),
        ({"profiles": {}}, "other sizes of axes than its manifest"),
    ],
)
def test_a_recipe_is_that_of_its_target(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    """Of an artifact that is the graph and its recipe, whose hashes were done again."""
    tensorrt(tmp_path)
    recipe = tmp_path / "recipe.json"
    row, main, details = targets.find("tensorrt-int8"), tmp_path / "model.onnx", {"profiles": LISTED}
    assert offline.recipe_contradictions(main, row, details) == ()
    recipe.write_text(json.dumps({**json.loads(recipe.read_text()), **changes}))
    assert words in "; ".join(offline.recipe_contradictions(main, row, details))
    files = tuple(
        FileRecord(name=n, size=(tmp_path / n).stat().st_size, sha256=manifest.sha256_file(tmp_path / n))
        for n in ("model.onnx", "recipe.json")
    )
    made = Manifest(
        edgekit="1",
        status=Status.NOT_RUN,
        target=row,
        source=SourceRecord(text="m.onnx", kind="onnx", sha256="0" * 64),
        files=files,
        details=details,
    )
    manifest.write(made, tmp_path)
    with pytest.raises(SourceError, match="contradicts itself"):
        manifest.check_files(manifest.read(tmp_path))


# --- checked, not run ----------------------------------------------------------------------------------------

WHY = "TensorRT cannot run on local: there is no usable NVIDIA GPU"


def not_run(folder: Path) -> Artifact:
    made = artifact(folder, tensorrt)
    gates = tuple(Gate(name=n, verdict=Verdict.NOT_RUN, message=WHY) for n in ("finite", "snr", "placement"))
    manifest.write(
        replace(made.manifest, gates=gates, details={CHECKED: "parsed by tensorrt_rtx 1.7"}), folder
    )
    return manifest.read(folder)


@pytest.mark.parametrize(
    "command",
    [
        ["bench", "made"],
        ["inspect", "made"],
        ["package", "made", "--format", "bundle", "--name", "com.a.b", "--version", "1.0.0"],
    ],
    ids=lambda c: c[0],
)
def test_why_it_was_not_run_is_said_once(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "made").mkdir()
    not_run(tmp_path / "made")
    result = CliRunner().invoke(cli, command)
    text = f"{result.output} {result.exception} {getattr(result.exception, 'hint', '')}"
    assert text.count("usable NVIDIA GPU") == 1
    if command[0] != "inspect":
        assert "checked, not run: parsed by tensorrt_rtx 1.7" in text
        assert "edgekit verify made --device NAME" in text


def test_the_report_says_it_once(tmp_path: Path) -> None:
    shown = messages(not_run(tmp_path).manifest.gates)
    assert shown == (WHY, "", "")
