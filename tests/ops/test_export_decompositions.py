"""The exporter's gaps: each decomposition against the operator in PyTorch, and a few all the way to ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

from edgekit import load  # noqa: E402
from edgekit.graph import export, io  # noqa: E402
from edgekit.graph.export.decompositions import TABLE  # noqa: E402

aten = torch.ops.aten
G = torch.Generator().manual_seed(4)
V = torch.randn(3, 7, generator=G)
TIES = torch.randint(0, 3, (4, 9), generator=G).float()
GAPS = V.clone()
GAPS[1, 2] = GAPS[2, 0] = float("nan")
IMAGE = torch.randn(2, 3, 10, 13, generator=G)
VOLUME = torch.randn(1, 2, 5, 7, 8, generator=G)
SQUARE = torch.randn(2, 4, 4, generator=G)
EXCHANGED = torch.eye(5).flip(0) + 0.1 * torch.randn(5, 5, generator=G)
COMPLEX = torch.complex(
    torch.tensor([1.0, -1, 0, 0, 0, -2, 3, -3]), torch.tensor([0.0, 0, 1, -1, 0, 3, -1, -2])
)
WINDOW = torch.hann_window(16)

CASES: dict[str, tuple[Any, tuple[Any, ...], dict[str, Any]]] = {
    "sort": (aten.sort.stable, (V,), {"stable": True, "dim": 1}),
    "sort, descending": (aten.sort.stable, (V,), {"stable": True, "dim": 0, "descending": True}),
    "argsort": (aten.argsort.stable, (V,), {"stable": True, "dim": 1}),
    "kthvalue": (aten.kthvalue.default, (V, 3, 1), {}),
    "kthvalue, kept": (aten.kthvalue.default, (V, 2, 0, True), {}),
    "median": (aten.median.dim, (V, 1), {}),
    "median of an even number": (aten.median.dim, (IMAGE, 2, True), {}),
    "median with gaps": (aten.median.dim, (GAPS, 1), {}),
    "cumprod": (aten.cumprod.default, (V, 1), {}),
    "cumprod of integers": (aten.cumprod.default, ((TIES + 1).long(), 0), {}),
    "cummax": (aten.cummax.default, (V, 1), {}),
    "cummax of equals": (aten.cummax.default, (TIES, 1), {}),
    "cummax with gaps": (aten.cummax.default, (GAPS, 1), {}),
    "cummax of -inf": (aten.cummax.default, (torch.full((5,), -torch.inf), 0), {}),
    "cummin": (aten.cummin.default, (TIES, 0), {}),
    "adaptive maximum": (aten.adaptive_max_pool2d.default, (IMAGE, [3, 5]), {}),
    "adaptive maximum of equals": (aten.adaptive_max_pool2d.default, (IMAGE.round().relu(), [4, 1]), {}),
    "adaptive maximum, 1-D": (aten.adaptive_max_pool1d.default, (IMAGE[0], [4]), {}),
    "adaptive maximum, 3-D": (aten.adaptive_max_pool3d.default, (VOLUME, [2, 3, 5]), {}),
    "adaptive mean, 3-D": (aten._adaptive_avg_pool3d.default, (VOLUME, [2, 3, 5]), {}),
    "divisor": (aten.avg_pool2d.default, (IMAGE, [3, 2], [2, 2], [1, 0], False, True, 4), {}),
    "divisor, rounded up": (aten.avg_pool2d.default, (IMAGE, [3, 3], [2, 2], [1, 1], True, True, 5), {}),
    "divisor, window in the margin": (aten.avg_pool2d.default, (IMAGE, [2], [3], [1], True, False, 3), {}),
    "divisor, 3-D": (aten.avg_pool3d.default, (VOLUME, [2, 2, 2], [], [0], False, True, 3), {}),
    "inverse": (aten.linalg_inv.default, (SQUARE,), {}),
    "inverse with rows exchanged": (aten.linalg_inv_ex.default, (EXCHANGED,), {}),
    "equations": (aten.linalg_solve.default, (SQUARE, SQUARE[..., :2] + 1), {}),
    "equations, a vector": (aten.linalg_solve.default, (EXCHANGED, EXCHANGED[0]), {}),
    "equations from the right": (aten.linalg_solve.default, (SQUARE, SQUARE[:, :3] + 1), {"left": False}),
    "angle": (aten.angle.default, (COMPLEX,), {}),
    "angle of reals": (aten.angle.default, (GAPS,), {}),
    "rfft": (aten.fft_rfft.default, (V, None, -1), {}),
    "rfft, cut, scaled": (aten.fft_rfft.default, (IMAGE, 8, 2, "ortho"), {}),
    "rfft, longer": (aten.fft_rfft.default, (IMAGE, 15, 2, "forward"), {}),
    "two-sided": (aten._fft_r2c.default, (IMAGE, [3], 0, False), {}),
    "stft": (aten.stft.default, (V[0].repeat(12), 16, 4, 16, WINDOW, False, True, True), {}),
    "stft, two-sided": (aten.stft.default, (V.repeat(1, 12), 16, 5, 12, WINDOW[:12], True, False, False), {}),
}
SPECTRUM = torch.stft(V.repeat(1, 12), 16, 4, window=WINDOW, return_complex=True)
WHOLE = torch.stft(V.repeat(1, 12), 15, 4, window=WINDOW[:15] + 0.2, onesided=False, return_complex=True)
CASES |= {
    "istft": (aten.istft.default, (SPECTRUM, 16, 4, 16, WINDOW), {}),
    "istft, one signal": (aten.istft.default, (SPECTRUM[0], 16, 4, 16, WINDOW, True, True), {}),
    "istft, short": (aten.istft.default, (SPECTRUM, 16, 4, 16, WINDOW), {"length": 50}),
    "istft, longer": (aten.istft.default, (SPECTRUM, 16, 4, 16, WINDOW + 0.1), {"length": 95}),
    "istft, no window": (aten.istft.default, (SPECTRUM, 16), {}),
    "istft, off centre": (aten.istft.default, (SPECTRUM, 16, 4, 16, WINDOW + 0.1, False), {}),
    "istft, two-sided": (aten.istft.default, (WHOLE, 15, 4, 15, WINDOW[:15] + 0.2, True, False, False), {}),
}


@pytest.mark.parametrize("what", CASES)
@pytest.mark.filterwarnings("ignore")
def test_a_decomposition_computes_what_pytorch_computes(what: str) -> None:
    overload, args, kwargs = CASES[what]
    function, _ = TABLE[overload]
    made, expected = function(*args, **kwargs), overload(*args, **kwargs)
    pairs = [(made, expected)] if isinstance(expected, torch.Tensor) else zip(made, expected, strict=True)
    for got, wanted in pairs:
        assert got.shape == wanted.shape
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5, equal_nan=True, check_dtype=True)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("both_ways", [False, True])
def test_a_projected_lstm(layers: int, both_ways: bool) -> None:
    torch.manual_seed(1)
    module = torch.nn.LSTM(6, 9, layers, proj_size=4, bidirectional=both_ways, batch_first=True)
    x = torch.randn(3, 5, 6)
    rows = layers * (1 + both_ways)
    state = (torch.randn(rows, 3, 4), torch.randn(rows, 3, 9))
    function, _ = TABLE[aten.lstm.input]
    weights = list(module._flat_weights)
    made = function(x, state, weights, True, layers, 0.0, False, both_ways, True)
    expected, (hidden, cell) = module(x, state)
    for got, wanted in zip(made, (expected, hidden, cell), strict=True):
        torch.testing.assert_close(got, wanted)


class Of(torch.nn.Module):
    def __init__(self, what: Any) -> None:
        super().__init__()
        self.what = what
        self.scale = torch.nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Any) -> Any:
        return self.what(x * self.scale)


MODULES = {
    "phase": lambda x: torch.fft.rfft(x, dim=-1).angle(),
    "filter": lambda x: torch.istft(
        torch.stft(x[0, 0], 16, 4, window=WINDOW, return_complex=True) * 2, 16, 4, window=WINDOW
    ),
    "equals in order": lambda x: (
        x.round().argsort(dim=1, stable=True),
        x.round().sort(dim=2, stable=True, descending=True)[1],
    ),
    "order": lambda x: (x.kthvalue(2, 1)[0], x.cummax(2)[0], x.cumprod(1)),
    "pools": lambda x: (
        torch.nn.functional.adaptive_max_pool2d(x[None], (5, 3)),
        torch.nn.functional.avg_pool2d(x[None], 2, divisor_override=3),
        torch.nn.functional.avg_pool2d(x[None], 2),
    ),
    "inverse": lambda x: torch.linalg.inv(x[:, :4, :4]),
}


@pytest.mark.parametrize("what", MODULES)
@pytest.mark.filterwarnings("ignore")
def test_what_the_exporter_lacks_becomes_onnx(what: str, tmp_path: Path) -> None:
    x = torch.randn(2, 8, 48, generator=torch.Generator().manual_seed(1))
    model = load.from_module(Of(MODULES[what]), x)
    exported, report = export.export_with_report(model, tmp_path / "a.onnx")
    assert "operators replaced" in report.strategy
    other = torch.randn(2, 8, 48, generator=torch.Generator().manual_seed(2))
    got = io.run(io.session(exported.path), {exported.input_names[0]: other.numpy()})
    expected = model.module(**{exported.input_names[0]: other})
    tensors = [expected] if isinstance(expected, torch.Tensor) else expected
    for value, wanted in zip(got.values(), tensors, strict=True):
        np.testing.assert_allclose(value, wanted.detach().numpy(), rtol=1e-3, atol=1e-4)
