"""What a step makes of the weights lasts: every ordered pair of steps, by count in the exported graph."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxscript")
import numpy as np
import torch
from compose_support import Task, Weight, exported, net

from edgekit.compress import constraints, plan, recipes
from edgekit.compress.hooks import Weighted
from edgekit.compress.least_squares import solved
from edgekit.compress.run import run
from edgekit.compress.step import Context, Step, Tensors
from edgekit.compress.steps.qat_layers import INPUT
from edgekit.compress.training.settings import Loop, looping
from edgekit.errors import ComposeError

TRAINED = "training.epochs=1.0;training.rate=0.01;training.clip=1.0"
STEPS = {
    "prune": f"prune(sparsity=0.75;{TRAINED})",
    "pattern": f"prune(pattern=2:4;{TRAINED})",
    "cluster": f"cluster(values=6;{TRAINED})",
    "qat": f"qat(weights=8;{TRAINED})",
    "qat-tensor": f"qat(weights=4;per_channel=false;{TRAINED})",
    "low-rank": f"low-rank(parameters=0.8;multiple=4;{TRAINED})",
    "shrink": f"shrink(macs=0.8;multiple=4;{TRAINED})",
    "depth": f"depth(share=0.34;{TRAINED})",
    "sparsify": f"sparsify({TRAINED})",
    "distill": f"distill({TRAINED})",
    "fold": "fold",
}
CHOOSE = ("prune", "pattern", "cluster", "qat", "qat-tensor", "low-rank", "shrink")
"""Steps that need float weights to choose from."""
REFUSED = {
    *((a, b) for a in ("qat", "qat-tensor") for b in CHOOSE),
    *((a, "low-rank") for a in ("prune", "pattern", "cluster")),
    ("pattern", "shrink"),
    ("cluster", "qat"),
    ("cluster", "fold"),
}
PAIRS = sorted(itertools.product(STEPS, STEPS))
TRIPLES = [
    ("prune", "cluster", "distill"),
    ("shrink", "prune", "qat"),
    ("low-rank", "distill", "qat"),
    ("prune", "qat", "distill"),
    ("pattern", "qat-tensor", "distill"),
    ("prune", "shrink", "distill"),
    ("cluster", "qat-tensor", "sparsify"),
    ("fold", "cluster", "distill"),
    ("depth", "low-rank", "prune"),
    ("sparsify", "prune", "distill"),
]
USUAL = [("prune", "shrink"), ("qat", "distill"), ("cluster", "prune"), TRIPLES[0], TRIPLES[4]]


def made(
    names: Sequence[str], task: Task, work: Path | None = None, *, whole: Sequence[str] = ()
) -> tuple[torch.nn.Module, Context]:
    """The network after some steps of the recipe ``whole``. Norms would take shared values apart in the export:
    without, or folded."""
    context = Context(task=task, example_inputs={"x": task.x[:2].clone()}, seed=1)
    whole = whole or names
    model = net(norms="fold" in whole or not any(n in ("cluster", "qat-tensor") for n in whole))
    steps = recipes.read(";".join(STEPS[n] for n in names)).steps
    return run(model, steps, context, work=work)[0], context


def weights(model: torch.nn.Module) -> list[torch.Tensor]:
    return [m.weight.detach() for m in model.modules() if isinstance(m, Weighted)]


def holds(names: Sequence[str], found: Sequence[Weight], before: Sequence[list[torch.Tensor]]) -> None:
    """``before[i]`` are the weights right behind the step number ``i``."""
    for name, after in zip(names, before, strict=True):
        if name in ("prune", "cluster", "low-rank", "shrink", "depth"):
            assert sum(w.values.size for w in found) <= sum(w.numel() for w in after)
        if name == "prune":
            nonzero = sum(int(torch.count_nonzero(w)) for w in after)
            assert sum(int(np.count_nonzero(w.values)) for w in found) <= nonzero
        elif name == "pattern":
            assert all(w.most_of(4) <= 2 for w in found)
        elif name == "cluster":
            assert all(w.distinct <= 6 for w in found)
        elif name.startswith("qat"):
            top = 127 if name == "qat" else 7
            assert all(w.integers is not None and abs(w.integers).max() <= top for w in found)
    if names[-1] in ("distill", "sparsify"):
        # They really trained: a layer of integers, too.
        changed = [not np.array_equal(w.values, a.numpy()) for w, a in zip(found, before[-2], strict=True)]
        assert sum(changed) > len(changed) / 2


def examine(names: Sequence[str], tmp_path: Path) -> None:
    task = Task()
    refused = any(pair in REFUSED for pair in itertools.combinations(names, 2))
    if refused and names != ("fold", "cluster"):
        with pytest.raises(ComposeError):
            made(names, task)
        assert not task.trained
        return
    model, _ = made(names, task)
    before = [weights(made(names[: i + 1], Task(), whole=names)[0]) for i in range(len(names))]
    holds(names, exported(model, tmp_path / "model.onnx"), before)


@pytest.mark.parametrize("names", USUAL, ids=";".join)
def test_usual_recipes_keep_what_each_step_made(names: tuple[str, ...], tmp_path: Path) -> None:
    examine(names, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("names", [*PAIRS, *TRIPLES], ids=";".join)
def test_every_pair_and_the_usual_triples(names: tuple[str, ...], tmp_path: Path) -> None:
    examine(names, tmp_path)


@pytest.mark.parametrize("names", sorted(REFUSED), ids=";".join)
def test_what_cannot_compose_is_refused_before_any_training(names: tuple[str, ...], tmp_path: Path) -> None:
    examine(names, tmp_path)


def test_a_student_of_its_own_is_refused_behind_other_steps() -> None:
    steps = recipes.read("sparsify;distill(student=net.py:make)").steps
    with pytest.raises(ComposeError, match="another network"):
        run(net(), steps, Context(task=Task()))


def test_a_step_that_breaks_what_another_made_is_found_out() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Dense(Step):
        NAME = "dense"

        def apply(self, model: torch.nn.Module, context: Context) -> torch.nn.Module:
            model.get_parameter("head.weight").data.fill_(1.0)
            return model

        def restore(self, model: torch.nn.Module, tensors: Tensors) -> torch.nn.Module:
            return model

        def rehearse(self, model: torch.nn.Module, context: Context) -> torch.nn.Module:
            return model

    with pytest.raises(ComposeError, match="head: zeros"):
        run(net(), (*recipes.read("prune").steps, Dense()), Context())


@pytest.mark.parametrize(
    "names", [("prune", "qat"), ("pattern",), ("cluster",), ("prune", "shrink")], ids=";".join
)
def test_a_plan_that_is_loaded_is_held_to_it_again(names: tuple[str, ...]) -> None:
    task = Task()
    model, context = made(names, task)
    steps = recipes.read(";".join(STEPS[n] for n in names)).steps
    fresh = net(norms="cluster" not in names)
    loaded = plan.rebuilt(fresh, steps, context.tensors, model.state_dict())
    assert constraints.identity(loaded) == constraints.identity(model)
    before = [w.clone() for w in weights(loaded)]
    again, _ = run(loaded, recipes.read(STEPS["distill"]).steps, context)
    after = weights(again)
    assert all(not w[b == 0].any() for b, w in zip(before, after, strict=True) if "qat" not in names)
    assert any(not torch.equal(b, w) for b, w in zip(before, after, strict=True))
    constraints.check(again, constraints.laid(loaded), "distill")


def test_a_plan_from_before_constraints_lasted_is_loaded_as_it_is() -> None:
    model, context = made(("prune",), Task())
    dense = {name: torch.ones_like(tensor) for name, tensor in model.state_dict().items()}
    loaded = plan.rebuilt(net(), recipes.read(STEPS["prune"]).steps, context.tensors, dense)
    assert not constraints.laid(loaded)


@pytest.mark.parametrize(
    "names", [("prune", "qat", "distill"), ("cluster", "qat-tensor", "distill")], ids=";".join
)
def test_a_recipe_that_was_killed_goes_on_to_the_same_bytes(names: tuple[str, ...], tmp_path: Path) -> None:
    with looping(Loop(checkpoint_s=0.0)):
        whole, _ = made(names, Task(), tmp_path / "whole")
        for stop_at in (3, 5, 5):  # in each of the three trainings
            with pytest.raises(KeyboardInterrupt):
                made(names, Task(stop_at), tmp_path / "work")
        rest = Task()
        again, _ = made(names, rest, tmp_path / "work")
    assert rest.trained == 2
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in whole.state_dict().items())


def test_biases_of_few_bits_stay_so() -> None:
    line = f"cluster(values=6;bias_bits=3);distill({TRAINED})"
    model, _ = run(net(norms=False), recipes.read(line).steps, Context(task=Task()))
    bias, before = model.get_parameter("hidden.bias"), net(norms=False).get_parameter("hidden.bias")
    assert not (bias.detach().view(torch.int32) & ((1 << 20) - 1)).any()
    assert not torch.allclose(bias, before, rtol=0.1)


def test_layers_that_share_an_input_still_do_after_another_training() -> None:
    class Two(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = torch.nn.Linear(64, 4), torch.nn.Linear(64, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x.flatten(1)
            return self.a(x) + self.b(x)

    task = Task()
    context = Context(task=task, example_inputs={"x": task.x[:2].clone()})
    model, _ = run(Two(), recipes.read(f"qat;distill({TRAINED})").steps, context)
    copied = copy.deepcopy(model)
    for m in (model, copied):
        assert m.get_submodule(f"a.{INPUT}") is m.get_submodule(f"b.{INPUT}")
    assert constraints.identity(model) == constraints.identity(copied)


def test_heads_are_cut_with_their_zeros() -> None:
    class Tokens(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
            self.head = torch.nn.Linear(32, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.layer(x).mean(1))

    torch.manual_seed(0)
    context = Context(example_inputs={"x": torch.randn(2, 5, 32)})
    steps = recipes.read("prune(sparsity=0.5);shrink(macs=0.6)").steps
    model, report = run(Tokens().eval(), steps, context)
    assert constraints.zeros(model.get_submodule("layer.self_attn.out_proj")) is not None
    assert report.steps[1].after.parameters < report.steps[1].before.parameters


def test_a_refit_leaves_zeros_and_is_the_best_with_them() -> None:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(200, 12, generator=random, dtype=torch.float64)
    y = torch.randn(200, 5, generator=random, dtype=torch.float64)
    free = (torch.rand(5, 12, generator=random) < 0.5).double()
    found = solved(x.T @ x, y.T @ x, free)
    assert not found[free == 0].any()
    for row, support, target in zip(found, free.bool(), y.T, strict=True):
        best = torch.linalg.lstsq(x[:, support], target[:, None]).solution[:, 0]
        torch.testing.assert_close(row[support], best, rtol=1e-6, atol=1e-8)


def test_a_source_whose_parameters_are_all_frozen_trains() -> None:
    def frozen(names: str) -> torch.nn.Module:
        model = net()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not name.startswith(names))
        return model

    steps, whole = recipes.read(STEPS["sparsify"]).steps, net()
    trained, _ = run(frozen(""), steps, Context(task=Task()))
    same = [torch.equal(a, b) for a, b in zip(weights(whole), weights(trained), strict=True)]
    assert not any(same)
    partly, _ = run(frozen("stem"), steps, Context(task=Task()))
    same = [torch.equal(a, b) for a, b in zip(weights(whole), weights(partly), strict=True)]
    assert same == [True] + [False] * (len(same) - 1)
