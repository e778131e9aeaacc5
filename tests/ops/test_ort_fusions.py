"""Additions before layer normalizations, as ONNX Runtime runs them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from quantize_support import attention, exported, operators
from torch import nn

from edgekit.backends import onnxruntime as backend
from edgekit.core import targets
from edgekit.graph import io


def lowered(model: io.OnnxModel, folder: Path, name: str = "ort-fp32") -> Path:
    row = targets.find(name)
    folder.mkdir()
    backend.lower(model, row, {o.name: o.default for o in row.options}, folder)
    return folder / row.file


def kernels(path: Path, folder: Path) -> Counter[str]:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    onnxruntime.InferenceSession(str(path), options)
    return operators(folder / "optimized.onnx")


class Residuals(nn.Module):
    """One addition that only the normalization reads, one that is read again, one that goes elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.layer = nn.LayerNorm(16), nn.LayerNorm(16), nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x + self.layer(x))
        y = x + torch.tanh(self.layer(x))
        return y + self.second(y)


def test_the_slow_fusion_does_not_happen(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 8, 16)
    model = exported(Residuals(), {"x": x}, tmp_path)
    assert kernels(model.path, tmp_path)["SkipLayerNormalization"] > 0, (
        "the fusion is gone: so may this rewrite"
    )
    path = lowered(model, tmp_path / "out")
    assert operators(path)["Sum"] == 2
    found = kernels(path, tmp_path)
    assert (found["SkipLayerNormalization"], found["LayerNormalization"]) == (0, 2)
    plain = io.session(model.path, optimized=False).run(None, {"x": x.numpy()})[0]
    np.testing.assert_allclose(io.session(path).run(None, {"x": x.numpy()})[0], plain, atol=1e-5)


def test_other_types_and_other_additions_stay(tmp_path: Path) -> None:
    model, _ = attention(tmp_path)
    half = lowered(model, tmp_path / "half", "ort-fp16")
    assert operators(half)["Sum"] == 0
    onnx.checker.check_model(onnx.load(lowered(model, tmp_path / "float")), full_check=True)
    sums = [n for n in onnx.load(tmp_path / "float" / "model.onnx").graph.node if n.op_type == "Sum"]
    normalized = {n.input[0] for n in onnx.load(model.path).graph.node if n.op_type == "LayerNormalization"}
    assert {n.output[0] for n in sums} <= normalized
