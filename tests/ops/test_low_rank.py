"""Low rank: factors against their definition, budgets, what awareness of the data buys, plans that restore."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from edgekit.compress.run import run
from edgekit.compress.step import Context, rebuild
from edgekit.compress.steps.low_rank import LowRank
from edgekit.compress.steps.low_rank_ranks import factorable
from edgekit.errors import ConfigError, SourceError, UsageError


@dataclass
class Inputs:
    """Batches without labels."""

    rows: list[torch.Tensor]
    fingerprint: str = "inputs"
    metric_name: str = ""

    def steps(self) -> int:
        return len(self.rows)

    def batches(self, epoch: int, seed: int) -> Iterator[torch.Tensor]:
        return iter(self.rows)

    def loss(self, model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return model(batch).square().mean()

    def metric(self, model: nn.Module) -> float:
        return 0.0


def context(*rows: torch.Tensor) -> Context:
    return Context(task=Inputs(list(rows)), example_inputs={"x": rows[0][:1]})


def error(first: nn.Module, second: nn.Module, x: torch.Tensor) -> float:
    with torch.no_grad():
        wanted = first(x)
        return float((second(x) - wanted).square().sum() / wanted.square().sum())


def test_full_energy_is_the_same_function() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 30))
    with torch.no_grad():  # of rank 8 and 12
        model[0].weight.copy_(torch.randn(40, 8) @ torch.randn(8, 40))
        model[2].weight.copy_(torch.randn(30, 12) @ torch.randn(12, 40))
    x = torch.randn(64, 40)
    cut = LowRank(energy=1 - 1e-9, aware=False, multiple=4).apply(copy.deepcopy(model), Context())
    assert cut[0][0].out_features == 8
    assert cut[2][0].out_features == 12
    assert error(model, cut, x) < 1e-9


def test_awareness_of_the_data() -> None:
    """Inputs that live in few directions, about a mean that is not zero: the same rank loses far less."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64))
    x = torch.randn(512, 64) * torch.logspace(0, -3, 64) @ torch.linalg.qr(torch.randn(64, 64))[0] + 0.5
    errors = []
    for aware in (False, True):
        step = LowRank(parameters=0.5, aware=aware, multiple=2)
        cut = step.apply(copy.deepcopy(model), context(x))
        assert sum(p.numel() for p in cut.parameters()) <= 0.5 * (64 * 64 + 64)
        errors.append(error(model, cut, x))
    assert errors[1] < errors[0] / 10


def test_frequent_rows_are_kept_better() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(200, 32), nn.Flatten(), nn.Linear(32 * 4, 3))
    often = torch.randint(0, 12, (64, 4))
    plain = LowRank(parameters=0.5, aware=False, multiple=2, layers="0").apply(
        copy.deepcopy(model), Context()
    )
    aware = LowRank(parameters=0.5, multiple=2, layers="0").apply(copy.deepcopy(model), context(often))
    assert error(model[0], aware[0], often) < error(model[0], plain[0], often) / 10


@pytest.mark.parametrize("method", ["svd", "tucker", "cp"])
@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(12, 20, 3, padding=1, stride=2),
        nn.Conv2d(12, 16, (3, 5), padding=(0, 2), dilation=(2, 1), bias=False),
        nn.Conv2d(8, 8, 3, padding="same"),
        nn.Conv1d(12, 10, 5, padding=4, dilation=2),
    ],
    ids=["strided", "dilated", "same", "1-d"],
)
def test_convolutions(conv: nn.Module, method: str) -> None:
    """A kernel that has a low rank is found again, with its stride, padding and dilation."""
    if method == "cp":
        pytest.importorskip("tensorly")
    torch.manual_seed(0)
    weight = conv.get_parameter("weight")
    _, inputs, *kernel = weight.shape
    axes = "hw"[: len(kernel)]
    factors = [torch.randn(n, 3) for n in weight.shape]
    with torch.no_grad():
        weight.copy_(torch.einsum(f"or,ir,{','.join(a + 'r' for a in axes)}->oi{axes}", *factors))
    model = nn.Sequential(conv, nn.ReLU())
    x = torch.randn(8, inputs, *([16] * len(kernel)))
    step = LowRank(energy=1 - 1e-7, convolutions=method, multiple=3 if method == "cp" else 1)
    cut = step.apply(copy.deepcopy(model), context(x))
    assert sum(p.numel() for p in cut.parameters()) < sum(p.numel() for p in model.parameters())
    assert len(cut[0]) == {"svd": 2, "tucker": 3, "cp": 2 + len(kernel)}[method]
    assert error(model, cut, torch.randn_like(x)) < (
        0.02 if method == "cp" else 1e-3
    )  # CP is found by descent


def test_a_budget_is_met_across_layers() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(96, 128), nn.GELU(), nn.Linear(128, 96), nn.Conv1d(1, 1, 1))
    model = model[:3]
    with torch.no_grad():  # the second layer is nearly of rank 16: it should give up more
        model[2].weight.copy_(torch.randn(96, 16) @ torch.randn(16, 128) + 0.01 * torch.randn(96, 128))
    x = torch.randn(256, 96)
    whole = sum(p.numel() for p in model.parameters())
    cut = LowRank(parameters=0.6, multiple=4).apply(copy.deepcopy(model), context(x))
    kept = sum(p.numel() for p in cut.parameters())
    assert 0.5 * whole < kept <= 0.6 * whole
    assert isinstance(cut[2], nn.Sequential)
    assert cut[2][0].out_features <= 24
    with pytest.raises(ConfigError, match="the least is"):
        LowRank(parameters=0.01).apply(copy.deepcopy(model), context(x))


def test_a_plan_restores_the_structure() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    x = torch.randn(64, 64)
    step = LowRank(parameters=0.5, multiple=4)
    told = context(x)
    compressed, report = run(copy.deepcopy(model), [step], told)
    assert report.steps[0].after.parameters < report.steps[0].before.parameters
    own = {k.removeprefix("0/"): v for k, v in told.tensors.items()}
    again = rebuild(step, copy.deepcopy(model), own, compressed.state_dict())
    assert torch.equal(again(x), compressed(x))


def test_what_is_left_alone() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(50, 16), nn.Linear(16, 50, bias=False)
            self.head.weight = self.table.weight
            self.attention = nn.MultiheadAttention(16, 2)
            self.depthwise = nn.Conv2d(16, 16, 3, groups=16)
            self.free = nn.Linear(16, 16)

    assert list(factorable(Tied(), embeddings=True, convolutions=True)) == ["free"]


def test_refusals() -> None:
    with pytest.raises(ConfigError):
        LowRank(parameters=0.0)
    with pytest.raises(ConfigError, match="unknown convolutions"):
        LowRank(convolutions="qr")
    with pytest.raises(SourceError, match="no layer"):
        LowRank().apply(nn.Sequential(nn.ReLU()), Context())
    with pytest.raises(UsageError):
        LowRank().apply(nn.Sequential(nn.Linear(32, 32)), Context())
    with pytest.raises(ConfigError, match="nowhere"):
        LowRank(layers="nowhere*").apply(nn.Sequential(nn.Linear(32, 32)), Context())
