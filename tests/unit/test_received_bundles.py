"""What a bundle or an artifact of anybody's says of itself is refused, or counts, where it is not so."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from edgekit.artifact.interface import Vector
from edgekit.cli._output import progress, table
from edgekit.devices.execute import Ports
from edgekit.devices.runnable import Runnable
from edgekit.devices.transports.connect import send_model
from edgekit.devices.wire import Port
from edgekit.entropy.parse import openvino
from edgekit.errors import ConfigError, SourceError
from edgekit.package import descriptor, verifying
from edgekit.package.descriptor import (
    Descriptor,
    Golden,
    GoldenCase,
    ImageFile,
    LabelsRecord,
    RuntimeNeed,
    TensorFile,
)
from edgekit.preprocess.contract import Preprocessing
from edgekit.preprocess.declared import from_mapping
from edgekit.types import Gate, Precision, TensorSpec, Verdict, sha256_bytes

X = TensorSpec(name="x", dtype="float32", shape=(1, 3))
Y = TensorSpec(name="y", dtype="float32", shape=(1, 2))


def stored(spec: TensorSpec, **changed: object) -> TensorFile:
    fields = {"name": spec.name, "file": f"{spec.name}.bin", "dtype": spec.dtype, "shape": spec.shape}
    return TensorFile(**fields | changed)


def described(case: GoldenCase | None = None, **changed: object) -> Descriptor:
    fields: dict[str, object] = {
        "name": "com.example.a",
        "version": "1.0.0",
        "target": "ort-fp32",
        "backend": "onnxruntime",
        "precision": Precision.FP32,
        "status": "passed",
        "runtime": RuntimeNeed(name="ONNX Runtime"),
        "files": ("model/model.onnx",),
        "model_sha256": "",
        "inputs": (X,),
        "outputs": (Y,),
        "golden": Golden(cases=(case or CASE,), tolerance={"cpu": 1e-4}),
        "edgekit": "1",
    }
    return Descriptor(**fields | changed)


CASE = GoldenCase(name="sample-0", inputs=(stored(X),), outputs=(stored(Y),))


@pytest.mark.parametrize(
    "output",
    [Y, replace(Y, dtype="int64"), replace(Y, shape=(7,)), replace(Y, dtype="int8", scale=0.1, zero_point=3)],
    ids=str,
)
def test_a_bundle_is_held_against_its_file(output: TensorSpec) -> None:
    ports = Ports(
        inputs={"x": Port(names=("x",), dtype="float32", shape=(1, 3))},
        outputs={"y": Port(names=("y",), dtype="float32", shape=(1, 2))},
    )
    vector = Vector(inputs={"x": np.zeros((1, 3), "f4")}, outputs={"y": np.zeros((1, 2), "f4")})
    if output is Y:
        verifying._refuse_another_interface(described(), ports, vector)
        return
    with pytest.raises(SourceError, match="'y'"):
        verifying._refuse_another_interface(described(outputs=(output,)), ports, vector)


def test_cases_that_leave_an_input_out_are_refused() -> None:
    verifying._refuse_other_cases(described())
    with pytest.raises(SourceError, match="secret"):
        verifying._refuse_other_cases(described(inputs=(X, replace(X, name="secret"))))


def test_a_status_that_no_gate_explains_counts() -> None:
    failed = Gate(name="snr", verdict=Verdict.FAIL, message="")
    assert not verifying._refused_before(described())
    assert [g.name for g in verifying._refused_before(described(status="failed"))] == ["status"]
    assert [g.name for g in verifying._refused_before(described(status="whatever"))] == ["status"]
    assert verifying._refused_before(described(status="failed", gates=(failed,))) == (failed,)


@pytest.mark.parametrize(
    ("text", "count"), [("a\nb\n", 2), ("a\n", 1), ("a\nb\nc\n", 2), ("a\nb\nc\n", 3)], ids=str
)
def test_labels_are_as_many_as_classes(tmp_path: Path, text: str, count: int) -> None:
    (tmp_path / "labels.txt").write_text(text)
    record = LabelsRecord(file="labels.txt", count=count, sha256=sha256_bytes(text.encode()), output="y")
    if text == "a\nb\n":
        assert verifying._labels(tmp_path, described(labels=record)) == ("a", "b")
        return
    with pytest.raises(SourceError, match="label file"):
        verifying._labels(tmp_path, described(labels=record))


@pytest.mark.parametrize(
    "case",
    [
        replace(CASE, image=ImageFile(file="i", height=-4, width=-4)),
        replace(CASE, inputs=(stored(X, shape=(-1, 3)),)),
        *(replace(CASE, outputs=(stored(Y, dtype=dtype),)) for dtype in ("S4", "V4", "U1", "M8[s]", "O")),
    ],
    ids=str,
)
def test_tensors_that_cannot_be_are_refused(tmp_path: Path, case: GoldenCase) -> None:
    path = tmp_path / "edgekit.json"
    path.write_bytes(descriptor.encode(described()))
    assert descriptor.read(path) == described()
    path.write_bytes(descriptor.encode(described(case)))
    with pytest.raises(SourceError):
        descriptor.read(path)


def test_a_companion_outside_of_the_models_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("sub/model.onnx", "other.bin"):
        (tmp_path / name).write_bytes(b"x")
    runnable = Runnable(
        backend="onnxruntime", main=tmp_path / "sub/model.onnx", companions=(tmp_path / "other.bin",)
    )
    with pytest.raises(SourceError, match=r"other\.bin"):
        send_model(None, runnable)  # type: ignore[arg-type]  # nothing is sent


def test_a_contract_is_read_from_the_artifacts_own_folder(tmp_path: Path) -> None:
    config = json.dumps({"input_size": [3, 8, 8], "crop_pct": 1.0})
    (tmp_path / "config.json").write_text(config)
    artifact = tmp_path / "artifact"
    artifact.mkdir()
    (artifact / "own.json").write_text(config)
    (artifact / "link.json").symlink_to(tmp_path / "config.json")
    (artifact / "folder").mkdir()
    (artifact / "folder" / "config.json").symlink_to(tmp_path / "config.json")
    os.mkfifo(artifact / "pipe.json")
    assert from_mapping({"timm": "own.json"}, base=artifact) is not None
    outside = ("../config.json", "..", str(tmp_path / "config.json"), "link.json", "folder", "/dev/zero")
    for name in (*outside, "pipe.json", "n" * 5000, "a\0b"):
        with pytest.raises((SourceError, ConfigError)):
            from_mapping({"timm": name}, base=artifact)
    assert from_mapping({"timm": str(tmp_path / "config.json")}) is not None  # the user's own name


@pytest.mark.parametrize(
    ("reader", "config", "field"),
    [
        ("timm", {"input_size": [3, 12, 12], "crop_pct": 1e-320}, "crop_pct"),
        ("timm", {"input_size": [3, 30000, 30000], "crop_pct": 0.1}, "crop_pct"),
        ("timm", {"input_size": [3, 12, 10**400]}, "input_size"),
        ("timm", {"input_size": [3, 12, -12]}, "input_size"),
        ("timm", {"input_size": [3, 12, 12], "mean": [10**400]}, "mean"),
        ("timm", {"input_size": [3, 12, 12], "std": [1e-320]}, "std"),
        ("huggingface", {"size": {"shortest_edge": 12}, "crop_pct": 1e-320}, "crop_pct"),
        ("huggingface", {"size": {"shortest_edge": 10**400}, "do_center_crop": True}, "shortest_edge"),
        ("huggingface", {"size": 10**400}, "size"),
        ("huggingface", {"size": 8, "do_center_crop": True, "crop_size": 10**400}, "size"),
        ("huggingface", {"size": {"height": True, "width": 8}}, "height"),
        ("huggingface", {"size": 8, "rescale_factor": 1e300}, "rescale_factor"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_numbers_out_of_range_name_their_field(
    tmp_path: Path, reader: str, config: dict[str, object], field: str
) -> None:
    (tmp_path / "p.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=field):
        from_mapping({reader: "p.json"}, base=tmp_path)


def test_contracts_have_sizes_and_numbers_that_images_have() -> None:
    for wrong in ({"resize": (3_000_000, 12)}, {"mean": (float("nan"),)}, {"scale": float("inf")}):
        with pytest.raises(ConfigError, match="preprocessing"):
            Preprocessing(**{"resize": (8, 8)} | wrong)


def test_a_hostile_openvino_file_is_passed_once() -> None:
    honest = b'<layer id="0" name="w" type="Const" version="opset1">\n'
    honest += b'<data element_type="i8" shape="2,3" offset="1" size="6" />'
    files = {"m.bin": memoryview(b"")}
    begun = time.process_time()
    hostile = b'<layer name="a" ' * 100_000 + b"<layer>" + b" " * 500_000 + b"<layer><data " + b"a" * 500_000
    assert [s.name for s in openvino.spans("m.xml", memoryview(hostile + honest), files)] == ["w"]
    assert time.process_time() - begun < 5


def test_a_table_and_the_notes_are_harmless(monkeypatch, capsys) -> None:
    monkeypatch.setattr("edgekit.cli._output.stderr", lambda: Console(stderr=True))
    table("\x1b[2Jtitle", ("name",), [("\x1b[2Jcell",)])
    with progress() as shown:
        shown.note("\x1b[2Jnote")
    captured = capsys.readouterr()
    assert "cell" in captured.out
    assert "note" in captured.err
    assert "\x1b[2J" not in captured.out + captured.err
