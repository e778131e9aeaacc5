"""What forward does beside computing outputs: hooks, writing into inputs, numbers, state, randomness."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")

import numpy as np  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

from edgekit.errors import ExportError  # noqa: E402
from edgekit.graph import io  # noqa: E402
from edgekit.graph.export import export_with_report  # noqa: E402
from edgekit.graph.export.behaviour import examine  # noqa: E402
from edgekit.graph.nested import call  # noqa: E402
from edgekit.load import from_module  # noqa: E402


class Of(nn.Module):
    """A module whose forward is a function of itself and its inputs; it owns a Linear, and buffers ``held``."""

    def __init__(self, function: Any, **held: torch.Tensor) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.function = nn.Linear(4, 4), function
        for name, tensor in held.items():
            self.register_buffer(name, tensor)

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(self, x)


def model(function: Any, **held: torch.Tensor) -> Any:
    return from_module(Of(function, **held), torch.randn(2, 4, generator=torch.Generator().manual_seed(1)))


def outputs(made: Any, folder: Path) -> tuple[list[np.ndarray], Any]:
    """What the exported graph gives for the example, and the report."""
    written, report = export_with_report(made, folder / "m.onnx")
    rows = {k: v.numpy() for k, v in made.example_inputs.items()}
    return list(io.run(io.session(written.path), rows).values()), report


# --- allowed ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("example", [torch.ones(2, 4), {"x": torch.ones(2, 4)}])
def test_hooks_see_inputs_as_pytorch_gives_them(tmp_path: Path, example: Any) -> None:
    inner = Of(lambda self, x: self.linear(x))
    inner.register_forward_pre_hook(lambda _, args: tuple(a + 1 for a in args))
    inner.register_forward_hook(lambda _, args, output: output * args[0].sum())
    made = from_module(inner, example)
    expected = inner.linear(torch.full((2, 4), 2.0)) * 16
    (got,), _ = outputs(made, tmp_path)
    assert np.allclose(got, expected.detach().numpy(), rtol=1e-5)


@pytest.mark.parametrize(
    "write",
    [lambda x: x.sub_(0.5).div_(0.25), lambda x: x.__setitem__((slice(None), 0), 3.0), lambda x: x.relu_()],
)
def test_writing_into_an_input_does_not_change_the_callers(tmp_path: Path, write: Any) -> None:
    def function(self: Of, x: torch.Tensor) -> torch.Tensor:
        write(x)
        return self.linear(x)

    made = model(function)
    before = made.example_inputs["x"].clone()
    changed = before.clone()
    write(changed)
    (got,), report = outputs(made, tmp_path)
    assert torch.equal(made.example_inputs["x"], before)
    assert np.allclose(got, made.module.linear(changed).detach().numpy(), atol=1e-5)
    assert report.checked > 1


def test_a_parameter_may_be_an_output(tmp_path: Path) -> None:
    made = model(lambda self, x: (self.linear(x), self.linear.weight, self.linear.weight[:2].t()))
    weight = made.module.linear.weight.detach().numpy()
    (_, whole, part), _ = outputs(made, tmp_path)
    assert np.array_equal(whole, weight)
    assert np.array_equal(part, weight[:2].T)
    assert not any(t.requires_grad for t in call(made.module, made.example_inputs).values())


def test_numbers_among_the_outputs_are_said(tmp_path: Path) -> None:
    made = model(lambda self, x: {"y": self.linear(x), "size": x.shape[0], "more": (0.5, None, "text")})
    rows, report = outputs(made, tmp_path)
    assert len(rows) == 1
    (warning,) = report.warnings
    for part in ("result['size'] = 2", "result['more'][0] = 0.5", "'text'"):
        assert part in warning
    assert not outputs(model(lambda self, x: self.linear(x)), tmp_path)[1].warnings


def lazily(self: Of, x: torch.Tensor) -> torch.Tensor:
    if not hasattr(self, "table"):
        self.table = torch.arange(4.0)
    return self.linear(x) + self.table


def counting(self: Of, x: torch.Tensor) -> torch.Tensor:
    self.count += 1
    return self.linear(x)


def overwriting(self: Of, x: torch.Tensor) -> torch.Tensor:
    self.last = self.linear(x)
    return self.last * 2


def normalizing(self: Of, x: torch.Tensor) -> torch.Tensor:
    return F.batch_norm(x, self.mean, self.var, training=True)


def drawing_for_nothing(self: Of, x: torch.Tensor) -> torch.Tensor:
    return self.linear(x) + 0 * torch.rand(4).round()


@pytest.mark.parametrize(
    ("function", "held"),
    [
        (lazily, {}),
        (counting, {"count": torch.zeros((), dtype=torch.long)}),
        (overwriting, {"last": torch.zeros(2, 4)}),
        (drawing_for_nothing, {}),
        (
            lambda self, x: F.batch_norm(x, self.mean, self.var, training=True),
            {"mean": torch.zeros(4), "var": torch.ones(4)},
        ),
    ],
)
def test_what_no_output_depends_on_is_no_state(function: Any, held: dict[str, torch.Tensor]) -> None:
    examine(model(function, **held))


# --- refused ----------------------------------------------------------------------------------------------


def rolling(self: Of, x: torch.Tensor) -> torch.Tensor:
    self.cache = torch.cat([self.cache[1:], x[:1]])
    return self.linear(x) + self.cache.sum(0)


def delayed(self: Of, x: torch.Tensor) -> torch.Tensor:
    out = self.line[0].clone()
    self.line = torch.cat([self.line[1:], x[None, :1]])
    return self.linear(x) + out


def growing(self: Of, x: torch.Tensor) -> torch.Tensor:
    self.cache = torch.cat([self.cache, x])
    return self.cache


def averaging(self: Of, x: torch.Tensor) -> torch.Tensor:
    self.mean.mul_(0.9).add_(x.mean(), alpha=0.1)
    return self.linear(x - self.mean)


def own(self: Of, x: torch.Tensor) -> torch.Tensor:
    previous = getattr(self, "hidden", torch.zeros(2, 4))
    self.hidden = torch.tanh(self.linear(x) + previous)
    return self.hidden


def position(self: Of, x: torch.Tensor) -> torch.Tensor:
    row = self.table[self.place]
    self.place += 1
    return self.linear(x) + row


@pytest.mark.parametrize(
    ("function", "held", "named"),
    [
        (rolling, {"cache": torch.zeros(3, 4)}, "cache"),
        (delayed, {"line": torch.zeros(16, 1, 4)}, "line"),
        (growing, {"cache": torch.zeros(1, 4)}, "cache"),
        (averaging, {"mean": torch.zeros(())}, "mean"),
        (own, {}, "hidden"),
        (position, {"table": torch.randn(4, 4), "place": torch.zeros((), dtype=torch.long)}, "place"),
        (lambda self, x: (self.linear(x), self.steps.add_(1)), {"steps": torch.zeros(())}, "steps"),
    ],
)
def test_state_is_named(function: Any, held: dict[str, torch.Tensor], named: str) -> None:
    with pytest.raises(ExportError, match=f"keeps state: it changes .*{named}") as error:
        examine(model(function, **held))
    assert "input and an output" in error.value.hint


@pytest.mark.parametrize(
    ("function", "operator"),
    [
        (lambda self, x: F.dropout(self.linear(x), 0.3, training=True), "aten::"),
        (lambda self, x: self.linear(x) + torch.randn_like(x), "aten::randn_like"),
        (lambda self, x: torch.bernoulli(torch.sigmoid(self.linear(x))), "aten::bernoulli"),
        (lambda self, x: self.linear(x) + float(np.random.rand()), ""),
        (lambda self, x: self.linear(x)[:, torch.randperm(4)], "aten::randperm"),
    ],
)
def test_randomness_is_named(function: Any, operator: str) -> None:
    with pytest.raises(ExportError, match="draws random numbers") as error:
        examine(model(function))
    assert operator in error.value.message
    assert error.value.exit_code == 3


def test_where_random_numbers_are_drawn_is_said() -> None:
    module = nn.Sequential(nn.Linear(4, 4), Of(lambda self, x: F.dropout(x, 0.5, training=True)))
    with pytest.raises(ExportError, match="in module 1"):
        examine(from_module(module, torch.randn(2, 4)))


def listing(self: Of, x: torch.Tensor) -> torch.Tensor:
    self.seen = [*getattr(self, "seen", []), x.mean()]
    return self.linear(x) + torch.stack(self.seen).sum()


def remembering(self: Of, x: torch.Tensor) -> torch.Tensor:
    y, self.hidden = self.cell(x, getattr(self, "hidden", None))
    return y


def calling(self: Of, x: torch.Tensor) -> torch.Tensor:
    self.calls = getattr(self, "calls", 0) + 1
    return self.linear(x) * self.calls


@pytest.mark.parametrize(
    ("function", "named"), [(listing, "seen"), (remembering, "hidden"), (calling, "calls")]
)
def test_state_in_python_objects_is_named(function: Any, named: str) -> None:
    made = Of(function)
    made.cell = nn.LSTM(4, 4)
    with pytest.raises(ExportError, match=f"keeps state: it changes {named},"):
        examine(from_module(made, torch.randn(2, 4)))


def test_a_generator_of_the_modules_own_is_randomness() -> None:
    made = Of(lambda self, x: self.linear(x) + torch.randn(4, generator=self.generator))
    made.generator = torch.Generator().manual_seed(1)
    with pytest.raises(ExportError, match="draws random numbers"):
        examine(from_module(made, torch.randn(2, 4)))


def test_what_hides_is_not_called_random() -> None:
    seen: list[float] = []

    def hiding(self: Of, x: torch.Tensor) -> torch.Tensor:
        seen.append(1.0)
        return self.linear(x) * sum(seen)

    for function in (hiding, lambda self, x: self.linear(x) * (time.perf_counter_ns() % 9973)):
        with pytest.raises(ExportError, match="other outputs for the same inputs"):
            examine(model(function))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_traced_module_is_taken(tmp_path: Path) -> None:
    traced = torch.jit.trace(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), torch.randn(2, 4))
    made = from_module(traced, torch.randn(2, 4))
    (got,), _ = outputs(made, tmp_path)
    assert np.allclose(got, call(traced, made.example_inputs)["output"].numpy(), atol=1e-6)


def test_chance_on_other_inputs_only_is_named_too(tmp_path: Path) -> None:
    def sometimes(self: Of, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) + torch.rand_like(x) * (x - EXAMPLE).abs().sum()

    made = from_module(Of(sometimes), EXAMPLE.clone())
    with pytest.raises(ExportError, match="forward of Of draws random numbers"):
        export_with_report(made, tmp_path / "m.onnx")


EXAMPLE = torch.tensor([[1.0, 2.0, 3.0, 4.0]])


class Shortened(nn.Module):
    """Rows that are too long are made shorter in the table itself: once."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(9, 4, max_norm=0.8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.table(x)


def test_state_that_settles_is_none_and_other_rows_are_shortened_in_the_graph(tmp_path: Path) -> None:
    module = Shortened()
    exported, _ = export_with_report(from_module(module, torch.tensor([[1, 2]])), tmp_path / "m.onnx")
    ids = np.array([[7, 8]])
    got = io.run(io.session(exported.path), {"x": ids})["output"]
    wanted = Shortened()(torch.from_numpy(ids)).detach().numpy()
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)
    assert (np.linalg.norm(got, axis=-1) <= 0.8001).all()
