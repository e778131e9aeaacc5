"""Functions that look at values on their way, small matrices by rotations, packed sequences: against PyTorch."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

from torch.nn import functional  # noqa: E402
from torch.nn.utils import rnn  # noqa: E402

from edgekit import load  # noqa: E402
from edgekit.errors import ExportError  # noqa: E402
from edgekit.graph import export, io  # noqa: E402
from edgekit.graph.export.decompositions import TABLE, rotations  # noqa: E402
from edgekit.graph.export.functions import FUNCTIONS, Replaced  # noqa: E402

aten = torch.ops.aten
G = torch.Generator().manual_seed(6)
ROWS = torch.randn(3, 20, generator=G)
COUNTS = torch.randint(0, 4, (20,), generator=G)
SHARES = torch.rand(20, generator=G)
SCORES = torch.randn(9, 4, 6, generator=G).log_softmax(-1)
TARGETS = torch.tensor([[1, 2, 2, 5], [3, 3, 3, 3], [4, 1, 0, 0], [2, 0, 0, 0]])
FULL, SHORT = torch.tensor([9, 9, 9, 9]), torch.tensor([9, 5, 2, 1])

CALLS: dict[str, tuple[Any, tuple[Any, ...], dict[str, Any]]] = {
    "covariance": (torch.cov, (ROWS,), {}),
    "covariance of one": (torch.cov, (ROWS[0],), {}),
    "covariance, weighted": (torch.cov, (ROWS,), {"fweights": COUNTS, "aweights": SHARES, "correction": 2}),
    "covariance, counted": (torch.cov, (ROWS,), {"fweights": COUNTS, "correction": 0}),
    "correlation": (torch.corrcoef, (ROWS,), {}),
    "correlation of one": (torch.corrcoef, (ROWS[0],), {}),
    "gaussian": (functional.gaussian_nll_loss, (ROWS, ROWS * 0.5, ROWS.square()), {"full": True}),
    "gaussian, one a row": (
        functional.gaussian_nll_loss,
        (ROWS, ROWS * 0.5, SHARES[:3]),
        {"reduction": "sum"},
    ),
    "alignments": (functional.ctc_loss, (SCORES, TARGETS, FULL, torch.tensor([4, 4, 2, 1])), {}),
    "alignments, lengths": (
        functional.ctc_loss,
        (SCORES, TARGETS, (9, 8, 5, 3), (3, 4, 2, 0)),
        {"reduction": "none"},
    ),
    "alignments, impossible": (
        functional.ctc_loss,
        (SCORES, TARGETS, SHORT, torch.tensor([4, 4, 2, 1])),
        {"reduction": "none"},
    ),
    "alignments, impossible ones left out": (
        functional.ctc_loss,
        (SCORES, TARGETS, SHORT, torch.tensor([4, 4, 2, 1])),
        {"zero_infinity": True, "reduction": "sum"},
    ),
}


@pytest.mark.parametrize("what", CALLS)
def test_a_replaced_function_computes_what_pytorch_computes(what: str) -> None:
    function, args, kwargs = CALLS[what]
    with Replaced() as replaced:
        got = function(*args, **kwargs)
    assert replaced.used
    assert function in FUNCTIONS
    torch.testing.assert_close(got, function(*args, **kwargs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("columns", range(1, 9))
@pytest.mark.parametrize("more", [0, 3])
def test_singular_values_and_eigenvalues(columns: int, more: int) -> None:
    a = torch.randn(50, columns + more, columns, generator=G)
    torch.testing.assert_close(rotations.svdvals(a), torch.linalg.svdvals(a), rtol=1e-4, atol=1e-5)
    u, sizes, v = rotations.svd(a.mT)
    torch.testing.assert_close(u * sizes.unsqueeze(-2) @ v, a.mT, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        rotations.pseudo_inverse(a, rtol=1e-3), torch.linalg.pinv(a, rtol=1e-3), rtol=1e-2, atol=1e-2
    )
    whole = a[:, :columns] + a[:, :columns].mT
    values, vectors = rotations.eigh(whole)
    torch.testing.assert_close(values, torch.linalg.eigvalsh(whole), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(vectors * values.unsqueeze(-2) @ vectors.mT, whole, rtol=1e-4, atol=1e-4)


def test_singular_values_of_matrices_without_full_rank() -> None:
    a = torch.randn(6, 2, generator=G) @ torch.randn(2, 4, generator=G)
    for form in (a, a.mT, torch.zeros(3, 3), torch.ones(4, 4)):
        torch.testing.assert_close(rotations.svdvals(form), torch.linalg.svdvals(form), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        rotations.pseudo_inverse(a, rtol=1e-4), torch.linalg.pinv(a, rtol=1e-4), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("rank", [2, 3])
def test_a_pool_whose_windows_random_numbers_say(rank: int) -> None:
    x = torch.randn(2, 3, *[9, 11, 8][:rank], generator=G).round()
    samples = torch.rand(2, 3, rank, generator=G)
    overload = getattr(aten, f"fractional_max_pool{rank}d").default
    for kernel, out in ((2, 4), (3, 1)):
        args = (x, [kernel] * rank, [out] * rank, samples)
        for got, wanted in zip(TABLE[overload][0](*args), overload(*args), strict=True):
            torch.testing.assert_close(got, wanted)


class Packed(torch.nn.Module):
    """A recurrent layer over rows of lengths that are an input."""

    def __init__(self, kind: str, both_ways: bool, layers: int, sort: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = getattr(torch.nn, kind)(5, 4, layers, batch_first=True, bidirectional=both_ways)
        self.sort = sort

    def forward(self, x: Any, lengths: Any) -> Any:
        packed = rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=not self.sort)
        steps, state = self.layer(packed)
        padded, _ = rnn.pad_packed_sequence(
            steps, batch_first=True, padding_value=-2.0, total_length=x.shape[1]
        )
        return padded, *(state if isinstance(state, tuple) else (state,))


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize(
    ("both_ways", "layers", "sort"), [(False, 1, True), (True, 2, True), (True, 1, False)]
)
def test_packed_sequences_of_given_lengths(kind: str, both_ways: bool, layers: int, sort: bool) -> None:
    module = Packed(kind, both_ways, layers, sort).eval()
    x = torch.randn(3, 7, 5, generator=G)
    for lengths in ([7, 4, 1], [3, 2, 2], [7, 7, 7]) if not sort else ([2, 7, 4], [1, 3, 3], [7, 6, 7]):
        with Replaced() as replaced, torch.no_grad():
            made = module(x, torch.tensor(lengths))
        assert replaced.used
        with torch.no_grad():
            for got, wanted in zip(made, module(x, torch.tensor(lengths)), strict=True):
                torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


class Gradient(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(5, 3)

    def forward(self, x: Any) -> Any:
        return torch.func.grad(lambda t: self.layer(t).tanh().sum())(x)


class Loop(torch.nn.Module):
    def forward(self, x: Any) -> Any:
        def body(i: Any, t: Any) -> Any:
            return i + 1, t * 1.5

        start = (torch.zeros((), dtype=torch.int64), x)
        return torch._higher_order_ops.while_loop(lambda i, t: (i < 8) & (t.abs().amax() < 9), body, start)[1]


class Norm(torch.nn.Module):
    def forward(self, x: Any) -> Any:
        return torch.linalg.matrix_norm(x[:, :2], 2)


def observed() -> torch.nn.Module:
    """Trained with torch.ao's observers, which go on in forward until they are switched off."""
    ao = torch.ao.quantization
    module = torch.nn.Sequential(ao.QuantStub(), torch.nn.Linear(5, 4), ao.DeQuantStub()).train()
    module.qconfig = ao.get_default_qat_qconfig("x86")
    prepared = ao.prepare_qat(module)
    prepared(torch.randn(16, 5))
    return prepared.eval()


@pytest.mark.parametrize("make", [Gradient, Loop, Norm, observed])
@pytest.mark.filterwarnings("ignore")
def test_what_no_export_took_becomes_onnx(make: Any, tmp_path: Path) -> None:
    module = make()
    model = load.from_module(module, torch.randn(4, 5, generator=G))
    exported = export.export(model, tmp_path / "m.onnx")
    x = torch.randn(4, 5, generator=G)
    (got,) = io.run(io.session(exported.path), {exported.input_names[0]: x.numpy()}).values()
    with torch.no_grad():
        expected = copy.deepcopy(model.module)(**{exported.input_names[0]: x})
    np.testing.assert_allclose(got, expected.detach().numpy(), rtol=1e-3, atol=1e-4)


def test_observers_that_go_on_measuring_are_named() -> None:
    assert any("disable_observer" in note for note in load.from_module(observed(), torch.ones(1, 5)).notes)


class Last(torch.nn.Module):
    """Its state is the last input: with one and the same input it does not change."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("last", torch.zeros(1, 4))

    def forward(self, x: Any) -> Any:
        y = x + self.last
        self.last.copy_(x)
        return y


def test_state_that_is_the_last_input_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="keeps state: it changes last"):
        export.export(load.from_module(Last(), torch.ones(1, 4)), tmp_path / "m.onnx")


class Raises(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.part, self.count = torch.nn.Linear(4, 4), 0

    def forward(self, x: Any) -> Any:
        self.count += 1
        if self.count > 1:
            raise RuntimeError("not again")
        return self.part(x)


def test_where_a_module_raises_is_said(tmp_path: Path) -> None:
    model = load.from_module(Raises(), torch.ones(1, 4))
    with pytest.raises(ExportError, match=r"test_export_functions\.py:\d+"):
        export.export(model, tmp_path / "m.onnx")


def test_a_complex_output_is_refused_by_name(tmp_path: Path) -> None:
    class Spectrum(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return {"spectrum": torch.fft.rfft(x)}

    model = load.from_module(Spectrum(), torch.randn(2, 8))
    with pytest.raises(ExportError, match="'spectrum' is complex") as error:
        export.export(model, tmp_path / "m.onnx")
    assert "view_as_real" in error.value.hint
