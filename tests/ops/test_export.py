"""Modules of many kinds to ONNX: numbers, names, dynamic axes, and what is said when it cannot be done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

import architectures as zoo  # noqa: E402

from edgekit import load  # noqa: E402
from edgekit.errors import ExportError, SourceError  # noqa: E402
from edgekit.graph import export, io, passes  # noqa: E402
from edgekit.graph.nested import call  # noqa: E402


def build(name: str) -> Any:
    torch.manual_seed(0)
    if name in zoo.OWN:
        module, example, axes = zoo.own(name)
    else:
        module, example = zoo.hugging_face(name)
        axes = {k: zoo.TEXT if v.dim() == 2 else zoo.BATCH for k, v in example.items()}
    return load.from_module(module, example, dynamic_axes=axes)


def check(name: str, tmp_path: Path) -> None:
    model = build(name)
    exported, report = export.export_with_report(model, tmp_path / "a.onnx")
    assert report.error < 1e-3
    assert report.checked >= 4
    assert exported.input_names == tuple(model.example_inputs)
    for spec in exported.inputs:
        declared = model.dynamic_axes.get(spec.name, {})
        assert {i: d for i, d in enumerate(spec.shape) if isinstance(d, str)} == declared
    example = {k: v.numpy() for k, v in model.example_inputs.items()}
    optimized, optimizing = passes.optimize_with_report(exported, tmp_path / "b.onnx", example=example)
    assert optimizing.notes == ()
    assert (optimized.inputs, optimized.outputs) == (exported.inputs, exported.outputs)
    fixed = passes.fix_shapes(optimized, {k: v.shape for k, v in example.items()}, tmp_path / "c.onnx")
    assert all(s.is_static for s in (*fixed.inputs, *fixed.outputs))
    results = io.run(io.session(fixed.path), example)
    expected = call(model.module, model.example_inputs)
    for got, tensor in zip(results.values(), expected.values(), strict=True):
        np.testing.assert_allclose(got, tensor.numpy(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["mobilenet", "odd", "keywords", "same name"])
def test_architectures(name: str, tmp_path: Path) -> None:
    check(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [n for n in zoo.OWN if n not in ("mobilenet", "odd", "keywords", "same name")]
)
def test_more_architectures(name: str, tmp_path: Path) -> None:
    check(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", zoo.HUGGING_FACE)
def test_hugging_face_architectures(name: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    check(name, tmp_path)


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("star", ("output",)),
        ("odd", ("output_0_a", "output_0_b_0", "output_1")),
        ("same name", ("x_out", "same", "table")),
        ("gru", ("features", "state_out")),
    ],
)
def test_output_names(name: str, names: tuple[str, ...], tmp_path: Path) -> None:
    assert tuple(o.name for o in export.export(build(name), tmp_path / "a.onnx").outputs) == names


def test_same_module_same_bytes(tmp_path: Path) -> None:
    first = export.export(build("mobilenet"), tmp_path / "a.onnx")
    second = export.export(build("mobilenet"), tmp_path / "b.onnx")
    assert first.path.read_bytes() == second.path.read_bytes()


def test_module_paths_and_weights_keep_their_names_and_nothing_else_stays(tmp_path: Path) -> None:
    model = build("mobilenet")
    exported = export.export(model, tmp_path / "a.onnx")
    loaded = io.load(exported.path)
    modules = {n for n, _ in model.module.named_modules()}
    paths = {io.module_path(n) for n in loaded.graph}
    assert "body.1.body.3" in paths
    assert paths <= modules
    assert "head.weight" in loaded.graph.initializers
    text = exported.path.read_bytes()
    assert b"stack_trace" not in text
    assert str(Path(__file__).parent).encode() not in text


def test_quiet(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    export.export(build("star"), tmp_path / "a.onnx")
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def test_a_branch_on_values_is_an_account_not_a_wrong_model(tmp_path: Path) -> None:
    class Branch(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2 if float(x.sum()) > 0 else x - 100

    model = load.from_module(Branch(), torch.tensor([[-4.0, 1.0]]))
    with pytest.raises(ExportError) as caught:
        export.export(model, tmp_path / "a.onnx")
    for strategy in ("torch.export:", "torch.export strict:", "TorchScript:"):
        assert strategy in caught.value.message
    assert not (tmp_path / "a.onnx").exists()


def test_an_operator_without_onnx_is_named_with_its_module(tmp_path: Path) -> None:
    class Strange(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.special.bessel_j0(x)

    class Outer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.nn.Sequential(torch.nn.Linear(3, 3), Strange())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x)

    with pytest.raises(ExportError) as caught:
        export.export(load.from_module(Outer(), torch.randn(1, 3)), tmp_path / "a.onnx")
    assert "bessel_j0" in caught.value.message
    assert "inner.1" in caught.value.message


def test_random_outputs_are_refused(tmp_path: Path) -> None:
    class Noise(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.rand_like(x)

    with pytest.raises(ExportError, match="draws random numbers by aten::rand_like"):
        export.export_with_report(load.from_module(Noise(), torch.randn(1, 3)), tmp_path / "a.onnx")
    assert not (tmp_path / "a.onnx").exists()


def test_rounding_of_an_ill_conditioned_module_is_no_wrong_export(tmp_path: Path) -> None:
    class Cancels(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = torch.nn.Linear(256, 64), torch.nn.Linear(256, 64)
            order = torch.randperm(256)
            self.second.weight.data = self.first.weight.data[:, order]
            self.second.bias.data = self.first.bias.data + 1e-4
            self.register_buffer("order", order)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.first(x * 3.0) - self.second(x.index_select(1, self.order) * 3.0)

    torch.manual_seed(0)
    _, report = export.export_with_report(
        load.from_module(Cancels(), torch.randn(4, 256)), tmp_path / "a.onnx"
    )
    assert report.error > 1e-3  # or this shows nothing
    assert any("ill-conditioned" in n for n in report.notes)


def test_random_masks_keep_their_first_place(tmp_path: Path) -> None:
    class Causal(torch.nn.Module):
        """Over nothing PyTorch's attention gives something, its ONNX zeros."""

        def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            seen = torch.tril(torch.ones(8, 8, dtype=torch.bool)) & (mask[:, None, :] > 0)
            h = x[:, None]
            return torch.nn.functional.scaled_dot_product_attention(h, h, h, attn_mask=seen[:, None])

    example = {"x": torch.randn(6, 8, 4), "mask": torch.ones(6, 8, dtype=torch.int64)}
    example["mask"][:, 6:] = 0
    _, report = export.export_with_report(load.from_module(Causal(), example), tmp_path / "a.onnx")
    assert (report.strategy, report.checked) == ("torch.export", 4)


def test_axes_that_cannot_be_dynamic_are_noted(tmp_path: Path) -> None:
    class Fixed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(4 * 3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x.reshape(1, 12))

    model = load.from_module(Fixed(), torch.randn(1, 4, 3), dynamic_axes={"x": {1: "sequence"}})
    exported, report = export.export_with_report(model, tmp_path / "a.onnx")
    assert exported.inputs[0].is_static or any("does not take" in n for n in report.notes)
    assert any("could not be kept" in n or "does not take" in n for n in report.notes)


def test_dynamic_axes_of_an_unknown_input_are_refused() -> None:
    with pytest.raises(SourceError, match="no input"):
        load.from_module(torch.nn.ReLU(), torch.randn(1, 3), dynamic_axes={"x": {0: "batch"}})


class Attention(torch.nn.Module):
    def forward(self, x: Any, keep: Any) -> Any:
        return torch.nn.functional.scaled_dot_product_attention(x, x + 1, x * 2, attn_mask=keep)


def test_a_row_without_any_key_gives_zero_though_the_example_has_none(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x, keep = torch.randn(2, 3, 4, 8), torch.ones(2, 1, 4, 4, dtype=torch.bool)
    model = load.from_module(Attention(), (x, keep))
    exported = export.export(model, tmp_path / "a.onnx")
    empty = keep.clone()
    empty[1, :, 2] = False
    expected = Attention()(x, empty).numpy()
    assert not expected[1, :, 2].any()
    for made in (exported, passes.optimize(exported, tmp_path / "b.onnx")):
        (got,) = io.run(io.session(made.path), {"x": x.numpy(), "keep": empty.numpy()}).values()
        np.testing.assert_allclose(got, expected, atol=1e-5)
