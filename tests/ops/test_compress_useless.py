"""Training that ends with a model of no use is an error; frozen sources train."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from compose_support import Task, net  # noqa: E402

from edgekit.compress import recipes  # noqa: E402
from edgekit.compress.run import run  # noqa: E402
from edgekit.compress.step import Context  # noqa: E402
from edgekit.compress.training import scoring  # noqa: E402
from edgekit.compress.training.settings import Training  # noqa: E402
from edgekit.compress.training.task import AnyBatch, Chance  # noqa: E402
from edgekit.compress.training.train import fit  # noqa: E402
from edgekit.errors import TrainingError  # noqa: E402

LEARNED = "training.epochs=20.0;training.rate=0.01"


class Judged(Task):
    """With what answers without looking reach."""

    def chance(self) -> Chance:
        return scoring.majority([self.y])


def learned() -> torch.nn.Module:
    model = net()
    fit(model, Task(), Training(epochs=20, rate=1e-2), seed=0)
    return model


def test_training_that_ends_at_chance_is_an_error() -> None:
    task, model = Judged(), learned()
    assert task.metric(model) > 0.9
    line = "prune(sparsity=0.3);sparsify(group=100;training.rate=0.05;training.epochs=20.0)"
    with pytest.raises(TrainingError, match=r"fell there in sparsify\(group=100.0"):
        run(model, recipes.read(line).steps, Context(task=task))


@pytest.mark.parametrize(
    "line",
    [
        f"prune(sparsity=0.8;criterion=random;scope=layer);sparsify(group=0.0001;{LEARNED})",
        "prune(sparsity=0.99)",
    ],
)
def test_what_training_heals_or_did_not_do_is_none(line: str) -> None:
    run(learned(), recipes.read(line).steps, Context(task=Judged()))


def test_a_source_at_chance_may_stay_there() -> None:
    run(net(), recipes.read("sparsify(group=100;training.rate=0.01)").steps, Context(task=Judged()))


def test_weights_that_the_last_update_made_infinite_are_an_error() -> None:
    class Last(Task):
        """The gradient of its last batch is infinite, no loss is."""

        def loss(self, model: torch.nn.Module, batch: AnyBatch) -> torch.Tensor:
            value = super().loss(model, batch)
            if self.trained == self.steps():
                weight = next(model.parameters())
                value = value + (weight - weight.detach()).sum() * 1e38 * 1e38
            return value

    with pytest.raises(TrainingError, match="not finite"):
        fit(net(), Last(), Training(epochs=1, optimizer="sgd"), seed=0)


def test_what_answers_reach_that_do_not_look() -> None:
    labels = [torch.tensor([0, 0, 0, 1]), torch.tensor([2, 2, -100, 0])]
    found = scoring.majority(labels)
    assert found.level == pytest.approx(4 / 7)
    assert found.spread == pytest.approx(math.sqrt(4 / 7 * 3 / 7 / 7))
    always = [torch.nn.functional.one_hot(torch.full((4,), c), 3).float() for c in range(3)]
    best = max(scoring.f1([a, a], labels, outside=0) for a in always)
    assert scoring.constant_f1(labels, outside=0).level == pytest.approx(best)
    vectors = torch.nn.functional.normalize(
        torch.randn(50, 8, generator=torch.Generator().manual_seed(0)) + 1, dim=1
    )
    mean = vectors.mean(0, keepdim=True).expand(50, 8)
    assert scoring.constant_cosine([vectors]).level == pytest.approx(
        scoring.cosine([mean], [vectors]), rel=1e-5
    )
