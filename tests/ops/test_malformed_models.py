"""Models and artifacts that nobody would write by accident: a typed error that names what is wrong, in no time."""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.artifact import manifest
from edgekit.core.deadline import within
from edgekit.errors import EdgekitError, SourceError
from edgekit.graph import io
from edgekit.load import load, parse
from edgekit.load.data import unit_example
from edgekit.package import bundle

ROOT = Path(__file__).resolve().parents[2]


def relu(shape=(1, 3), **names: str) -> onnx.ModelProto:
    given, made = names.get("given", "x"), names.get("made", "y")
    graph = helper.make_graph(
        [helper.make_node("Relu", [given], [made], name="relu")],
        "g",
        [helper.make_tensor_value_info(given, TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(made, TensorProto.FLOAT, shape)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def loaded(model: onnx.ModelProto, folder: Path):
    path = folder / "m.onnx"
    path.write_bytes(model.SerializeToString())
    return load(parse(str(path)))


@pytest.mark.parametrize(
    "name", ["\x1b[31mred", "two\nlines", "nul\0", "left\u202eright", "n" * 200_000], ids=str.__len__
)
@pytest.mark.parametrize("side", ["given", "made"])
def test_names_that_no_file_and_no_terminal_should_see(side, name, tmp_path):
    with pytest.raises(SourceError, match=r"m\.onnx"):
        loaded(relu(**{side: name}), tmp_path)


@pytest.mark.parametrize("shape", [(1 << 62, 1 << 62), (1 << 41,), (1, 1 << 50)])
def test_an_input_that_no_machine_holds(shape, tmp_path):
    model = loaded(relu(shape), tmp_path)
    with pytest.raises(SourceError, match="'x' has"):
        unit_example(model.inputs)


@pytest.mark.parametrize("kind", [TensorProto.UNDEFINED, TensorProto.STRING])
def test_types_that_no_tensor_has(kind, tmp_path):
    model = relu()
    model.graph.input[0].type.tensor_type.elem_type = kind
    with pytest.raises(SourceError, match=r"m\.onnx"):
        loaded(model, tmp_path)


@pytest.mark.parametrize("dims", [[1 << 60], [-1], [1 << 40, 1 << 40], [7]])
def test_weights_of_a_size_that_is_not_there(dims, tmp_path):
    model = relu()
    weight = numpy_helper.from_array(np.ones(3, np.float32), "w")
    del weight.dims[:]
    weight.dims.extend(dims)
    model.graph.initializer.append(weight)
    with pytest.raises(SourceError, match=r"m\.onnx"):
        loaded(model, tmp_path)


@pytest.mark.parametrize("unnamed", [False, True])
def test_negative_and_unnamed_dimensions_are_dynamic(unnamed, tmp_path):
    model = relu((-7, 3))
    if unnamed:
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.shape.dim[0].Clear()
    (spec,) = loaded(model, tmp_path).inputs
    assert spec.shape == ("x_axis0", 3)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "-" * 50_000 + "1",
        "['" + "\\ud800', 'x']",
        "['\\x1b[31m', 'x']",
        "[1, {'a': 2}]",
        "(1,)",
    ],
    ids=len,
)
def test_the_module_path_of_a_hostile_node_is_unknown(text):
    model = relu()
    model.graph.node[0].metadata_props.add(key=io.SCOPES, value=text)
    assert io.module_path(model.graph.node[0]) == ""


def test_a_name_that_is_no_text(tmp_path):
    (tmp_path / "m.onnx").write_bytes(relu().SerializeToString().replace(b"\x0a\x01x", b"\x0a\x01\xff"))
    with pytest.raises(SourceError, match=r"m\.onnx"):
        load(parse(str(tmp_path / "m.onnx")))
    with pytest.raises(SourceError):
        io.save(io.load(tmp_path / "m.onnx"), tmp_path / "out.onnx")


@pytest.mark.parametrize("location", ["pipe", "folder", "loop", "n" * 5000])
def test_external_data_that_are_no_file(location, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    model = relu()
    weight = model.graph.initializer.add(name="w", dims=[3], data_type=TensorProto.FLOAT)
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location)
    with pytest.raises(SourceError, match="external data"), within(30, "the test"):
        loaded(model, tmp_path)


# --- what is no file ------------------------------------------------------------------------------------------


def pipe(path: Path) -> None:
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.mkdir()


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


NO_FILES = pytest.mark.parametrize("make", [pipe, folder, loop, device])


@pytest.fixture
def artifact(tmp_path) -> Path:
    return shutil.copytree(ROOT / "tests/golden/manifest/artifact", tmp_path / "artifact")


def in_place_of(path: Path, make: Callable[[Path], None]) -> None:
    path.unlink(missing_ok=True)
    make(path)


@NO_FILES
def test_in_place_of_a_manifest(make, tmp_path):
    in_place_of(tmp_path / "manifest.json", make)
    with pytest.raises(SourceError, match=r"manifest\.json"), within(30, "the test"):
        manifest.read(tmp_path)


@NO_FILES
def test_in_place_of_a_model(make, tmp_path):
    in_place_of(tmp_path / "m.onnx", make)
    with pytest.raises(EdgekitError, match=r"m\.onnx"), within(30, "the test"):
        load(parse(str(tmp_path / "m.onnx")))
    with pytest.raises(SourceError, match=r"m\.onnx"), within(30, "the test"):
        io.read_proto(tmp_path / "m.onnx")


@NO_FILES
@pytest.mark.parametrize("name", ["edgekit.json", "SHA256SUMS", "model/model.onnx"])
def test_in_place_of_a_bundles_file(name, make, tmp_path):
    (tmp_path / "model").mkdir()
    for file in ("edgekit.json", "SHA256SUMS", "model/model.onnx"):
        (tmp_path / file).write_text("{}" if file.endswith("json") else f"{'0' * 64}  model/model.onnx\n")
    in_place_of(tmp_path / name, make)
    with pytest.raises(SourceError), within(30, "the test"), bundle.opened(tmp_path):
        pass


def test_a_bundle_of_countless_entries(tmp_path):
    with zipfile.ZipFile(tmp_path / "many.zip", "w") as archive:
        for number in range(150_000):
            archive.writestr(f"{number}", b"")
    with (
        pytest.raises(SourceError, match=r"many\.zip"),
        within(60, "the test"),
        bundle.opened(tmp_path / "many.zip"),
    ):
        pass


@pytest.mark.parametrize(
    ("kind", "shape", "words"),
    [
        (TensorProto.BFLOAT16, (1, 3), "bfloat16"),
        (TensorProto.INT4, (1, 3), "int4"),
        (TensorProto.FLOAT8E4M3FN, (1, 3), "float8"),
        (TensorProto.FLOAT, (1,) * 70, "70 axes"),
    ],
)
def test_inputs_that_no_array_can_hold(kind: int, shape: tuple[int, ...], words: str, tmp_path: Path):
    given, made = (helper.make_tensor_value_info(n, kind, shape) for n in "xy")
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [given], [made])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    with pytest.raises(SourceError, match=words):
        loaded(model, tmp_path)
