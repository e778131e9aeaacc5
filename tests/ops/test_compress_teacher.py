"""A teacher in the training of any step: the model as it was before the recipe."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
from compress_run import Blobs, net  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from edgekit.compress import plan, recipes  # noqa: E402
from edgekit.compress.run import cache_key, run  # noqa: E402
from edgekit.compress.step import Context  # noqa: E402
from edgekit.compress.steps.prune import Prune  # noqa: E402
from edgekit.compress.training.settings import Training  # noqa: E402
from edgekit.compress.training.teacher import Taught, soft_loss, taught  # noqa: E402
from edgekit.errors import ConfigError, SourceError, UsageError  # noqa: E402


def trained() -> nn.Module:
    model, task = net(dropout=0.0), Blobs()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for epoch in range(3):
        for batch in task.batches(epoch, 0):
            optimizer.zero_grad()
            task.loss(model, batch).backward()
            optimizer.step()
    return model.eval()


class Unlabelled(Blobs):
    """The same inputs with labels that say nothing."""

    def batches(self, epoch: int, seed: int):
        return ((x, torch.zeros_like(y)) for x, y in super().batches(epoch, seed))


STEPS = (
    "prune(sparsity=0.8;{})",
    "cluster(values=3;{})",
    "qat(weights=2;activations=0;{})",
    "shrink(macs=0.5;multiple=1;{})",
    "low-rank(parameters=0.7;multiple=1;{})",
    "sparsify(group=0.01;{})",
)


@pytest.mark.parametrize("step", STEPS)
def test_only_the_teacher_is_learnt_from_where_its_share_is_one(step: str) -> None:
    """Labels that are wrong throughout: with them all is lost, from the teacher alone all is kept."""
    model, task = trained(), Unlabelled()
    found = {}
    for share in (0.0, 1.0):
        line = step.format(f"training.epochs=5;training.rate=0.01;training.teacher={share}")
        recipe = recipes.read(line)
        context = Context(task=task, example_inputs={"x": task.x[:1]})
        compressed, _ = run(copy.deepcopy(model), recipe.steps, context, judged=False)
        found[share] = task.metric(compressed)
    assert found[0.0] < 0.7
    assert found[1.0] > 0.9


def test_the_loss_is_the_weighted_mean_of_both() -> None:
    model, teacher, task = net(dropout=0.0).eval(), trained(), Blobs()
    batch = next(iter(task.batches(0, 0)))
    labelled, answers = task.loss(model, batch), teacher(batch[0]).detach()
    for kind, other in (
        ("scores", soft_loss(model(batch[0]), answers, 3.0)),
        ("values", F.mse_loss(model(batch[0]), answers)),
    ):
        training = Training(teacher=0.7, temperature=3.0, kind=kind)
        loss = Taught(task, teacher, training).loss(model, batch)
        torch.testing.assert_close(loss, 0.3 * labelled + 0.7 * other)


def test_it_is_part_of_the_recipe_the_plan_and_the_key(tmp_path: Path) -> None:
    line = "prune(sparsity=0.8;training.epochs=1.0;training.teacher=0.9)"
    recipe = recipes.read(line)
    assert recipe.line == line
    recipes.write(recipe, tmp_path / "recipe.toml")
    assert recipes.read(str(tmp_path / "recipe.toml")) == recipe
    model, context = trained(), Context(task=Blobs())
    compressed, report = run(copy.deepcopy(model), recipe.steps, context)
    plan.save(tmp_path / "plan", compressed, recipe.steps, report, context)
    assert plan.load_steps(tmp_path / "plan") == recipe.steps
    (step,) = recipe.steps
    keys = {cache_key(step, model, Context(original=original)) for original in (model, net(), None)} | {
        cache_key(Prune(sparsity=0.8, training=Training(epochs=1.0)), model, Context())
    }
    assert len(keys) == 4


def test_without_one_and_for_other_outputs_there_is_an_error() -> None:
    training = Training(teacher=0.5)
    with pytest.raises(UsageError, match="no teacher"):
        taught("prune", training, Context(task=Blobs()))
    plain = Context(task=Blobs())
    assert taught("prune", Training(), plain) is plain.task
    task = Blobs()
    batch = next(iter(task.batches(0, 0)))
    with pytest.raises(SourceError, match="teacher"):
        Taught(task, nn.Linear(5, 3), training).loss(net(), batch)
    with pytest.raises(SourceError, match=r"\[30, 3\]"):
        Taught(task, nn.Linear(8, 5), training).loss(net(), batch)


@pytest.mark.parametrize("line", [
    "prune(training.teacher=1.5)", "prune(training.temperature=0)", "prune(training.kind=colours)",
    "distill(training.teacher=0.5)",
])  # fmt: skip
def test_wrong_options_are_refused(line: str) -> None:
    with pytest.raises(ConfigError):
        recipes.read(line)
