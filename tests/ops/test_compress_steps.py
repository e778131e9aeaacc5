"""Steps: spelled, parsed, stored; pruning and clustering do what they say; plans are JSON and safetensors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from edgekit.compress.arithmetic import threads  # noqa: E402
from edgekit.compress.plan import load_steps, read_document, save  # noqa: E402
from edgekit.compress.registry import parse, registry  # noqa: E402
from edgekit.compress.run import cache_key, measure, run  # noqa: E402
from edgekit.compress.step import Context, options, spell  # noqa: E402
from edgekit.compress.steps.cluster import Cluster  # noqa: E402
from edgekit.compress.steps.cluster_tables import kmeans  # noqa: E402
from edgekit.compress.steps.prune import Prune  # noqa: E402
from edgekit.compress.training.settings import Training  # noqa: E402
from edgekit.compress.training.train import fit  # noqa: E402
from edgekit.errors import ConfigError, DataError, SourceError, UnknownNameError, UsageError  # noqa: E402


class Blobs:
    """Three clouds in eight dimensions."""

    metric_name = "accuracy"
    fingerprint = "blobs"

    def __init__(self) -> None:
        random = torch.Generator().manual_seed(0)
        self.y = torch.arange(300) % 3
        self.x = torch.randn(300, 8, generator=random) * 0.5 + torch.eye(8)[self.y] * 2

    def steps(self) -> int:
        return 10

    def batches(self, epoch: int, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        order = torch.randperm(300, generator=torch.Generator().manual_seed(seed + epoch))
        for i in range(10):
            pick = order[i * 30 : i * 30 + 30]
            yield self.x[pick], self.y[pick]

    def loss(self, model: torch.nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(model(batch[0]), batch[1])

    def metric(self, model: torch.nn.Module) -> float:
        with torch.no_grad():
            return float((model(self.x).argmax(1) == self.y).float().mean())


def net() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 3))


def zeros(model: torch.nn.Module) -> float:
    weights = torch.cat([m.weight.flatten() for m in model if isinstance(m, torch.nn.Linear)])
    return float((weights == 0).float().mean())


@pytest.mark.parametrize(
    "text",
    [
        "prune",
        "prune(sparsity=0.9;scope=layer)",
        "prune(layers=0=0.9,2=0.1;normalize=true;training.epochs=2.0)",
        "cluster(values=7;bias=0.5;training.rate=0.01)",
    ],
)
def test_spelling_and_parsing_are_inverse(text: str) -> None:
    assert spell(parse(text)) == text
    assert parse(spell(parse(text))) == parse(text)


def test_every_registered_step_has_defaults_and_flat_options() -> None:
    for name, kind in registry().items():
        assert name == kind.NAME
        assert all(isinstance(v, bool | int | float | str) for v in options(kind()).values())


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("prnue", UnknownNameError),
        ("prune(sparsty=0.9)", UnknownNameError),
        ("prune(sparsity=0.9", ConfigError),
        ("prune(sparsity=much)", ConfigError),
        ("prune(sparsity=1.0)", ConfigError),
        ("prune(scope=world)", ConfigError),
        ("prune(layers=fc1)", ConfigError),
        ("cluster(values=0)", ConfigError),
        ("cluster(training.optimizer=magic)", ConfigError),
    ],
)
def test_wrong_spellings_are_refused(text: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        parse(text)


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_prune_at_once_cuts_the_smallest(scope: str) -> None:
    model, before = net(), net()
    Prune(sparsity=0.75, scope=scope).apply(model, Context())
    assert zeros(model) == pytest.approx(0.75, abs=0.01)
    kept = model[0].weight[model[0].weight != 0].abs().min()
    cut = before[0].weight[model[0].weight == 0].abs().max()
    assert kept >= cut
    assert "parametrizations" not in "".join(model.state_dict())


def test_prune_by_layer_pattern() -> None:
    model = Prune(sparsity=0.5, layers="2=0.9").apply(net(), Context())
    assert float((model[2].weight == 0).float().mean()) == pytest.approx(0.9, abs=0.02)
    with pytest.raises(ConfigError, match="no layer"):
        Prune(layers="nothing*=0.9").apply(net(), Context())


def test_gradual_pruning_keeps_its_masks_and_learns() -> None:
    task, model = Blobs(), net()
    context = Context(task=task)
    Prune(sparsity=0.8, training=Training(epochs=20, rate=1e-2)).apply(model, context)
    assert zeros(model) == pytest.approx(0.8, abs=0.01)
    assert task.metric(model) > 0.95
    assert torch.equal(context.tensors["0.mask"], model[0].weight != 0)


def test_cluster_shares_values_and_keeps_zeros() -> None:
    model = Prune(sparsity=0.5).apply(net(), Context())
    mask = model[0].weight != 0
    Cluster(values=4, training=Training(epochs=3, rate=1e-2)).apply(model, Context(task=Blobs()))
    assert len(torch.unique(model[0].weight)) <= 5
    assert torch.equal(model[0].weight != 0, mask)
    assert model[0].weight.requires_grad


def test_training_a_table_sums_the_gradients_of_its_members() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 1.0, 2.0, 0.0], [2.0, 2.0, 1.0, 0.0]]))

    class One(Blobs):
        def steps(self) -> int:
            return 1

        def batches(self, epoch: int, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
            yield torch.ones(1, 4), torch.zeros(1)

        def loss(self, model: torch.nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
            return model(batch[0]).sum()

    training = Training(epochs=1, rate=0.1, optimizer="sgd", warmup=0)
    Cluster(values=2, training=training).apply(model, Context(task=One()))
    # 3 members each, gradient 1 a member, Nesterov's first step is 1.9 times the gradient
    expected = torch.tensor([[1.0, 1.0, 2.0, 0.0], [2.0, 2.0, 1.0, 0.0]])
    expected[expected != 0] -= 0.1 * 1.9 * 3
    torch.testing.assert_close(model[0].weight.detach(), expected)


def test_bias_lowers_the_entropy_of_the_indices() -> None:
    weight = torch.randn(5000, generator=torch.Generator().manual_seed(1))

    def entropy(bias: float) -> float:
        p = torch.bincount(kmeans(weight, 16, bias)[1].flatten()).double() / 5000
        return float(-(p[p > 0] * p[p > 0].log2()).sum())

    assert entropy(0.05) < entropy(0.0) - 0.1


def test_biases_are_rounded_to_few_bits() -> None:
    before, model = net(), Cluster(values=8, bias_bits=3).apply(net(), Context())
    pairs = [(before[i].bias.detach(), model[i].bias.detach()) for i in (0, 2)]
    for exact, rounded in pairs:
        assert not (rounded.view(torch.int32) & ((1 << 20) - 1)).any()
        assert ((rounded - exact).abs() <= exact.abs() / 16).all()


def test_a_recipe_reports_and_stores_itself(tmp_path: Path) -> None:
    steps = (Prune(sparsity=0.6), Cluster(values=3))
    context = Context(task=Blobs(), example_inputs={"x": torch.zeros(1, 8)})
    model, report = run(net(), steps, context)
    first, second = report.steps
    assert first.before.nonzero > first.after.nonzero == second.after.nonzero
    assert first.before.macs == 8 * 32 + 32 * 3
    assert first.before.metric is not None
    save(tmp_path, model, steps, report, context)
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".json", ".safetensors", ".safetensors"]
    assert json.loads((tmp_path / "plan.json").read_text())["report"]["steps"][0]["step"] == spell(steps[0])
    assert load_steps(tmp_path) == steps


def test_same_seed_same_weights() -> None:
    steps = (Prune(sparsity=0.6, training=Training(epochs=2)),)
    a, b = (run(net(), steps, Context(task=Blobs(), seed=3))[0] for _ in range(2))
    assert all(
        torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


def test_cache_key_follows_options_weights_and_seed() -> None:
    base = cache_key(Prune(), net(), Context())
    assert base == cache_key(Prune(), net(), Context())
    changed = net()
    changed[0].bias.data[0] += 1
    others = (
        cache_key(Prune(sparsity=0.4), net(), Context()),
        cache_key(Prune(), changed, Context()),
        cache_key(Prune(), net(), Context(seed=1)),
    )
    assert len({base, *others}) == 4


def test_threads_are_pinned_and_part_of_key_and_plan(tmp_path, monkeypatch) -> None:
    """Two threads sum in another order than one: the weights are others, and neither is served for the other."""
    steps, seen, keys = (Prune(sparsity=0.5, training=Training(epochs=1.0)),), [], set()
    apply = Prune.apply

    def watched(self: Prune, model: torch.nn.Module, context: Context) -> torch.nn.Module:
        seen.append(torch.get_num_threads())
        return apply(self, model, context)

    monkeypatch.setattr(Prune, "apply", watched)
    before = torch.get_num_threads()
    for number in ("1", "2", "2,1", "nonsense"):
        monkeypatch.setenv("OMP_NUM_THREADS", number)
        context = Context(task=Blobs(), seed=3)
        model, report = run(net(), steps, context, work=tmp_path / "work")
        keys.add(report.steps[0].key)
        save(tmp_path / number, model, steps, report, context)
        computed = read_document(tmp_path / number)["computed"]
        assert isinstance(computed, dict)
        assert computed["threads"] == str(threads())
    assert seen[:2] == [1, 2]
    assert len(seen) == len(keys) == len({1, 2, threads()})
    assert torch.get_num_threads() == before


def test_training_needs_a_task_and_finite_losses() -> None:
    with pytest.raises(UsageError, match="nothing to train on"):
        Prune(training=Training(epochs=1)).apply(net(), Context())
    with pytest.raises(SourceError):
        Prune().apply(torch.nn.ReLU(), Context())
    broken = Blobs()
    broken.x[:] = float("nan")
    with pytest.raises(DataError, match="nan"):
        fit(net(), broken, Training(epochs=1), seed=0)


def test_patience_returns_the_best_weights() -> None:
    task, model = Blobs(), net()
    fit(model, task, Training(epochs=30, rate=3e-2, patience=2), seed=0)
    assert task.metric(model) > 0.95
    assert measure(model, Context(task=task)).metric == task.metric(model)
