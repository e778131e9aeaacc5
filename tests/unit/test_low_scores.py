"""A score of 1e-5 for "nothing" is as right 1e-7 beside it; a wrong graph is refused as before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from edgekit.artifact.parity import compare
from edgekit.core.scores import ROUNDING, without_rounding
from edgekit.errors import ExportError
from edgekit.graph import passes
from edgekit.graph.export import check
from edgekit.package.golden import relative_error
from edgekit.types import OnnxModel, TensorSpec, TorchModel


class Doorbell(torch.nn.Module):
    """Two scores of six features, both far from anything on the example."""

    def __init__(self, bias: float) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.score = torch.nn.Linear(6, 2)
        with torch.no_grad():
            self.score.bias.fill_(bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.score(x))


def _exported(
    folder: Path, module: torch.nn.Module, *, bias: float | None = None, last: str = "Sigmoid"
) -> OnnxModel:
    weight = module.get_parameter("score.weight").detach().numpy()
    constant = (
        module.get_parameter("score.bias").detach().numpy() if bias is None else np.full(2, bias, np.float32)
    )
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["z"], transB=1)]
    constants = []
    if last == "Exp":  # e / (1 + e): exact where the score is low, as ONNX Runtime's Sigmoid is not
        constants = [onnx.numpy_helper.from_array(np.float32(1), "one")]
        nodes.append(helper.make_node("Exp", ["z"], ["e"]))
        nodes.append(helper.make_node("Add", ["e", "one"], ["sum"]))
        nodes.append(helper.make_node("Div", ["e", "sum"], ["output"]))
    else:
        nodes.append(helper.make_node(last, ["z"], ["output"]))
    graph = helper.make_graph(
        nodes,
        "doorbell",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 6])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 2])],
        [onnx.numpy_helper.from_array(weight, "w"), onnx.numpy_helper.from_array(constant, "b"), *constants],
    )
    folder.mkdir(exist_ok=True)
    path = folder / "doorbell.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return OnnxModel(
        path=path,
        sha256="",
        opset=17,
        inputs=(TensorSpec(name="x", shape=(1, 6), dtype="float32"),),
        outputs=(TensorSpec(name="output", shape=(1, 2), dtype="float32"),),
    )


def _model(bias: float) -> TorchModel:
    return TorchModel(module=Doorbell(bias).eval(), example_inputs={"x": torch.full((1, 6), 0.25)})


@pytest.mark.parametrize("bias", [-9.0, -10.5, -12.0, -13.5])
def test_a_low_sigmoid_is_exported(tmp_path: Path, bias: float) -> None:
    model = _model(bias)
    worst, checked, _ = check.compare(model, _exported(tmp_path, model.module))
    assert worst < 1e-3
    assert checked >= 4


@pytest.mark.parametrize("bias", [-9.0, -10.5, -12.0])
def test_a_low_sigmoid_of_another_graph_is_refused(tmp_path: Path, bias: float) -> None:
    model = _model(bias)
    wrong = [{"bias": 0.0}, {"bias": bias - 0.2}, {"last": "Identity"}]
    for number, change in enumerate(wrong):
        folder = tmp_path / str(number)
        with pytest.raises(ExportError, match="something else"):
            check.compare(model, _exported(folder, model.module, **change))


def test_the_optimizer_may_write_a_low_sigmoid_otherwise_and_not_another(tmp_path: Path) -> None:
    module = _model(-11.0).module
    example = {"x": np.full((1, 6), 0.25, np.float32)}
    checked = passes._Check(_exported(tmp_path / "source", module), example)
    assert checked.passes(_exported(tmp_path / "exact", module, last="Exp"))
    assert not checked.passes(_exported(tmp_path / "bias", module, bias=-11.2))
    assert not checked.passes(_exported(tmp_path / "left", module, last="Identity"))


def _parity(reference: np.ndarray, output: np.ndarray):
    return compare(({"score": r} for r in reference), ({"score": o} for o in output))


def test_parity_of_low_scores_is_not_their_rounding() -> None:
    rng = np.random.default_rng(5)
    reference = rng.uniform(2e-6, 4e-5, (40, 1, 3)).astype(np.float32)
    beside = (reference + rng.choice([-1.4e-7, 1.4e-7], reference.shape)).astype(np.float32)
    parity = _parity(reference, beside)
    assert parity.snr_db > 100
    assert parity.relative_error < 1e-6
    assert parity.explained is None or parity.explained > 0.9999
    assert parity.max_abs > 1e-7  # the figure stays what was measured


@pytest.mark.parametrize("scale", [0.0, 0.5, 0.9, 1.1])
def test_low_scores_that_are_others_are_seen(scale: float) -> None:
    reference = np.random.default_rng(6).uniform(1e-5, 4e-5, (40, 1, 3)).astype(np.float32)
    parity = _parity(reference, (reference * scale).astype(np.float32))
    assert parity.snr_db < 30
    assert parity.relative_error > 0.05


def test_quantities_in_a_small_unit_keep_their_scale() -> None:
    """Picofarads: all within 0 and 1, and none of it is rounding."""
    reference = np.random.default_rng(7).uniform(1e-12, 9e-12, (30, 1, 2))
    assert _parity(reference, reference * 0).snr_db < 2
    assert _parity(reference, reference * 1.3).snr_db < 20


def test_signals_and_distributions_are_taken_as_they_are() -> None:
    rng = np.random.default_rng(8)
    spread = rng.dirichlet(np.ones(5000), 2)  # a softmax over many classes: each value is small
    signal = rng.normal(0, 1e-6, (2, 40))
    for expected in (spread, spread[..., None], signal, signal + 3):
        moved = expected + ROUNDING / 3
        assert without_rounding(expected, moved) is moved


def test_package_golden_samples_forgive_the_same() -> None:
    expected = np.array([[4.5e-5, 6e-6]], np.float32)
    assert relative_error((expected + np.float32(1.2e-7)).astype(np.float32), expected) < 1e-6
    assert relative_error(np.zeros_like(expected), expected) > 0.9
