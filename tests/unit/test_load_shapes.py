"""The shape of the example as the user gives it, and samples padded and cut to it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgekit.core.config import Options
from edgekit.errors import ConfigError, DataError, UnknownNameError, UsageError
from edgekit.load.samples import from_iterable
from edgekit.load.shapes import IGNORED, Padding, SampleForm, Shapes, refuse_open
from edgekit.types import OnnxModel, Sample, TensorSpec

IDS = TensorSpec(name="ids", dtype="int64", shape=("batch", "length"))
MASK = TensorSpec(name="mask", dtype="bool", shape=("batch", "length"))
PADDING = {"padding": {"values": {"ids": 7, "mask": 0}}}


def graph(*inputs):
    return OnnxModel(path=Path("m.onnx"), sha256="", opset=20, inputs=inputs, outputs=inputs)


def test_shapes_are_read_from_the_options():
    shapes = Shapes.of(Options(shape={"ids": "1x128", "x": "[1, 3, 8, 8]", "one": 4}, sequence_length=16))
    assert shapes.sizes == {"ids": (1, 128), "x": (1, 3, 8, 8), "one": (4,)}
    assert shapes.sequence_length == 16
    assert not Shapes.of(Options())


@pytest.mark.parametrize("text", ["1x", "axb", "", "1x0", "1x-1", "1.5"])
def test_what_is_no_shape_is_refused(text):
    with pytest.raises(UsageError, match="no shape"):
        Shapes.of(Options(shape={"x": text}))
    with pytest.raises(ConfigError):
        Options(sequence_length=0)


def test_axes_of_one_name_get_one_size():
    shapes = Shapes(sizes={"ids": (2, 9)}).resolved(graph(IDS, MASK), "m.onnx")
    assert shapes == {"ids": (2, 9), "mask": (2, 9)}


@pytest.mark.parametrize(
    ("sizes", "error"),
    [
        ({"idz": (1, 4)}, UnknownNameError),
        ({"ids": (1, 4, 4)}, UsageError),
        ({"ids": (1, 4), "mask": (1, 5)}, UsageError),
        ({"fixed": (1, 4)}, UsageError),
    ],
)
def test_a_shape_that_a_graph_does_not_have_is_refused(sizes, error):
    fixed = TensorSpec(name="fixed", dtype="float32", shape=("batch", 3))
    with pytest.raises(error) as caught:
        Shapes(sizes=sizes).resolved(graph(IDS, MASK, fixed), "m.onnx")
    assert caught.value.exit_code == 2


def test_a_graph_has_no_tokenizer():
    with pytest.raises(UsageError, match="padded"):
        Shapes(sequence_length=8).resolved(graph(IDS), "m.onnx")


@pytest.mark.parametrize(
    "batch", ["batch", "N", "bs", "batch_size", "s77", "unk__12", "x_axis0", "DynamicDimension.0"]
)
def test_an_open_batch_may_stay_one(batch):
    refuse_open([TensorSpec(name="x", dtype="float32", shape=(batch, 3))], "m.onnx")


def test_any_other_open_axis_is_asked_for():
    image = TensorSpec(name="x", dtype="float32", shape=("batch", 3, "height", "x_axis3"))
    with pytest.raises(DataError) as caught:
        refuse_open([image, TensorSpec(name="y", dtype="float32", shape=(1,))], "m.onnx")
    assert "--shape x=1x3xNxN" in caught.value.hint
    with pytest.raises(DataError):  # frames come first, and are no batch
        refuse_open([TensorSpec(name="x", dtype="float32", shape=("frames", 40))], "m.onnx")


def rows(*lengths):
    return [{"ids": np.full((1, n), 3), "mask": np.ones((1, n), bool)} for n in lengths]


def formed(shapes, *lengths):
    example = {"ids": np.ones((1, 6), np.int64), "mask": np.ones((1, 6), bool)}
    return list(from_iterable(rows(*lengths), (IDS, MASK), form=SampleForm.of(example, PADDING, shapes)))


def test_samples_are_padded_to_the_length_given():
    short, exact, longer = formed(Shapes(sequence_length=6), 4, 6, 9)
    assert short.inputs["ids"].tolist() == [[3, 3, 3, 3, 7, 7]]
    assert short.inputs["mask"].tolist() == [[True] * 4 + [False] * 2]
    assert short.inputs["mask"].dtype == np.bool_
    assert exact.inputs["ids"].shape == (1, 6)
    assert longer.inputs["ids"].shape == (1, 9)  # not cut: what is lost would be silent
    assert [s.inputs["ids"].shape[1] for s in formed(Shapes(), 4, 9)] == [4, 9]


def test_labels_of_every_place_are_padded_too():
    form = SampleForm(shapes={"ids": (1, 5)}, padding=Padding(values={"ids": 0}, side="left"))
    padded = form.padded(Sample(inputs={"ids": np.ones((1, 3), np.int64)}, label=np.array([1, 2, 3])))
    assert padded.inputs["ids"].tolist() == [[0, 0, 1, 1, 1]]
    assert padded.label.tolist() == [IGNORED, IGNORED, 1, 2, 3]
    whole = form.padded(Sample(inputs={"ids": np.ones((1, 3), np.int64)}, label=4))
    assert whole.label == 4


@pytest.mark.parametrize("table", [3, {}, {"values": {}}, {"values": {"ids": 0}, "side": "middle"}])
def test_a_padding_table_that_says_nothing_is_refused(table):
    with pytest.raises(UsageError, match="padding"):
        Padding.of({"padding": table})


def test_a_scalar_input_stays_one():
    scalar = TensorSpec(name="t", dtype="float32", shape=())
    x = TensorSpec(name="x", dtype="float32", shape=("batch", 2))
    items = [
        {"x": np.zeros((1, 2), np.float32), "t": np.array(1.5, np.float32)},
        {"x": np.zeros(2, np.float32), "t": 2.5},
    ]
    samples = from_iterable(items, (x, scalar))
    assert [s.inputs["t"].shape for s in samples] == [(), ()]
    assert len(samples) == 2
    assert samples.fingerprint


@pytest.mark.parametrize(
    ("batch", "given", "pieces"), [(2, 2, [2]), (4, 8, [4, 4]), (4, 3, [1, 1, 1]), (1, 2, [1, 1])]
)
def test_samples_are_cut_into_the_examples_batch(batch, given, pieces):
    spec = TensorSpec(name="x", dtype="float32", shape=("batch", 3))
    form = SampleForm(shapes={"x": (batch, 3)})
    samples = from_iterable([(np.zeros((given, 3), np.float32), np.arange(given))], (spec,), form=form)
    assert [s.inputs["x"].shape[0] for s in samples] == pieces
    labels = np.concatenate([np.atleast_1d(s.label) for s in samples])
    assert labels.tolist() == list(range(given))
