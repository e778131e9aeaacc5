"""Modules that ask for 16-bit floats on their way: computed in float32, in the reference as in the graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

from edgekit import load  # noqa: E402
from edgekit.graph import export, io  # noqa: E402
from edgekit.graph.float32 import Float32  # noqa: E402
from edgekit.graph.nested import unwrap  # noqa: E402


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = torch.nn.Linear(8, 8), torch.nn.Linear(8, 4)

    def forward(self, x: Any) -> Any:
        return self.second(torch.relu(self.first(x)))


class Autocast(Net):
    def forward(self, x: Any) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            y = torch.relu(self.first(x))
        return self.second(y.float())


class Decorated(Net):
    @torch.autocast("cpu", torch.bfloat16)
    def forward(self, x: Any) -> Any:
        return super().forward(x)


class Casts(Net):
    def forward(self, x: Any) -> Any:
        y = torch.relu(self.first(x)).to(torch.float16) + torch.zeros(8, dtype=torch.float16)
        return self.second(y.bfloat16().type_as(x))


@pytest.mark.parametrize("kind", [Autocast, Decorated, Casts])
def test_what_asks_for_16_bits_is_computed_in_float32(kind: Any, tmp_path: Path) -> None:
    x = torch.randn(3, 8)
    model = load.from_module(kind(), x)
    assert isinstance(model.module, Float32)
    exported, report = export.export_with_report(model, tmp_path / "m.onnx")
    assert any("float32" in note for note in report.notes)
    expected = Net()(x).detach().numpy()
    assert np.abs(kind()(x).detach().float().numpy() - expected).max() > 1e-5
    for got in (
        model.module(x=x).detach().numpy(),
        io.run(io.session(exported.path), {"x": x.numpy()})["output"],
    ):
        np.testing.assert_allclose(got, expected, atol=1e-6)


@pytest.mark.parametrize("enabled", [None, False])
def test_other_modules_stay_themselves(enabled: bool | None) -> None:
    class Off(Net):
        def forward(self, x: Any) -> Any:
            with torch.autocast("cpu", torch.bfloat16, enabled=False):
                return super().forward(x)

    model = load.from_module(Net() if enabled is None else Off(), torch.randn(3, 8))
    assert unwrap(model.module)[1] == 0


def test_autocast_is_as_before_outside() -> None:
    load.from_module(Autocast(), torch.randn(3, 8))
    with torch.autocast("cpu", torch.bfloat16):
        assert Net()(torch.randn(3, 8)).dtype == torch.bfloat16


class InBytes(Net):
    """A layer whose weights were stored in 16 bits, and an input that is cast to them by name."""

    def __init__(self) -> None:
        super().__init__()
        self.first.bfloat16()

    def forward(self, x: Any) -> Any:
        return self.second(torch.relu(self.first(x.bfloat16()).float()))


def test_casts_to_the_type_that_weights_had(tmp_path: Path) -> None:
    x = torch.randn(3, 8)
    expected = InBytes()(x).detach().numpy()
    model = load.from_module(InBytes(), x)
    assert isinstance(model.module, Float32)
    exported = export.export(model, tmp_path / "m.onnx")
    got = io.run(io.session(exported.path), {"x": x.numpy()})["output"]
    np.testing.assert_allclose(got, expected, atol=2e-2)
