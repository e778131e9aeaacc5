"""An engine that cannot be run here is made of a graph that can: what it computes is held to the target's limits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper

import edgekit
from edgekit.artifact.gates import Evidence, gates
from edgekit.artifact.summary import verdict
from edgekit.backends.nvidia import plain, plain_windows
from edgekit.errors import BackendError, DataError, GateFailedError
from edgekit.graph.widen import without_bfloat16
from edgekit.pipeline import graph_check
from edgekit.quantize.calibrate.codes import CODES
from edgekit.types import Parity, Tolerance, Verdict


class Neighbours(torch.nn.Module):
    """The largest of each node's neighbours; nodes without one get zero."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(4, 6)

    def forward(self, x: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        """``edges``: from and to."""
        h = self.first(x)
        places = edges[1][:, None].expand(-1, 6)
        most = torch.full_like(h, float("-inf")).scatter_reduce(0, places, h[edges[0]], "amax")
        return torch.where(torch.isinf(most), torch.zeros_like(most), most)


EXAMPLE = (
    torch.randn(7, 4, generator=torch.Generator().manual_seed(3)),
    torch.tensor([[0, 1, 2], [3, 3, 5]]),
)


def built(
    tmp_path: Path, target: str, module: torch.nn.Module | None = None, example: object = EXAMPLE
) -> object:
    options = edgekit.Options(allow_not_run=True, out=str(tmp_path / "out"))
    return edgekit.build(module or Neighbours().eval(), example, targets=target, options=options)


def graph_gate(manifest: object) -> object:
    (gate,) = [g for g in manifest.gates if g.name == "graph"]  # type: ignore[attr-defined]
    return gate


@pytest.mark.parametrize("target", ["tensorrt-fp32", "tensorrt-fp16", "tensorrt-bf16"])
def test_nodes_without_neighbours_are_zero_in_what_ships(tmp_path: Path, target: str) -> None:
    result = built(tmp_path, target)
    assert not result.failures
    manifest = result.artifacts[0].manifest
    gate = graph_gate(manifest)
    assert gate.verdict is Verdict.PASS
    assert gate.value > (100 if target.endswith("32") else 40)
    assert "dB from the source" in verdict(manifest)
    assert ("float32 for bfloat16" in verdict(manifest)) == target.endswith("bf16")


def test_a_rewrite_that_computes_something_else_is_refused_without_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(node: ir.Node) -> object:
        made = plain_windows.pool(node)
        assert made
        for one in made:
            if one.op_type == "Max":
                one.op_type = "Sum"
        return made

    monkeypatch.setitem(plain._REWRITES, ("", "MaxPool"), wrong)
    pool = torch.nn.MaxPool2d(3, stride=1, dilation=2)
    result = built(tmp_path, "tensorrt-fp32", pool, torch.randn(1, 2, 9, 9))
    (failure,) = result.failures
    assert isinstance(failure.error, GateFailedError)
    assert failure.error.exit_code == 5
    assert "graph: the ONNX that ships, in ONNX Runtime on" in failure.error.message


def test_a_graph_that_could_not_be_compared_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: object, **__: object) -> None:
        raise BackendError("there is no kernel for Foo", hint="none")

    monkeypatch.setattr(graph_check, "run_artifact", refuses)
    result = built(tmp_path, "tensorrt-fp32", torch.nn.Linear(3, 3), torch.randn(1, 3))
    assert not result.failures
    manifest = result.artifacts[0].manifest
    gate = graph_gate(manifest)
    assert (gate.verdict, gate.value) == (Verdict.NOT_RUN, None)
    assert "no kernel for Foo" in gate.message
    assert "its graph was not compared in ONNX Runtime (there is no kernel for Foo)" in verdict(manifest)


def test_the_gate_holds_what_is_no_number_and_what_is_far_off() -> None:
    good = Parity(
        samples=4, rows=4, max_abs=0.1, relative_error=0.01, snr_db=40.0, cosine=0.999, data="golden"
    )
    asked = Tolerance(snr_db=35.0, relative_error=0.05)

    def gate(**changes: object) -> Mapping[str, Verdict]:
        parity = Parity(**{**{n: getattr(good, n) for n in good.__dataclass_fields__}, **changes})
        return {g.name: g.verdict for g in gates(Evidence(not_run="no GPU", graph=parity), asked)}

    assert gate()["graph"] is Verdict.PASS
    assert gate()["snr"] is Verdict.NOT_RUN
    assert gate(snr_db=34.0)["graph"] is Verdict.FAIL
    assert gate(nonfinite=1)["graph"] is Verdict.FAIL
    assert gate(relative_error=0.06)["graph"] is Verdict.FAIL
    assert "graph" not in {g.name for g in gates(Evidence(parity=good), asked)}


def test_bfloat16_is_computed_as_float32_with_the_same_constants(tmp_path: Path) -> None:
    weight = np.asarray([[1.0009765625, 3.3], [2.7, -0.1]], ml_dtypes.bfloat16)
    branch = helper.make_graph(
        [helper.make_node("Identity", ["h"], ["then"])],
        "t",
        [],
        [helper.make_tensor_value_info("then", 16, None)],
    )
    other = helper.make_graph(
        [helper.make_node("Neg", ["h"], ["else"])], "e", [], [helper.make_tensor_value_info("else", 16, None)]
    )
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["x"], ["xb"], to=16),
            helper.make_node("MatMul", ["xb", "w"], ["h"]),
            helper.make_node("If", ["c"], ["b"], then_branch=branch, else_branch=other),
            helper.make_node("Cast", ["b"], ["y"], to=1),
        ],
        "g",
        [helper.make_tensor_value_info("x", 1, [1, 2]), helper.make_tensor_value_info("c", 9, [])],
        [helper.make_tensor_value_info("y", 1, [1, 2])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    onnx.save(onnx.shape_inference.infer_shapes(model), tmp_path / "m.onnx")
    wide = without_bfloat16(tmp_path / "m.onnx", tmp_path / "wide.onnx")
    session = onnxruntime.InferenceSession(str(wide), providers=["CPUExecutionProvider"])
    fed = {"x": np.asarray([[1.0, 2.0]], np.float32), "c": np.asarray(False)}
    assert np.allclose(session.run(None, fed)[0], -(fed["x"] @ weight.astype(np.float32)))
    assert without_bfloat16(wide, tmp_path / "again.onnx") == wide


def test_samples_outside_of_the_profile_are_refused_before_an_engine_is_built(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", 1, [2, "L", 8])],
        [helper.make_tensor_value_info("y", 1, [2, "L", 8])],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9),
        tmp_path / "m.onnx",
    )
    samples = [np.zeros((2, length, 8), np.float32) for length in (5, 7)]

    def made(axes: str) -> edgekit.BuildResult:
        options = edgekit.Options(allow_not_run=True, out=str(tmp_path / "out"), set={"axes": axes})
        return edgekit.build(
            str(tmp_path / "m.onnx"), targets="tensorrt-fp32", evaluation=samples, options=options
        )

    (failure,) = made("L=6:7:8").failures
    assert isinstance(failure.error, DataError)
    assert failure.error.exit_code == 2
    assert "L of x is 5 to 7, and the engine takes 6 to 8" in failure.error.message
    assert "--set axes=L=5:7:8" in failure.error.hint
    assert not made("L=5:7:8").failures


@pytest.mark.parametrize("target", ["tensorrt-int8", "tensorrt-fp8"])
def test_quantized_graphs_are_compared_too(tmp_path: Path, target: str) -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3)).eval()
    samples = [np.random.default_rng(i).normal(size=(1, 3, 12, 12)).astype("f") for i in range(16)]
    options = edgekit.Options(allow_not_run=True, out=str(tmp_path / "out"), accept_data=CODES)
    result = edgekit.build(
        net, torch.randn(1, 3, 12, 12), targets=target, calibration=samples, options=options
    )
    assert not result.failures
    gate = graph_gate(result.artifacts[0].manifest)
    assert (gate.verdict, gate.value > 15) == (Verdict.PASS, True)


class Found(torch.nn.Module):
    """The places that are above a bound: as many as there are."""

    def __init__(self) -> None:
        super().__init__()
        self.score = torch.nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x``: rows."""
        return torch.nonzero(self.score(x) > 0.05)


def test_outputs_of_another_shape_are_a_failure_and_not_a_graph_that_did_not_run(tmp_path: Path) -> None:
    torch.manual_seed(5)
    samples = [np.random.default_rng(i).normal(size=(24, 6)).astype("f") for i in range(16)]
    options = edgekit.Options(allow_not_run=True, out=str(tmp_path / "out"), accept_data=CODES)
    result = edgekit.build(
        Found().eval(), torch.randn(24, 6), targets="tensorrt-int8", calibration=samples, options=options
    )
    (failure,) = result.failures
    assert failure.error.exit_code == 5
    assert "has the shape" in failure.error.message


@pytest.mark.parametrize(("outputs", "said"), [(5, "top1-agreement"), (64, "in 95 % of the samples")])
def test_a_quarter_of_the_samples_does_not_hide_behind_the_others(
    tmp_path: Path, outputs: int, said: str
) -> None:
    torch.manual_seed(6)
    last = torch.nn.Linear(32, outputs, bias=False)
    net = torch.nn.Sequential(torch.nn.Linear(12, 32, bias=False), last).eval()
    rows = [np.random.default_rng(i).normal(size=(1, 12)).astype("f") for i in range(24)]
    quiet = [row * np.float32(2e-3 if i % 4 == 0 else 1) for i, row in enumerate(rows)]

    def gate_of(samples: list[np.ndarray], out: str) -> object:
        options = edgekit.Options(allow_not_run=True, out=str(tmp_path / out), accept_data=CODES)
        result = edgekit.build(
            net, torch.randn(1, 12), targets="tensorrt-int8", calibration=samples, options=options
        )
        made = result.artifacts[0] if result.artifacts else result.failures[0].artifact
        return graph_gate(made.manifest)

    assert gate_of(rows, "even").verdict is Verdict.PASS
    gate = gate_of(quiet, "quiet")
    assert gate.value > 20  # all of them together
    assert gate.verdict is Verdict.FAIL
    assert said in gate.message


def test_a_graph_that_asks_for_nothing_of_its_precision_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(7)

    class Told(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = torch.nn.GRU(6, 8, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.cell(x)[0]

    samples = [np.random.default_rng(i).normal(size=(1, 5, 6)).astype("f") for i in range(16)]
    options = edgekit.Options(allow_not_run=True, out=str(tmp_path / "out"), accept_data=CODES)
    result = edgekit.build(
        Told().eval(), torch.randn(1, 5, 6), targets="tensorrt-int8", calibration=samples, options=options
    )
    (failure,) = result.failures
    assert failure.error.exit_code == 5
    assert "placement: 0 % of the MACs is all that its graph asks for" in failure.error.message
