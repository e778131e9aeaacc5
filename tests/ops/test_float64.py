"""The source in float64: how far its own float32 answers are from it."""

import numpy as np
import torch

from edgekit.graph import export
from edgekit.graph.records import ModelRecord
from edgekit.pipeline.reference import answers, in_float64
from edgekit.types import Sample, TorchModel


class Cancels(torch.nn.Module):
    """Normalizes what lies on a large offset: float32 loses half its digits."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x + 3000.0)


class OnlyFloat32(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ torch.ones(32, 4)


def both(module, tmp_path):
    model = TorchModel(module=module.eval(), example_inputs={"x": torch.randn(1, 32)})
    record = ModelRecord(model=export.export(model, tmp_path / "m.onnx"))
    random = np.random.default_rng(0)
    rows = [Sample(inputs={"x": random.standard_normal((1, 32)).astype(np.float32)}) for _ in range(3)]
    return list(answers(model, record, rows)), list(in_float64(model, record, rows)), model


def test_rounding_is_seen(tmp_path):
    narrow, wide, model = both(Cancels(), tmp_path)
    assert len(wide) == 3
    name = next(iter(wide[0]))
    assert wide[0][name].dtype == np.float64
    distance = max(float(np.abs(n[name] - w[name]).max()) for n, w in zip(narrow, wide, strict=True))
    assert 1e-5 < distance < 1e-2
    assert all(p.dtype == torch.float32 for p in model.module.parameters())


def test_a_module_that_is_float32_by_its_code_has_none(tmp_path):
    _, wide, _ = both(OnlyFloat32(), tmp_path)
    assert wide == []
