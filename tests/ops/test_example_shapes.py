"""The shape of the example: as the user gives it, of modules, of text models, and of graphs with open axes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

from edgekit.core.config import Options  # noqa: E402
from edgekit.core.progress import Silent  # noqa: E402
from edgekit.core.store import Store  # noqa: E402
from edgekit.errors import DataError, UsageError  # noqa: E402
from edgekit.graph import io  # noqa: E402
from edgekit.graph.nested import call  # noqa: E402
from edgekit.load import from_module, load, parse  # noqa: E402
from edgekit.load.samples import from_iterable  # noqa: E402
from edgekit.load.shapes import Shapes  # noqa: E402
from edgekit.load.source import Source  # noqa: E402
from edgekit.pipeline import stages  # noqa: E402
from edgekit.pipeline.stages import BuildContext  # noqa: E402
from edgekit.quantize.calibrate.collect import calibrate  # noqa: E402


def test_a_text_model_says_how_its_inputs_are_padded(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path)
    model = load(parse(f"hf:{tmp_path}"))
    values = {"input_ids": 0, "attention_mask": 0}
    assert model.preprocessing["padding"] == {"values": values, "side": "right"}
    longer = Shapes(sequence_length=24).applied(model, "bert")
    shapes = {name: tuple(t.shape) for name, t in longer.example_inputs.items()}
    assert shapes == {"input_ids": (1, 24), "attention_mask": (1, 24)}
    assert longer.example_inputs["attention_mask"].sum() == 16
    before, after = (call(m.module, m.example_inputs)["logits"] for m in (model, longer))
    assert torch.allclose(before, after, atol=1e-6)  # what is padded is not attended to


def test_a_module_gets_the_shape_that_is_given() -> None:
    module = torch.nn.Conv1d(4, 2, 3)
    model = from_module(module, torch.randn(1, 4, 9), dynamic_axes={"input": {2: "time"}})
    shaped = Shapes(sizes={"input": (1, 4, 20)}).applied(model, "conv")
    assert shaped.example_inputs["input"].shape == (1, 4, 20)
    assert torch.equal(shaped.example_inputs["input"][..., 9:18], model.example_inputs["input"])
    for shape in ((1, 5, 9), (1, 4, 2), (1, 4)):
        with pytest.raises(UsageError):
            Shapes(sizes={"input": shape}).applied(model, "conv")
    with pytest.raises(UsageError, match="padded"):
        Shapes(sequence_length=8).applied(model, "conv")


def test_another_shape_is_another_source(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("import torch\ndef net(): return torch.nn.ReLU(), torch.ones(1, 4)\n")
    spec, store = parse(f"{tmp_path}/net.py:net"), Store(tmp_path / "cache")
    shapes = [Shapes(), Shapes(sizes={"input": (1, 5)}), Shapes(sizes={"input": (1, 6)})]
    first = [Source(spec, store, shapes=s).sha256 for s in shapes]
    again = [Source(spec, store, shapes=s).sha256 for s in shapes]
    assert first == again
    assert len(set(first)) == 3


def graph_file(path: Path, *dims: int | str | None) -> str:
    """A graph of one ReLU whose input has the dimensions given: sizes, names, or nothing."""
    value = [onnx.helper.make_tensor_value_info(n, 1, dims) for n in "xy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", value[:1], value[1:])
    opset = onnx.helper.make_opsetid("", 17)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=9), path)
    return str(path)


def exported(text: str, folder: Path, **options: Any) -> stages.Exported:
    chosen, store = Options(**options), Store(folder / "cache")
    context = BuildContext(store=store, options=chosen, progress=Silent())
    return stages.export(context, Source(parse(text), store, shapes=Shapes.of(chosen)))


@pytest.mark.parametrize("first", [-1, "N", None])
def test_the_batch_of_a_graph_may_be_open(tmp_path: Path, first: int | str | None) -> None:
    made = exported(graph_file(tmp_path / "m.onnx", first, 3), tmp_path)
    assert made.example_inputs()["x"].shape == (1, 3)
    batch, width = made.model.inputs[0].shape
    assert (isinstance(batch, str), width) == (True, 3)


def test_other_open_axes_of_a_graph_are_asked_for(tmp_path: Path) -> None:
    text = graph_file(tmp_path / "m.onnx", "batch", 3, "height", None)
    with pytest.raises(DataError, match="leaves the size of its inputs open"):
        exported(text, tmp_path)
    made = exported(text, tmp_path, shape={"x": "2x3x5x6"})
    assert made.example_inputs()["x"].shape == (2, 3, 5, 6)
    with pytest.raises(UsageError):
        exported(text, tmp_path, shape={"x": "2x4x5x6"})


def test_a_scalar_input_is_calibrated(tmp_path: Path) -> None:
    x, t, y = (
        onnx.helper.make_tensor_value_info(name, 1, dims)
        for name, dims in (("x", (1, 3)), ("t", ()), ("y", (1, 3)))
    )
    graph = onnx.helper.make_graph([onnx.helper.make_node("Div", ["x", "t"], ["y"])], "g", [x, t], [y])
    opset = onnx.helper.make_opsetid("", 17)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=9), tmp_path / "m.onnx")
    model = io.describe(tmp_path / "m.onnx")
    rows = [{"x": np.full((1, 3), i, np.float32), "t": np.array(2.0, np.float32)} for i in range(1, 9)]
    made = calibrate(model, from_iterable(rows, model.inputs), out=tmp_path / "calibration")
    assert made.tensors["y"].high == 4.0
