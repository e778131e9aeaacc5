"""``--bind``: of ONNX files, modules and .pt2 archives, to every runtime, and noticed by the cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import edgekit  # noqa: E402
from edgekit.errors import UnknownNameError, UsageError  # noqa: E402

MODULE = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.slow, self.fast = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)
    def forward(self, x, rate, mask):
        y = self.fast(x) if rate == 16000 else self.slow(x)
        return y * mask + rate / 8000

def net():
    return Net().eval(), (torch.ones(2, 4), torch.tensor(8000), torch.ones(3))

class Plain(torch.nn.Module):
    def forward(self, x, rate):
        return torch.where(rate > 10000, x * 2, x - 1)
"""


def _branching(path: Path) -> Path:
    """An ``If`` on a number that is an input, as a voice detector ships."""
    helper, tensor = onnx.helper, onnx.TensorProto
    bodies = []
    for index, name in enumerate(("Exp", "Neg")):
        out = helper.make_tensor_value_info(f"y{index}", tensor.FLOAT, [1, 4])
        node = helper.make_node(name, ["x"], [f"y{index}"])
        bodies.append(helper.make_graph([node], name, [], [out]))
    nodes = [
        helper.make_node("Equal", ["sr", "wanted"], ["is"]),
        helper.make_node("If", ["is"], ["y"], then_branch=bodies[0], else_branch=bodies[1]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info("x", tensor.FLOAT, [1, 4]),
            helper.make_tensor_value_info("sr", tensor.INT64, []),
        ],
        [helper.make_tensor_value_info("y", tensor.FLOAT, [1, 4])],
        [onnx.numpy_helper.from_array(np.asarray(16000), "wanted")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def _built(source: Any, tmp_path: Path, bind: dict[str, Any], **more: Any) -> dict[str, edgekit.Artifact]:
    options = edgekit.Options(bind=bind, speed_gate=False)
    targets = ["ort-fp32", "openvino-fp32", "tflite-fp32"]
    result = edgekit.build(source, targets=targets, out=tmp_path / "out", options=options, **more)
    result.raise_for_failures()
    return {a.target: a for a in result.artifacts}


def _answers(artifacts: dict[str, edgekit.Artifact], x: np.ndarray) -> list[np.ndarray]:
    for artifact in artifacts.values():
        assert [spec.name for spec in artifact.manifest.inputs] == ["x"]
    return [next(iter(next(iter(a.predict([{"x": x}]))).values())) for a in artifacts.values()]


def test_an_onnx_file_keeps_one_branch_on_every_runtime_and_another_value_is_another_build(
    tmp_path: Path,
) -> None:
    source = _branching(tmp_path / "m.onnx")
    x = np.linspace(-1, 1, 4, dtype=np.float32)[None]
    for rate, expected in ((16000, np.exp(x)), (8000, -x), (16000, np.exp(x))):
        artifacts = _built(source, tmp_path, {"sr": rate})
        for artifact in artifacts.values():
            assert artifact.manifest.source.bound == {"sr": rate}
        for answer in _answers(artifacts, x):
            np.testing.assert_allclose(answer, expected, rtol=1e-4, atol=1e-5)
    beside = artifacts["ort-fp32"].verify(evaluation=[{"x": x}], source=source)
    assert beside.status == "passed"
    assert beside.evaluation is not None
    assert artifacts["ort-fp32"].diff() is not None


def test_a_module_branches_on_the_number_and_takes_a_file(tmp_path: Path) -> None:
    (tmp_path / "bind_net.py").write_text(MODULE)
    mask = tmp_path / "mask.npy"
    np.save(mask, np.asarray([1, 0, 2], np.float32))
    namespace: dict[str, Any] = {}
    exec(MODULE, namespace)
    module, (x, _, _) = namespace["net"]()
    artifacts = _built(f"{tmp_path}/bind_net.py:net", tmp_path, {"rate": 16000, "mask": str(mask)})
    expected = module(x, torch.tensor(16000), torch.tensor([1.0, 0, 2])).detach().numpy()
    for answer in _answers(artifacts, x.numpy()):
        np.testing.assert_allclose(answer, expected, rtol=1e-4, atol=1e-5)
    record = artifacts["ort-fp32"].manifest.source.bound["mask"]
    assert record["file"] == str(mask)


def test_an_exported_program_and_a_module_in_memory_are_bound(tmp_path: Path) -> None:
    namespace: dict[str, Any] = {}
    exec(MODULE, namespace)
    example = (torch.ones(2, 4), torch.tensor(8000))
    torch.export.save(torch.export.export(namespace["Plain"](), example), tmp_path / "m.pt2")
    options = edgekit.Options(bind={"rate": 16000}, speed_gate=False)
    for index, source in enumerate((str(tmp_path / "m.pt2"), namespace["Plain"]())):
        given = {} if index == 0 else {"example_inputs": example}
        artifact = edgekit.build(
            source, targets="ort-fp32", out=tmp_path / f"{index}", options=options, **given
        )
        artifact.raise_for_failures()
        (answer,) = next(iter(artifact.artifacts[0].predict([{"x": np.ones((2, 4), np.float32)}]))).values()
        np.testing.assert_array_equal(answer, np.full((2, 4), 2, np.float32))


def test_what_cannot_be_bound_is_refused_by_name(tmp_path: Path) -> None:
    source = _branching(tmp_path / "m.onnx")
    with pytest.raises(UnknownNameError, match="--bind"):
        _built(source, tmp_path, {"rate": 16000})
    with pytest.raises(UsageError, match="another type"):
        _built(source, tmp_path, {"sr": 0.5})
    with pytest.raises(UsageError, match="two builds"):
        edgekit.build(
            source,
            targets="ort-fp32",
            out=tmp_path / "out",
            options=edgekit.Options(bind={"sr": 1}, recipe="prune(sparsity=0.5)"),
        )
