"""The export step's key: what it is made of for a source that can be loaded again, and for a module in memory."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from edgekit.core.config import Options
from edgekit.core.progress import Silent
from edgekit.core.store import Store
from edgekit.devices.arrays import write_arrays
from edgekit.graph.records import ModelRecord, write_json, write_model
from edgekit.pipeline import stages
from edgekit.pipeline.stages import BuildContext
from edgekit.types import OnnxModel, sha256_bytes

np = pytest.importorskip("numpy")


@pytest.fixture
def context(tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "work", lambda _: SimpleNamespace(export=export))
    return BuildContext(store=Store(tmp_path / "cache"), options=Options(), progress=Silent())


def export(source, out):
    """Always the same graph; labels and example are the source's."""
    (out / "model.onnx").write_bytes(b"graph")
    model = OnnxModel(path=out / "model.onnx", sha256=sha256_bytes(b"graph"), opset=20, inputs=(), outputs=())
    write_model(ModelRecord(model=model, labels=source.labels), out)
    write_json(write_arrays(out / "example", [{"x": source.example}]).names, out / "example.json")


def source(*, in_memory, labels=(), example=1.0):
    made = SimpleNamespace(
        spec=SimpleNamespace(kind="factory"),
        in_memory=in_memory,
        labels=labels,
        example=np.full((1, 2), example),
        sha256="" if in_memory else "a" * 64,
    )
    made.identify = lambda sha256: setattr(made, "sha256", sha256)
    return made


def test_a_source_that_can_be_loaded_again_is_exported_once(context):
    first = stages.export(context, source(in_memory=False))
    assert first.step.options == {}
    assert stages.export(context, source(in_memory=False, labels=("other",))).record.labels == ()


def test_what_a_module_in_memory_declares_is_in_its_key(context):
    """The graph alone does not tell it: another build's class names would come from the cache."""
    assert stages.export(context, source(in_memory=True)).record.labels == ()
    assert stages.export(context, source(in_memory=True, labels=("a", "b"))).record.labels == ("a", "b")
    other = stages.export(context, source(in_memory=True, example=2.0))
    np.testing.assert_array_equal(other.example_inputs()["x"], np.full((1, 2), 2.0))
