"""Unstructured pruning beyond magnitude: criteria, schedules, blocks, N of M, penalties."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

torch = pytest.importorskip("torch")
from torch import Tensor, nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from edgekit.compress.step import Context  # noqa: E402
from edgekit.compress.steps import saliency  # noqa: E402
from edgekit.compress.steps.prune import CRITERIA, Prune, parse_pattern  # noqa: E402
from edgekit.compress.steps.prune_masks import scheduled  # noqa: E402
from edgekit.compress.steps.sparsify import Sparsify  # noqa: E402
from edgekit.compress.training.settings import Training  # noqa: E402
from edgekit.errors import ConfigError, UsageError  # noqa: E402


class Useful:
    """Sixteen inputs, of which the first four tell the class; the others are loud noise."""

    metric_name, fingerprint = "accuracy", "useful"

    def __init__(self) -> None:
        random = torch.Generator().manual_seed(0)
        self.y = torch.arange(400) % 4
        self.x = torch.randn(400, 16, generator=random)
        self.x[:, :4] = self.x[:, :4] * 0.2 + torch.eye(4)[self.y]

    def steps(self) -> int:
        return 10

    def batches(self, epoch: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(400, generator=torch.Generator().manual_seed(seed + epoch))
        return iter([(self.x[i], self.y[i]) for i in order.split(40)])

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1])

    def metric(self, model: nn.Module) -> float:
        with torch.no_grad():
            return float((model(self.x).argmax(1) == self.y).float().mean())


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.BatchNorm1d(32), nn.Linear(32, 4))


def zeros(model: nn.Sequential) -> float:
    return float(torch.cat([model[i].weight.flatten() == 0 for i in (0, 3)]).float().mean())


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("schedule", ["gradual", "iterative", "one-shot"])
def test_criteria_and_schedules_reach_their_sparsity_and_learn(criterion: str, schedule: str) -> None:
    if (criterion, schedule) == ("movement", "one-shot"):
        pytest.skip("nothing has moved before the cut")
    task, model = Useful(), net()
    training = Training(epochs=10, rate=1e-2)
    step = Prune(sparsity=0.7, criterion=criterion, schedule=schedule, rounds=3, training=training)
    context = Context(task=task)
    step.apply(model, context)
    assert zeros(model) == pytest.approx(0.7, abs=0.01)
    # Chance is 0.25. Loud noise is what wanda keeps.
    floor = 0.3 if criterion == "wanda" else 0.8 if schedule == "gradual" else 0.55
    assert task.metric(model) > floor
    assert torch.equal(context.tensors["0.mask"], model[0].weight != 0)
    assert "score" not in "".join(model.state_dict())


@pytest.mark.parametrize("criterion", ["taylor", "snip"])
def test_gradients_find_the_inputs_that_matter(criterion: str) -> None:
    """Weights of equal size: magnitude cannot tell, the gradient can."""
    model = nn.Sequential(nn.Linear(16, 4, bias=False))
    with torch.no_grad():
        model[0].weight.fill_(0.1)
        model[0].weight[:, :4] += 0.1 * torch.eye(4)
    Prune(sparsity=0.75, scope="layer", criterion=criterion).apply(model, Context(task=Useful()))
    kept = model[0].weight != 0
    assert kept[range(4), range(4)].all()


def test_movement_starts_from_magnitude_and_follows_what_training_does() -> None:
    layer = nn.Linear(8, 8, bias=False)
    mask = saliency.Mask(layer, "movement")
    start = layer.weight.detach().clone()
    torch.testing.assert_close(mask.movement(start), start.abs())
    # SGD of one rate: the score is the magnitude that the weights have now, for those that are masked too.
    gradient = torch.randn(8, 8, generator=torch.Generator().manual_seed(0)) * 1e-3
    now = start - 0.1 * gradient
    mask._collect(gradient, start)
    mask.mask[:, 4:] = 0
    frozen = torch.where(mask.mask > 0, now, start)
    torch.testing.assert_close(mask.movement(frozen), now.abs(), rtol=1e-2, atol=1e-4)


def test_movement_finds_weights_that_only_training_tells_apart() -> None:
    task, model = Useful(), nn.Sequential(nn.Linear(16, 4, bias=False))
    with torch.no_grad():
        model[0].weight.fill_(0.1)
    training = Training(epochs=10, rate=1e-2)
    Prune(sparsity=0.75, scope="layer", criterion="movement", training=training).apply(
        model, Context(task=task)
    )
    assert (model[0].weight != 0)[range(4), range(4)].all()
    assert task.metric(model) > 0.8


@pytest.mark.parametrize("options", [{}, {"schedule": "one-shot", "training": Training(epochs=1)}])
def test_movement_without_any_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="moved"):
        Prune(criterion="movement", **options)


def test_snip_is_the_product_of_weight_and_gradient() -> None:
    task, model = Useful(), nn.Sequential(nn.Linear(16, 4))
    total = torch.zeros(4, 16)
    for batch in task.batches(0, 0):
        model.zero_grad()
        task.loss(model, batch).backward()
        total += model[0].weight.grad * model[0].weight.detach()
    limit = total.abs().flatten().kthvalue(32).values
    expected = total.abs() > limit
    Prune(sparsity=0.5, criterion="snip").apply(model, Context(task=task))
    assert torch.equal(model[0].weight != 0, expected)


def test_blocks_go_together() -> None:
    model = nn.Sequential(nn.Conv2d(8, 4, 3), nn.Flatten())
    Prune(sparsity=0.5, block=9).apply(model, Context())
    runs = (model[0].weight != 0).reshape(4, 8, 9).float().mean(-1)
    assert set(runs.flatten().tolist()) == {0.0, 1.0}
    assert float(runs.mean()) == pytest.approx(0.5)
    score = torch.tensor([[3.0, 4.0, 1.0]])
    torch.testing.assert_close(saliency.blocks(score, 2), torch.tensor([[12.5**0.5, 12.5**0.5, 0.5**0.5]]))


def test_two_of_four() -> None:
    task, model = Useful(), net()
    dense = nn.Conv2d(3, 8, 3)
    Prune(pattern="2:4", training=Training(epochs=5, rate=1e-2)).apply(model, Context(task=task))
    for layer in (model[0], model[3]):
        assert torch.equal(
            (layer.weight.reshape(-1, 4) != 0).sum(1), torch.full((layer.weight.numel() // 4,), 2)
        )
    assert task.metric(model) > 0.9
    kernel = nn.Conv2d(8, 2, 3)
    before = kernel.weight.detach().clone()
    both = nn.ModuleDict({"kernel": kernel, "dense": dense})
    Prune(pattern="1:2").apply(both, Context())
    assert (dense.weight != 0).all()  # three input channels are no multiple of two
    runs, old = (x.movedim(1, -1).reshape(-1, 2) for x in (kernel.weight.detach(), before))
    assert torch.equal(runs != 0, old.abs() == old.abs().amax(1, keepdim=True))


@pytest.mark.parametrize("penalty", ["l1", "group", "scale"])
def test_penalties_shrink_what_they_are_on(penalty: str) -> None:
    def measure(model: nn.Sequential) -> float:
        weight = model[0].weight.detach()
        if penalty == "scale":
            return float(model[2].weight.abs().mean())
        return float(weight.abs().mean() if penalty == "l1" else weight.norm(dim=1).mean())

    task, model, plain = Useful(), net(), net()
    training = Training(epochs=10, rate=1e-2)
    options = {"l1": 0.0, "group": 0.0, "scale": 0.0} | {penalty: 3e-2 if penalty == "scale" else 3e-3}
    Sparsify(**options, training=training).apply(model, Context(task=task))
    Sparsify(l1=1e-12, group=0.0, training=training).apply(plain, Context(task=task))
    assert measure(model) < 0.7 * measure(plain)
    assert task.metric(model) > 0.9


def test_wrong_options_are_refused() -> None:
    for wrong in (
        {"criterion": "luck"},
        {"schedule": "never"},
        {"block": 0},
        {"rounds": 0},
        {"pattern": "4:2"},
    ):
        with pytest.raises(ConfigError):
            Prune(**wrong)
    with pytest.raises(ConfigError):
        Sparsify(group=0.0)
    with pytest.raises(UsageError, match="snip"):
        Prune(criterion="snip").apply(net(), Context())
    assert parse_pattern("2:4") == (2, 4)


def test_a_short_training_of_a_net_with_batch_norms_cuts_first() -> None:
    plain = nn.Sequential(nn.Linear(4, 4))

    def comes_to(model: nn.Module, epochs: float, **options: str) -> str:
        return scheduled(Prune(training=Training(epochs=epochs), **options), model)

    assert [comes_to(net(), epochs) for epochs in (0.5, 1, 1.5, 20)] == ["one-shot"] * 2 + ["gradual"] * 2
    assert comes_to(plain, 0.5) == "gradual"
    assert comes_to(net(), 1, criterion="movement") == "gradual"
    assert comes_to(net(), 1, schedule="iterative") == "iterative"
