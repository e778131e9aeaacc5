"""Inputs that are constants of the model that is built."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgekit.core.config import Options
from edgekit.errors import ConfigError, UnknownNameError, UsageError
from edgekit.load.bindings import Bindings
from edgekit.load.shapes import Shapes
from edgekit.types import SourceRecord, TensorSpec

X = TensorSpec(name="x", dtype="float32", shape=(1, 4))
RATE = TensorSpec(name="rate", dtype="int64", shape=())
FLAG = TensorSpec(name="flag", dtype="bool", shape=(1,))
STATE = TensorSpec(name="state", dtype="float32", shape=(2, "batch"))


def test_what_is_bound_is_no_input_any_more() -> None:
    assert Bindings.of({"rate": 16000}).rest((X, RATE), "m.onnx") == (X,)
    with pytest.raises(UnknownNameError, match="--bind") as error:
        Bindings.of({"rat": 16000}).rest((X, RATE), "m.onnx")
    assert error.value.exit_code == 2
    assert "rate" in error.value.hint
    with pytest.raises(UsageError, match="without an input"):
        Bindings.of({"rate": 1, "x": 0.5}).rest((X, RATE), "m.onnx")


@pytest.mark.parametrize(
    ("spec", "value", "expected"),
    [
        (RATE, 16000, np.asarray(16000)),
        (X, 2, np.full((1, 4), 2, np.float32)),
        (FLAG, True, np.asarray([True])),
    ],
)
def test_a_number_fills_the_input(spec: TensorSpec, value: float, expected: np.ndarray) -> None:
    made = Bindings.of({spec.name: value})._array(spec, "m.onnx")
    assert made.dtype == np.dtype(spec.dtype)
    np.testing.assert_array_equal(made, expected)


@pytest.mark.parametrize(
    ("spec", "value"), [(RATE, 0.5), (RATE, 1.0), (RATE, True), (X, True), (FLAG, 1), (RATE, 1 << 70)]
)
def test_another_type_is_refused(spec: TensorSpec, value: float) -> None:
    with pytest.raises(UsageError, match="another type"):
        Bindings.of({spec.name: value})._array(spec, "m.onnx")


def test_a_number_does_not_say_how_long_an_open_axis_is() -> None:
    with pytest.raises(UsageError, match="without a size"):
        Bindings.of({"state": 0})._array(STATE, "m.onnx")


def test_a_file_gives_it_element_by_element(tmp_path: Path) -> None:
    path = tmp_path / "state.npy"
    np.save(path, np.arange(6, dtype=np.float64).reshape(2, 3))
    bound = Bindings.of({"state": str(path)})
    np.testing.assert_array_equal(bound._array(STATE, "m.onnx"), np.arange(6).reshape(2, 3))
    np.save(path, np.zeros((3, 3), np.float32))
    with pytest.raises(UsageError, match="shape"):
        Bindings.of({"state": str(path)})._array(STATE, "m.onnx")
    np.save(path, np.zeros((2, 3), np.int64))
    with pytest.raises(UsageError, match="another type"):
        Bindings.of({"state": str(path)})._array(STATE, "m.onnx")
    path.write_bytes(b"no array")
    with pytest.raises(UsageError, match="cannot be read"):
        Bindings.of({"state": str(path)})._array(STATE, "m.onnx")


def test_a_text_is_a_file_or_nothing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="neither a number"):
        Bindings.of({"rate": "fast"})
    with pytest.raises(UsageError, match="no such file"):
        Bindings.of({"rate": str(tmp_path / "none.npy")})


def test_the_manifest_keeps_them_and_a_file_that_changed_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "state.npy"
    np.save(path, np.zeros((2, 3), np.float32))
    shapes = Shapes.of(Options(bind={"rate": 16000, "state": str(path)}))
    record = SourceRecord(text="m.onnx", kind="onnx", sha256="0", bound=shapes.bound.record())
    assert Shapes.again(Options(), record) == shapes
    assert Shapes.again(Options(bind={"rate": 8000}), record).bound.values == {"rate": 8000}
    np.save(path, np.ones((2, 3), np.float32))
    assert Shapes.of(Options(bind={"rate": 16000, "state": str(path)})) != shapes
    with pytest.raises(UsageError, match="is not the file"):
        Shapes.again(Options(), record)


def test_a_table_is_asked_for() -> None:
    with pytest.raises(ConfigError):
        Options(bind="rate")  # type: ignore[arg-type]
