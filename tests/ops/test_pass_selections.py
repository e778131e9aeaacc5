"""What a mask picks, written or reduced: one Where over the whole tensor, no size that the data decides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

from edgekit import load  # noqa: E402
from edgekit.graph import export, io, passes  # noqa: E402

DYNAMIC = {"NonZero", "GatherND", "ScatterND"}


class Of(torch.nn.Module):
    def __init__(self, what: Any) -> None:
        super().__init__()
        self.what = what

    def forward(self, x: Any, y: Any) -> Any:
        return self.what(x, y)


def assigned(x: Any, mask: Any, value: Any) -> Any:
    copy = x.clone()
    copy[mask] = value
    return copy


CASES = {
    "a number": lambda x, y: assigned(x, x < 0, 0.25),
    "a number of the data": lambda x, y: assigned(x, x > 0.5, y[0, 0]),
    "of another tensor": lambda x, y: assigned(x, x > 0, y[x > 0]),
    "arithmetic": lambda x, y: assigned(x, x > 0, torch.sqrt(x[x > 0]) * 2 + 1),
    "rows": lambda x, y: assigned(x, y.sum(1) > 0, 3.0),
    "integers": lambda x, y: assigned((x * 4).long(), x < 0, 7),
    "sum": lambda x, y: x[x > 0].sum(),
    "mean of squares": lambda x, y: (y[x > 0] ** 2).mean(),
    "largest and smallest": lambda x, y: (x[y > 0].max(), x[y > 0].min()),
    "rows' sum": lambda x, y: x[y.sum(1) > 0].sum(0),
    "rows' mean": lambda x, y: (x[y.sum(1) > 0].mean(0), x[y.sum(1) > 0].mean()),
    "variance": lambda x, y: (x[x > 0] - x[x > 0].mean()).pow(2).mean(),
    "masked_select": lambda x, y: torch.masked_select(x, y > 0).sum(),
}


@pytest.mark.parametrize("what", CASES)
def test_one_shape_for_all_data(what: str, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(3)
    x, y = torch.randn(4, 5, generator=generator), torch.randn(4, 5, generator=generator)
    exported = export.export(load.from_module(Of(CASES[what]), (x, y)), tmp_path / "a.onnx")
    assert {n.op_type for n in onnx.load(exported.path).graph.node} & DYNAMIC
    optimized, report = passes.optimize_with_report(exported, tmp_path / "b.onnx")
    assert report.notes == ()
    assert not {n.op_type for n in onnx.load(optimized.path).graph.node} & DYNAMIC
    x, y = torch.randn(4, 5, generator=generator), torch.randn(4, 5, generator=generator)
    expected = CASES[what](x, y)
    got = io.run(io.session(optimized.path), {"x": x.numpy(), "y": y.numpy()}).values()
    tensors = expected if isinstance(expected, tuple) else (expected,)
    for value, wanted in zip(got, tensors, strict=True):
        np.testing.assert_allclose(value, wanted.numpy(), rtol=1e-5, atol=1e-5)


def test_two_masks_do_not_meet(tmp_path: Path) -> None:
    """As many elements by luck: the picked ones lie at other places."""

    def paired(x: Any, y: Any) -> Any:
        half = torch.arange(20).reshape(4, 5) < 10
        return (x[half] * x[half.logical_not() & (y == y)]).sum()

    x, y = torch.randn(4, 5), torch.randn(4, 5)
    exported = export.export(load.from_module(Of(paired), (x, y)), tmp_path / "a.onnx")
    optimized = passes.optimize(exported, tmp_path / "b.onnx")
    got = io.run(io.session(optimized.path), {"x": x.numpy(), "y": y.numpy()})
    np.testing.assert_allclose(got["output"], paired(x, y).numpy(), rtol=1e-5)
