"""How sure a drop is, what a search is told before it begins, and what it guesses."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

pytest.importorskip("torch")
import numpy as np
import torch

from edgekit.compress import margin
from edgekit.compress.margin import Drop, Score
from edgekit.compress.registry import from_options
from edgekit.compress.step import Step
from edgekit.compress.training.dataset import Dataset
from edgekit.compress.training.tasks import Classification, DataTask, Regression
from edgekit.errors import DataError
from edgekit.search import probe
from edgekit.search.budget import Budget
from edgekit.search.judge import scorer
from edgekit.search.limits import Limits
from edgekit.search.space import methods
from edgekit.search.surrogate import Surrogate
from edgekit.search.trials import Candidate, Trial


def rights(count: int, *, worse: float, better: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Which samples the source and a compressed model get right."""
    random = torch.rand(count, generator=torch.Generator().manual_seed(seed))
    before = torch.ones(count)
    before[random > 1 - better] = 0
    after = before.clone()
    after[random < worse] = 0
    after[random > 1 - better] = 1
    return before, after


def test_the_error_of_a_drop_is_that_of_paired_samples() -> None:
    before, after = rights(2000, worse=0.04, better=0.02, seed=0)
    found = margin.drop(margin.of_values(before), margin.of_values(after))
    each = before - after
    assert found.value == pytest.approx(float(each.mean()))
    assert found.error == pytest.approx(float(each.std()) / math.sqrt(2000), rel=0.3)
    # Both are right in 94 of 100: without pairing the error would be more than that.
    assert found.error < 0.5 * 2 * math.sqrt(0.25 / 2000)


@pytest.mark.parametrize("confidence", [0.8, 0.9])
def test_the_bound_covers_as_often_as_it_says(confidence: float) -> None:
    factor, held = margin.factor(confidence), 0
    for seed in range(400):
        before, after = rights(800, worse=0.05, better=0.02, seed=seed)
        found = margin.drop(margin.of_values(before), margin.of_values(after))
        held += found.value + factor * found.error >= 0.03
    assert held / 400 == pytest.approx(confidence, abs=0.06)


def test_none_lost_of_few_says_little() -> None:
    same = margin.of_values(torch.ones(100))
    none = margin.drop(same, same)
    assert none == Drop(value=0.0, count=100, pairs=(0, 0))
    # With a loss of 2.3 in 100 none of 100 is lost in one of ten draws.
    assert (1 - margin.margin(none, 0.9)) ** 100 == pytest.approx(0.1)
    parts = Drop(value=0.0, count=100)
    assert margin.margin(parts, 0.9) == pytest.approx(0.023, abs=1e-3)
    better = Drop(value=-0.01, error=0.001, count=100)
    assert better.value + margin.margin(better, 0.9) == pytest.approx(0.023, abs=1e-3)
    assert margin.margin(none, 0.5) == 0


def test_one_lost_says_less_than_none_and_gains_are_credited() -> None:
    # Clopper and Pearson's bounds of 0 and of 1 of 300, as tables have them.
    assert margin.paired_bound(0, 0, 300, 0.9) == pytest.approx(0.00765, abs=1e-5)
    assert margin.paired_bound(1, 0, 300, 0.9) == pytest.approx(0.01290, abs=1e-5)
    assert margin.paired_bound(300, 0, 300, 0.9) == 1
    bound = margin.paired_bound(8, 5, 1000, 0.9)
    assert margin.plausible(bound - 1e-9, 8, 5, 1000, 0.9)
    assert not margin.plausible(bound + 1e-9, 8, 5, 1000, 0.9)
    alone, gains = margin.paired_bound(50, 0, 1000, 0.9), margin.paired_bound(50, 40, 1000, 0.9)
    assert 0.01 < gains < 0.03 < 0.05 < alone < 0.062


@pytest.mark.parametrize("count", [100, 300, 1000, 5000])
@pytest.mark.parametrize("gains", [0.0, 0.003, 0.03, 0.1])
def test_a_drop_of_the_limit_is_accepted_no_more_often_than_said(count: int, gains: float) -> None:
    draws = 20_000
    for limit in (0.01, 0.02):
        shares = [gains + limit, gains, 1 - 2 * gains - limit]
        found = np.random.default_rng(0).multinomial(count, shares, draws)[:, :2]
        kinds, times = np.unique(found, axis=0, return_counts=True)
        beyond = [not margin.plausible(limit, lost, gained, count, 0.9) for lost, gained in kinds.tolist()]
        accepted = times[beyond].sum() / draws
        assert accepted <= 0.1


def test_all_confirmations_together_err_no_more_than_said() -> None:
    for confidence in (0.8, 0.9, 0.99):
        errors = [1 - margin.spent(confidence, number) for number in range(1, 10_000)]
        assert errors == sorted(errors, reverse=True)
        assert 0.99 * (1 - confidence) < math.fsum(errors) < 1 - confidence
    assert margin.spent(0.5, 3) == 0.5


def test_one_number_has_no_margin_and_no_number_is_refused() -> None:
    plain = margin.drop(Score(value=0.9), Score(value=0.8))
    assert plain == Drop(value=pytest.approx(0.1))
    assert margin.margin(plain, 0.9) == 0
    with pytest.raises(DataError, match="nan"):
        margin.checked(Score(value=math.nan), "accuracy")
    with pytest.raises(DataError):
        margin.of_values([])


def toy(kind: Classification | Regression, count: int = 200) -> DataTask:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(count, 3, generator=random)
    y = (x[:, 0] > 0).long() if isinstance(kind, Classification) else x[:, :1] * 2
    data = Dataset(inputs={"x": x}, labels=y, fingerprint="toy")
    return DataTask(kind=kind, train=data, evaluation=data).split()


class Net(torch.nn.Module):
    def __init__(self, out: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = torch.nn.Linear(3, 16), torch.nn.Linear(16, out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.first(x)))


@pytest.mark.parametrize("kind", [Classification(), Regression()])
def test_a_built_in_task_judges_with_its_metric(kind: Classification | Regression) -> None:
    task, model = toy(kind), Net(2 if isinstance(kind, Classification) else 1).eval()
    for held in (False, True):
        score = scorer(task, held=held)(model)
        wanted = task.holdout_metric(model) if held else task.metric(model)
        assert score.value == pytest.approx(wanted)
        assert len(score.without) == margin.PARTS
        assert score.without != (score.value,) * margin.PARTS


class Own:
    metric_name = fingerprint = "own"
    data = torch.rand(50, 3, generator=torch.Generator().manual_seed(1))

    def metric(self, model: torch.nn.Module) -> float:
        return float(self.scores(model).mean())

    holdout_metric = metric

    def scores(self, model: torch.nn.Module) -> torch.Tensor:
        return (model(self.data)[:, 0] > 0).float()


def test_a_task_of_ones_own_has_a_margin_where_it_gives_scores() -> None:
    model = Net(2).eval()
    score = scorer(Own(), held=False)(model)
    assert score.value == pytest.approx(Own().metric(model))
    assert len(score.without) == margin.PARTS
    assert scorer(Own(), held=True)(model).without == ()


def test_the_rate_that_heals_is_taken_and_no_clock_is_asked_for_trials() -> None:
    task, model = toy(Classification(batch=16)), Net(2)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for epoch in range(20):
        for batch in task.batches(epoch, 0):
            optimizer.zero_grad()
            task.loss(model, batch).backward()
            optimizer.step()
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    first, second = (probe.setup(task, model.eval(), Limits(trials=5)) for _ in range(2))
    assert (first.epochs, first.rate) == (second.epochs, second.rate) == (probe.LONGEST, 3e-3)
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())
    assert probe.setup(task, model, Limits(epochs=0.0)).epochs == 0
    assert probe.setup(task, model, Limits(epochs=0.5)).epochs == 0.5
    assert 0 < probe.setup(task, model, Limits(seconds=1.0)).epochs <= 64
    assert probe.usual_rate(torch.nn.LayerNorm(3)) == 1e-4


def made(steps: Sequence[Step], target: str) -> Candidate:
    return Candidate(steps=tuple(steps), target=target)


def points() -> Iterator[tuple[Candidate, Trial]]:
    """Two methods, one trained too; what they cost alone on the first of two targets, and both targets as they are."""
    yield Candidate(steps=(), target="fp32"), Trial(line="", target="fp32", drop=0, size=100_000)
    yield Candidate(steps=(), target="int8"), Trial(line="", target="int8", drop=0.001, size=40_000)
    for name, option, rows in (
        ("prune", "sparsity", ((0.4, 0.001, 70_000), (0.6, 0.004, 50_000), (0.8, 0.03, 30_000))),
        ("shrink", "macs", ((0.8, 0.002, 80_000), (0.6, 0.006, 60_000), (0.4, 0.05, 40_000))),
    ):
        for value, drop, size in rows:
            one = made((from_options(name, {option: value}),), "fp32")
            yield one, Trial(line=one.line, target="fp32", drop=drop, size=size)


def test_guesses_combine_what_holds_alone_and_learn_from_what_came_out() -> None:
    able = [m for m in methods(max_epochs=0.0) if m.name in ("prune", "shrink")]
    model = Surrogate(able, ["fp32", "int8"], Budget(drop=0.01))
    known = {}
    for candidate, point in points():
        model.learn(candidate, point)
        known[candidate.line, candidate.target] = point
    first = model.propose(known, 40_000, math.inf, made)
    assert first is not None
    assert first.target == "int8"
    assert [s.NAME for s in first.steps] == ["shrink", "prune"]
    # It came out far worse than guessed: milder settings, or another target, are proposed next.
    point = Trial(line=first.line, target="int8", drop=0.03, size=20_000)
    model.learn(first, point)
    known[first.line, first.target] = point
    second = model.propose(known, 40_000, math.inf, made)
    assert second is not None
    assert (second.line, second.target) not in known
    # Nothing is proposed that is guessed to be no better than what there is, or that has no time left.
    assert model.propose(known, 1_000, math.inf, made) is None
    for candidate, point in points():
        slow = Trial(line=point.line, target=point.target, drop=point.drop, size=point.size, seconds=9.0)
        model.learn(candidate, slow)
    assert model.propose(known, 40_000, 5.0, made) is None


def test_what_cannot_be_combined_is_left_alone() -> None:
    able = [m for m in methods(max_epochs=0.0) if m.name in ("prune", "shrink")]
    model = Surrogate(able, ["fp32"], Budget(drop=0.01))
    known = {}
    for candidate, point in points():
        model.learn(candidate, point)
        known[candidate.line, candidate.target] = point
    for _ in range(2):
        found = model.propose(known, 100_000, math.inf, made)
        assert found is not None
        error = Trial(line=found.line, target=found.target, drop=1, size=1 << 62, error="no")
        model.learn(found, error)
        known[found.line, found.target] = error
    assert model.propose(known, 100_000, math.inf, made) is None


def test_the_journal_survives_being_cut_off(tmp_path: Path) -> None:
    from edgekit.search.trials import Journal, Setup

    path, kept = tmp_path / "out" / "search.jsonl", tmp_path / "cache" / "s.jsonl"
    first = Journal(path, {"search": "a"}, lambda: Setup(epochs=1.0, rate=3e-4, seconds=2.0), kept)
    for number in range(3):
        first.add(Trial(line=f"prune({number})", target="t", drop=0.0, size=number))
    path.write_text(path.read_text()[:-9])
    second = Journal(path, {"search": "a"}, Setup, kept)
    assert len(second.known) == 2
    assert second.setup == Setup(epochs=1.0, rate=3e-4, seconds=2.0)
    second.add(Trial(line="cluster", target="t", drop=0.0, size=9))
    assert len(Journal(path, {"search": "a"}, Setup, kept).known) == 3
    second.keep()
    other = Journal(tmp_path / "elsewhere" / "search.jsonl", {"search": "a"}, Setup, kept)
    assert other.known == second.known
    assert not Journal(tmp_path / "third" / "search.jsonl", {"search": "b"}, Setup, kept).known


@pytest.mark.parametrize("name", ["int4", "uint4", "int8", "float32"])
def test_few_values_are_estimated_by_their_entropy_in_any_type(name: str) -> None:
    import ml_dtypes
    import numpy as np

    from edgekit.search.sizes import entropy

    values = np.random.default_rng(0).integers(0, 8, 80_000)
    array = values.astype(np.dtype(getattr(ml_dtypes, name, name)))
    assert entropy(array) == pytest.approx(80_000 * 3 / 8, rel=0.02)
