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
DEFINITE = SQUARE @ SQUARE.mT + 2 * torch.eye(4)
WIDE = torch.linspace(-7.3, 7.4, 60)
SIGNED = torch.tensor([0.0, -0.0, 2.0, -3.0])
INDEX = torch.tensor([[0, 2, 1, 1, 0, 2, 0]])
TABLE_OF_WORDS = torch.randn(9, 4, generator=G)
WORDS, STARTS = torch.tensor([3, 3, 8, 2, 0, 7]), torch.tensor([0, 2, 2, 5])
CASES |= {
    "determinant": (aten.linalg_det.default, (SQUARE,), {}),
    "determinant, rows exchanged": (aten.linalg_det.default, (EXCHANGED,), {}),
    "determinant of nothing": (aten.linalg_det.default, (torch.ones(3, 3),), {}),
    "logdet": (aten.logdet.default, (torch.stack([*DEFINITE, EXCHANGED[1:, :4]]),), {}),
    "slogdet": (aten.linalg_slogdet.default, (SQUARE,), {}),
    "cholesky": (aten.linalg_cholesky.default, (DEFINITE,), {}),
    "cholesky, upper": (aten.linalg_cholesky.default, (DEFINITE,), {"upper": True}),
    "cholesky, told": (aten.linalg_cholesky_ex.default, (DEFINITE,), {}),
    "qr": (aten.linalg_qr.default, (SQUARE,), {}),
    "qr, tall": (aten.linalg_qr.default, (IMAGE[0, :, :, :5],), {}),
    "qr, complete": (aten.linalg_qr.default, (IMAGE[0, :, :, :5], "complete"), {}),
    "qr, wide": (aten.linalg_qr.default, (V,), {}),
    "qr of a triangle": (aten.linalg_qr.default, (SQUARE.triu(), "r"), {}),
    "reflections": (
        aten.linalg_householder_product.default, (V.mT.tril(-1), torch.tensor([1.2, 0.7, 0.0])), {},
    ),
    "triangle, lower": (aten.linalg_solve_triangular.default, (SQUARE, SQUARE[..., :2] + 1), {"upper": False}),
    "triangle, upper, of ones": (
        aten.linalg_solve_triangular.default, (SQUARE, SQUARE + 1), {"upper": True, "unitriangular": True},
    ),
    "triangle, right": (
        aten.linalg_solve_triangular.default, (DEFINITE, SQUARE[:, :2] + 1), {"upper": True, "left": False},
    ),
    "matrix exponential": (aten.linalg_matrix_exp.default, (SQUARE,), {}),
    "distances, 1": (aten.cdist.default, (IMAGE[0], IMAGE[1], 1.0), {}),
    "distances, 3": (aten.cdist.default, (V, V + 1, 3.0), {}),
    "distances, infinite": (aten.cdist.default, (V, V + 1, float("inf")), {}),
    "distances, 0": (aten.cdist.default, (TIES, TIES[:2], 0.0), {}),
    "lgamma": (aten.lgamma.default, (torch.cat([WIDE, torch.tensor([1.0, 2, 1e-3, 30, 1e4])]),), {}),
    "digamma": (aten.digamma.default, (WIDE,), {}),
    "i0": (aten.special_i0.default, (WIDE * 2,), {}),
    "i0e": (aten.special_i0e.default, (WIDE * 20,), {}),
    "hypot": (aten.hypot.default, (V * 1e30, V.flip(1) * 1e30), {}),
    "hypot of nothing": (aten.hypot.default, (torch.zeros(2), torch.zeros(2)), {}),
    "signbit": (aten.signbit.default, (SIGNED,), {}),
    "copysign": (aten.copysign.Tensor, (V[0, :4], SIGNED), {}),
    "copysign of a number": (aten.copysign.Scalar, (V, -0.0), {}),
    "scatter, mean": (aten.scatter_reduce.two, (V, 0, INDEX, V[:1] * 2, "mean"), {}),
    "scatter, alone": (aten.scatter_reduce.two, (V, 1, INDEX[:, :5], V[:1], "amax"), {"include_self": False}),
    "scatter, mean alone": (aten.scatter_reduce.two, (V, 0, INDEX, V[:1], "mean"), {"include_self": False}),
    "slices reduced": (aten.index_reduce.default, (V, 0, INDEX[0, :2], V[:2], "prod"), {}),
    "diagonal": (aten.diagonal_scatter.default, (IMAGE, IMAGE[:, :, 0, :10], 1, 2, 3), {}),
    "diagonal below": (aten.diagonal_scatter.default, (V.mT, V[0, :3], -2), {}),
    "masked": (aten.masked_scatter.default, (V, V > 0.3, torch.arange(30.0)), {}),
    "masked, by a row": (aten.masked_scatter.default, (V, V[0] > 0, torch.arange(30.0)), {}),
    "search": (aten.searchsorted.Tensor, (V.sort(-1)[0], V[:, :4]), {}),
    "search, right": (aten.searchsorted.Tensor, (torch.tensor([0.0, 1, 1, 2]), TIES), {"right": True}),
    "search for a number": (aten.searchsorted.Scalar, (torch.tensor([0.0, 1, 1, 2]), 1), {"out_int32": True}),
    "largest of all": (aten.amax.default, (V,), {}),
    "least of all": (aten.amin.default, (V, [], True), {}),
    "renormed": (aten.embedding_renorm.default, (TABLE_OF_WORDS, WORDS, 1.0, 2.0), {}),
    "inverse error function": (
        aten.erfinv.default, (torch.tensor([-1.0, -0.9999, -0.9, -0.1, 0.0, 1e-4, 0.5, 0.99, 0.999999, 1.0]),), {},
    ),
    "exponential": (aten.exp.default, (COMPLEX,), {}),
    "logarithm": (aten.log.default, (COMPLEX,), {}),
    "times i": (aten.mul.Tensor, (V, 1j), {}),
    "times a complex number": (aten.mul.Tensor, (COMPLEX, 0.5 - 2j), {}),
    "powers": (aten.vander.default, (V[0], 4), {}),
    "powers, lowest first": (aten.vander.default, (V[0], None, True), {}),
    "ihfft": (aten.fft_ihfft.default, (V, None, -1, "ortho"), {}),
    "median of all": (aten.median.default, (IMAGE,), {}),
    "nanmedian": (aten.nanmedian.dim, (GAPS, 1), {}),
    "nanmedian, nothing there": (aten.nanmedian.dim, (GAPS[:, :1] / 0 * 0, 1, True), {}),
    "nanmedian of all": (aten.nanmedian.default, (GAPS,), {}),
    "mode": (aten.mode.default, (TIES, 1), {}),
    "mode, kept": (aten.mode.default, (TIES.long(), 0, True), {}),
    "bytes in order": (aten.sort.default, (torch.tensor([200, 3, 90], dtype=torch.uint8), -1, True), {}),
    "shares": (aten.cross_entropy_loss.default, (V, TIES[:3, :7] / 3, None, 1, -100, 0.1), {}),
    "shares, weighted": (aten.cross_entropy_loss.default, (V, TIES[:3, :7] / 3, V[0].abs(), 0), {}),
    "smoothed": (aten.cross_entropy_loss.default, (V, torch.tensor([1, 6, 2]), None, 2, -100, 0.2), {}),
    "smoothed, weighted, one ignored": (
        aten.cross_entropy_loss.default, (V, torch.tensor([1, 6, 2]), V[0].abs(), 1, 6, 0.2), {},
    ),
    "smoothed, pixels": (
        aten.cross_entropy_loss.default, (IMAGE, torch.ones(2, 10, 13).long(), None, 1, -100, 0.3), {},
    ),
    "fake quantization": (
        aten.fake_quantize_per_channel_affine.default,
        (V, torch.tensor([0.01, 0.02, 0.004]), torch.tensor([0, 3, -2], dtype=torch.int32), 0, -128, 127), {},
    ),
}  # fmt: skip
BAGS = {
    "sum": (False, 0, False, torch.rand(6, generator=G), False, None),
    "mean": (False, 1, False, None, False, None),
    "largest": (False, 2, False, None, False, None),
    "mean with padding": (False, 1, False, None, False, 3),
    "largest with padding": (False, 2, False, None, False, 3),
    "with an end": (False, 0, False, None, True, None),
}


@pytest.mark.parametrize("what", BAGS)
def test_a_bag_of_rows(what: str) -> None:
    overload = aten.embedding_bag.padding_idx
    args = (TABLE_OF_WORDS, WORDS, torch.tensor([*STARTS, 6]) if BAGS[what][4] else STARTS, *BAGS[what])
    torch.testing.assert_close(TABLE[overload][0](*args)[0], overload(*args)[0])


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
    "factors": lambda x: torch.linalg.cholesky(x[:, :4, :4] @ x[:, :4, :4].mT + torch.eye(4)).logdet(),
    "bags": lambda x: torch.nn.functional.embedding_bag(
        torch.tensor([[1, 2], [7, 7]]), x[0], mode="max", padding_idx=7
    ),
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
