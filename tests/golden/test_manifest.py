"""The manifest's form is a contract: its JSON Schema is in docs/, and a manifest as written long ago still reads.

``EDGEKIT_UPDATE_GOLDEN=1`` rewrites both files.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import jsonschema
import msgspec

from edgekit.artifact import manifest, wire
from edgekit.artifact.manifest import FileRecord, GoldenRecord, Manifest, StepRecord
from edgekit.types import Gate, Parity, Placement, Precision, SourceRecord, Target, TensorSpec, Verdict

HERE = Path(__file__).parent
SCHEMA = HERE.parents[1] / "docs/manifest.schema.json"
EXAMPLE = HERE / "manifest/manifest.json"


def example() -> Manifest:
    row = Target(
        name="ort-fp32", backend="onnxruntime", precision=Precision.FP32, runs_on="cpu", file="model.onnx"
    )
    return Manifest(
        edgekit="0.1.0",
        status="passed",
        target=row,
        source=SourceRecord(text="model.py:net", kind="factory", sha256="0" * 64),
        settings={"ort_format": False},
        steps=(StepRecord(name="export", input_sha256="0" * 64, versions={"torch": "2.13.0"}, seconds=1.5),),
        files=(FileRecord(name="model.onnx", size=10, sha256="1" * 64),),
        inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", 8)),),
        outputs=(TensorSpec(name="output", dtype="float32", shape=("batch", 4)),),
        golden=GoldenRecord(file="golden.npz", samples=8, sha256="2" * 64),
        parity=Parity(samples=8, max_abs=1e-6, relative_error=1e-7, snr_db=130.0, cosine=1.0),
        placement=Placement(precision="fp32", share=1.0, operators=3, kernels={"Gemm": 2}),
        gates=(Gate(name="snr", verdict=Verdict.PASS, limit=80.0, value=130.0),),
        machine={"cpus": 2},
    )


def test_the_schema_is_the_one_in_the_documentation():
    schema = (
        msgspec.json.format(msgspec.json.encode(msgspec.json.schema(wire.Manifest), order="sorted"), indent=2)
        + b"\n"
    )
    if os.environ.get("EDGEKIT_UPDATE_GOLDEN"):
        SCHEMA.write_bytes(schema)
    assert SCHEMA.read_bytes() == schema


def test_what_is_written_fits_the_schema_and_is_read_back(tmp_path):
    manifest.write(example(), tmp_path)
    jsonschema.validate(json.loads((tmp_path / "manifest.json").read_text()), json.loads(SCHEMA.read_text()))
    assert manifest.read(tmp_path).manifest == example()


def test_the_example_is_written_and_read_as_ever(tmp_path):
    if os.environ.get("EDGEKIT_UPDATE_GOLDEN"):
        EXAMPLE.parent.mkdir(exist_ok=True)
        manifest.write(example(), EXAMPLE.parent)
    manifest.write(example(), tmp_path)
    assert (tmp_path / "manifest.json").read_bytes() == EXAMPLE.read_bytes()
    assert manifest.read(EXAMPLE.parent).manifest == example()


def test_an_artifact_of_every_schema_that_was_ever_written_is_read(tmp_path):
    """``schema-N`` is what a build wrote when N was new; it is never written again."""
    kept = sorted(HERE.glob("manifest/schema-*/manifest.json"))
    assert [json.loads(file.read_bytes())["schema"] for file in kept] == list(range(1, wire.SCHEMA + 1))
    for file in kept:
        read = manifest.read(file).manifest
        assert read.status == "passed"
        assert read.target.scheme is not None
        assert read.calibration is not None
        manifest.write(read, tmp_path)
        assert_holds(json.loads((tmp_path / "manifest.json").read_bytes()), json.loads(file.read_bytes()))


def assert_holds(written: object, old: object) -> None:
    """Everything of ``old`` is in ``written``, which may have keys that came later."""
    if isinstance(old, dict):
        for key, value in old.items():
            assert_holds(written[key], value)
    elif isinstance(old, list):
        for one, other in zip(written, old, strict=True):
            assert_holds(one, other)
    else:
        assert written == old


def test_times_and_machines_do_not_change_the_digest():
    base = example()
    other = replace(base, machine={"cpus": 64}, steps=(replace(base.steps[0], seconds=99.0),))
    assert other.digest == base.digest
    assert replace(base, status="failed").digest != base.digest
