"""Built-in tasks over data, the user's own functions, plans as sources, and what distributions speak for."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from edgekit.compress import analysis, plan  # noqa: E402
from edgekit.compress.plan import save  # noqa: E402
from edgekit.compress.registry import from_options  # noqa: E402
from edgekit.compress.run import run  # noqa: E402
from edgekit.compress.step import Context  # noqa: E402
from edgekit.compress.steps.prune import Prune  # noqa: E402
from edgekit.compress.training import dataset, scoring, tasks, user_task  # noqa: E402
from edgekit.compress.training.engine import _cut  # noqa: E402
from edgekit.compress.training.settings import Training  # noqa: E402
from edgekit.compress.training.train import fit  # noqa: E402
from edgekit.errors import (  # noqa: E402
    ConfigError,
    DataError,
    FactoryError,
    SourceError,
    UnknownNameError,
    UntrustedSourceError,
    UsageError,
)
from edgekit.load import load, parse, usercode  # noqa: E402
from edgekit.types import (  # noqa: E402
    Sample,
    TorchModel,
)

FACTORY = """
import numpy as np, torch
from edgekit.types import TorchModel

class Net(torch.nn.Module):
    def __init__(self, out=3):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = torch.nn.Linear(4, 16), torch.nn.Linear(16, out)
    def forward(self, x):
        return self.b(torch.relu(self.a(x)))

def net():
    return TorchModel(module=Net(), example_inputs={"x": torch.zeros(1, 4)}, dynamic_axes={"x": {0: "batch"}})

def number():
    return Net(1), torch.zeros(1, 4)

def samples():
    random = np.random.default_rng(0)
    for i in range(90):
        yield (random.normal(size=4) * 0.3 + np.eye(4)[i % 3] * 2).astype(np.float32), i % 3

def numbers():
    for x, _ in samples():
        yield x, np.float32(x.sum())

def unlabelled():
    for x, _ in samples():
        yield x

def data(epoch):
    rows = list(samples())
    for at in range(0, 90, 30):
        part = rows[at:at + 30]
        yield torch.tensor(np.stack([x for x, _ in part])), torch.tensor([y for _, y in part])

def train_step(model, batch):
    return torch.nn.functional.cross_entropy(model(batch[0]), batch[1])

def metric(model):
    rows = list(samples())
    guess = model(torch.tensor(np.stack([x for x, _ in rows]))).argmax(1)
    return (guess == torch.tensor([y for _, y in rows])).float().mean()

class Half:
    metric_name = "x"
"""


@pytest.fixture
def user(tmp_path: Path) -> Path:
    file = tmp_path / "user.py"
    file.write_text(FACTORY)
    return file


def opened(user: Path, name: str = "net") -> TorchModel:
    model = load(parse(f"{user}:{name}"))
    assert isinstance(model, TorchModel)
    return model


def learned(task: tasks.DataTask, model: TorchModel, rate: float = 2e-2) -> float:
    fit(model.module, task, Training(epochs=20.0, rate=rate), seed=0)
    return task.metric(model.module)


def test_classification_from_data_alone(user: Path) -> None:
    model = opened(user)
    task = tasks.open_task(
        "classification(batch=16)", model, data=f"{user}:samples", evaluation=f"{user}:samples"
    )
    assert task.steps() == 6
    assert task.metric_name == "accuracy"
    assert learned(task, model) > 0.95


def test_regression_and_labels_from_the_source_itself(user: Path) -> None:
    model = opened(user, "number")
    task = tasks.open_task("regression", model, data=f"{user}:numbers", evaluation=f"{user}:numbers")
    assert task.metric(model.module) < 0.5 < 0.8 < learned(task, model)
    for kind in ("classification", "embedding"):
        model = opened(user)
        task = tasks.open_task(kind, model, data=f"{user}:unlabelled", evaluation=f"{user}:unlabelled")
        assert task.metric(model.module) == pytest.approx(1.0)
        broken = Prune(sparsity=0.9).apply(opened(user).module, Context())
        assert task.metric(broken) < 0.99


def test_token_classification_pads_and_leaves_padding_out() -> None:
    rows = [
        Sample(inputs={"ids": np.arange(1, n + 1)[None]}, label=np.arange(1, n + 1)[None] % 2)
        for n in (3, 5, 2)
    ]
    data = dataset.collect(rows, "rows")
    batch = data.batch([0, 1, 2])
    assert batch.inputs["ids"].tolist() == [[1, 2, 3, 0, 0], [1, 2, 3, 4, 5], [1, 2, 0, 0, 0]]
    assert batch.labels is not None
    assert batch.labels[2].tolist() == [1, 0, -100, -100, -100]

    class Perfect(torch.nn.Module):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.one_hot(ids % 2, 2).float()

    task = tasks.DataTask(kind=tasks.TokenClassification(), train=data, evaluation=data)
    assert task.metric(Perfect()) == 1.0
    assert task.metric_name == "f1"
    assert float(task.loss(Perfect(), batch)) == pytest.approx(math.log(1 + math.exp(-1)))


def test_f1_counts_what_is_no_outside() -> None:
    scores = torch.nn.functional.one_hot(torch.tensor([0, 1, 2, 1]), 3).float()
    labels = torch.tensor([0, 1, 1, 0])
    assert scoring.f1([scores], [labels], outside=0) == pytest.approx(2 * 1 / (3 + 2))
    assert scoring.accuracy([scores], [labels]) == 0.5
    assert scoring.f1([scores[:1]], [labels[:1]], outside=0) == 1.0


def test_halves_share_nothing_and_both_have_every_class(user: Path) -> None:
    task = tasks.open_task("classification", opened(user), evaluation=f"{user}:samples")
    halves = task.split()
    assert halves.held is not None
    a, b = halves.evaluation, halves.held
    assert len(a) + len(b) == 90
    assert not {tuple(r) for r in a.inputs["x"].tolist()} & {tuple(r) for r in b.inputs["x"].tolist()}
    assert torch.bincount(a.labels).tolist() == torch.bincount(b.labels).tolist()
    assert len({halves.fingerprint, task.fingerprint}) == 2
    assert halves.holdout_metric(opened(user).module) != halves.metric(opened(user).module) or len(a) < 60


def test_the_users_own_functions(user: Path) -> None:
    model = opened(user)
    task = tasks.open_task(f"{user}:train_step", model)
    assert task.steps() == 3
    fit(model.module, task, Training(epochs=30.0, rate=2e-2), seed=0)
    assert task.metric(model.module) > 0.95
    before = task.fingerprint
    user.write_text(FACTORY + "\n# changed\n")
    assert tasks.open_task(f"{user}:train_step", opened(user)).fingerprint != before


def test_what_the_users_functions_read_is_known(user: Path) -> None:
    """The module that a task imports is in its fingerprint; what its batches read is known once they were read."""
    (user.parent / "rows_of_mine.py").write_text("ROWS = 3\n")
    (user.parent / "more.txt").write_text("1")
    own = "\nimport rows_of_mine\nfrom pathlib import Path\ndef data():\n"
    own += "    Path(__file__).with_name('more.txt').read_text()\n    yield None, None\n"
    user.write_text(FACTORY + own)
    task = tasks.open_task(f"{user}:train_step", opened(user))
    names = lambda: {Path(d.name).name for d in usercode.reads(f"{user}:train_step").dependencies}  # noqa: E731
    assert "more.txt" not in names()
    list(task.batches(0, 0))
    assert {"user.py", "rows_of_mine.py", "more.txt"} <= names()
    before = task.fingerprint
    (user.parent / "rows_of_mine.py").write_text("ROWS = 4\n")
    assert tasks.open_task(f"{user}:train_step", opened(user)).fingerprint != before


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("clasification", UnknownNameError),
        ("classification(bach=3)", UnknownNameError),
        ("classification(batch=many)", ConfigError),
        ("classification(batch=0)", ConfigError),
        ("token-classification(metric=bleu)", ConfigError),
        ("classification", UsageError),
        ("{user}:Half", SourceError),
        ("{user}:nothing", SourceError),
    ],
)
def test_wrong_tasks_are_refused(user: Path, text: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        tasks.open_task(text.replace("{user}", str(user)), opened(user))


def test_labels_that_do_not_fit_are_named(user: Path) -> None:
    model = opened(user)
    task = tasks.open_task(
        "token-classification", model, data=f"{user}:samples", evaluation=f"{user}:samples"
    )
    with pytest.raises(DataError, match="do not go with"):
        task.loss(model.module, next(iter(task.batches(0, 0))))
    mixed = [Sample(inputs={"x": np.zeros((1, 2))}, label=1), Sample(inputs={"x": np.zeros((1, 2))})]
    with pytest.raises(DataError, match="some samples"):
        dataset.collect(mixed, "mixed")
    with pytest.raises(DataError, match="a label is"):
        dataset.collect([Sample(inputs={"x": np.zeros((1, 2))}, label="cat")], "words")


def test_parts_of_a_batch_are_all_of_it() -> None:
    batch = dataset.Batch(inputs={"x": torch.arange(7.0)[:, None]}, labels=torch.arange(7))
    parts = [_cut(batch, rank, 3) for rank in range(3)]
    assert torch.equal(torch.cat([p.labels for p, _ in parts]), batch.labels)
    assert sum(weight for _, weight in parts) == pytest.approx(1.0)
    whole, weight = _cut(batch, 1, 9)  # fewer rows than processes: all use all
    assert torch.equal(whole.labels, batch.labels)
    assert weight == pytest.approx(1 / 9)


def saved(user: Path, folder: Path) -> torch.nn.Module:
    model, steps, context = opened(user), (Prune(sparsity=0.7),), Context()
    module, report = run(model.module, steps, context)
    save(folder, module, steps, report, context, origin=plan.origin(parse(f"{user}:net"), folder))
    return module


def test_a_plan_is_a_source_where_it_was_made(user: Path, tmp_path: Path) -> None:
    module = saved(user, tmp_path / "plan")
    spec = parse(str(tmp_path / "plan"))
    assert spec.kind == "plan"
    with pytest.raises(UntrustedSourceError, match=r"user\.py"):
        load(spec)
    trusted = load(spec, trust=True)
    plan.remember(tmp_path / "plan")
    again = load(spec)
    for model in (trusted, again):
        assert isinstance(model, TorchModel)
        assert model.dynamic_axes == {"x": {0: "batch"}}
        for name, tensor in module.state_dict().items():
            assert torch.equal(model.module.state_dict()[name], tensor)


def test_a_plan_of_a_source_that_changed_is_refused(user: Path, tmp_path: Path) -> None:
    saved(user, tmp_path / "plan")
    user.write_text(FACTORY.replace("16", "17"))
    with pytest.raises(SourceError, match="do not fit"):
        load(parse(str(tmp_path / "plan")), trust=True)
    (tmp_path / "plan" / "weights.safetensors").write_bytes(b"broken")
    with pytest.raises(SourceError, match="is not the file"):
        load(parse(str(tmp_path / "plan")), trust=True)


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"steps": []}', '{"steps": [{"name": "prnue", "options": {}}]}']
)
def test_a_broken_plan_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises((ConfigError, UnknownNameError)):
        load(parse(str(tmp_path)), trust=True)


def test_plans_are_the_same_bytes_and_hold_no_code(user: Path, tmp_path: Path) -> None:
    saved(user, tmp_path / "a")
    saved(user, tmp_path / "b")
    names = {p.name for p in (tmp_path / "a").iterdir()}
    assert names == {"plan.json", "weights.safetensors", "plan.safetensors"}
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    document = json.loads((tmp_path / "a" / "plan.json").read_text())
    assert document["source"] == {
        "text": f"{user}:net", "kind": "factory", "path": "../user.py", "attribute": "net"
    }  # fmt: skip
    (tmp_path / "m.onnx").write_bytes(b"")
    with pytest.raises(SourceError, match="not a PyTorch module"):
        plan.origin(parse(str(tmp_path / "m.onnx")), tmp_path)


class Broken:
    """The user's task; each part raises when it is asked to."""

    metric_name = "accuracy"
    fingerprint = "broken"

    def __init__(self, where: str = "") -> None:
        self.where = where

    def said(self, name: str, value: object) -> object:
        if self.where == name:
            raise KeyError("no such column")
        return value

    def steps(self) -> int:
        return 1

    def batches(self, epoch: int, seed: int) -> Iterator[torch.Tensor]:
        yield torch.ones(4, 2)
        self.said("batches", None)

    def loss(self, model: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
        self.said("loss", None)
        return model(batch).square().mean()

    def metric(self, model: torch.nn.Module) -> float:
        return float("nan") if self.where == "nan" else float(str(self.said("metric", 0.5)))


@pytest.mark.parametrize("where", ["", "batches", "loss", "metric", "nan"])
def test_what_the_users_task_raises_is_theirs(where: str) -> None:
    guarded = user_task.Guarded(Broken(where), "own.py:Broken")
    assert not hasattr(guarded, "split")
    assert guarded.metric_name == "accuracy"
    steps = (from_options("prune", {"training.epochs": 2.0}),)
    context = Context(task=guarded)  # type: ignore[arg-type]
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    if not where:
        assert run(model, steps, context)[1].steps[0].after.metric == 0.5
        return
    wanted = DataError if where == "nan" else FactoryError
    with pytest.raises(wanted, match="nan" if where == "nan" else f"own.py:Broken: {where} raised KeyError"):
        run(model, steps, context)


def test_labels_that_no_score_stands_for_are_refused() -> None:
    with pytest.raises(DataError, match="labels from 0 to 7 with 4 scores"):
        scoring.accuracy([torch.rand(3, 4)], [torch.tensor([0, 7, -100])])


def test_the_analysis_finds_what_was_planted() -> None:
    random = torch.Generator().manual_seed(0)

    class Planted(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.low, self.sparse, self.heavy, self.plain = (torch.nn.Linear(64, 64) for _ in range(4))
            with torch.no_grad():
                self.low.weight.copy_(
                    torch.randn(64, 4, generator=random) @ torch.randn(4, 64, generator=random)
                )
                keep = torch.rand(64, 64, generator=random) > 0.6
                self.sparse.weight.mul_(keep)
                self.heavy.weight.copy_(torch.randn(64, 64, generator=random) ** 5)
                self.plain.weight.copy_(torch.randn(64, 64, generator=random))
                self.plain.weight[:3] = 0
                self.plain.bias[:3] = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.plain(torch.relu(self.heavy(torch.relu(self.sparse(torch.relu(self.low(x)))))))

    model = Planted()
    layers = {
        layer.name: layer
        for layer in analysis.analyze(model, lambda m: m(torch.randn(32, 64, generator=random)))
    }
    assert layers["low"].weights.rank < 0.1
    assert layers["low"].advice[0].method == "low-rank"
    assert layers["sparse"].weights.density == pytest.approx(0.4, abs=0.05)
    assert "prune" in [a.method for a in layers["sparse"].advice]
    assert layers["heavy"].weights.kurtosis > 20
    assert "cluster" in [a.method for a in layers["heavy"].advice]
    plain = layers["plain"]
    assert plain.activations is not None
    assert plain.activations.dead == plain.weights.dead_outputs == 3
    assert plain.advice[0].method == "shrink"
    assert plain.weights.kurtosis == pytest.approx(0.0, abs=0.5)
    assert sum(layer.share for layer in layers.values()) == pytest.approx(64 / 65, abs=0.01)
    quiet = analysis.analyze(model)
    assert all(layer.activations is None for layer in quiet)
    with pytest.raises(SourceError):
        analysis.analyze(torch.nn.ReLU())


def test_every_method_that_can_be_searched_has_reasons() -> None:
    """A model in which something speaks for each step."""
    random = torch.Generator().manual_seed(0)

    class Block(torch.nn.Module):
        def __init__(self, share: float) -> None:
            super().__init__()
            self.inner, self.share = torch.nn.Sequential(torch.nn.Linear(64, 64)), share

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.share * self.inner(x)

    class Many(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = torch.nn.Sequential(Block(0.01), Block(1.0))
            self.low, self.heavy, self.sparse, self.peaked = (torch.nn.Linear(64, 64) for _ in range(4))
            self.wide = torch.nn.Linear(64, 8192)
            with torch.no_grad():
                for layer in (self.peaked, self.wide, *(b.inner[0] for b in self.blocks)):
                    layer.weight.copy_(torch.randn(layer.weight.shape, generator=random) / 8)
                self.low.weight.copy_(torch.ones(64, 1) @ torch.randn(1, 64, generator=random) / 8)
                self.heavy.weight.copy_(torch.randn(64, 64, generator=random) ** 5 / 99)
                self.heavy.weight[:10] *= 1e-3
                self.sparse.weight.mul_(torch.rand(64, 64, generator=random) > 0.6)
                self.peaked.bias[0] = 1e3

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.heavy(self.blocks(x)) + self.low(x) + self.sparse(x)
            return self.wide(self.peaked(x))

    from edgekit.compress.registry import registry
    from edgekit.compress.structured.blocks import influences
    from edgekit.search import space

    model, x = Many(), torch.randn(32, 64, generator=random)
    found = analysis.findings(analysis.analyze(model, lambda m: m(x)), influences(model, {"x": x}))
    assert list(found.blocks) == ["blocks.0", "blocks.1"]
    searched = [name for name in registry() if space.space(name)]
    assert set(searched) == set(registry()) - {"fold"}  # which comes before others where it has to
    for name in searched:
        assert analysis.reasons(found, name), name


def test_activation_statistics_are_those_of_all_values() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(8, 4))
    batches = [torch.randn(16, 8, generator=torch.Generator().manual_seed(i)) for i in range(3)]

    def feed(module: torch.nn.Module) -> None:
        for batch in batches:
            module(batch)

    found = analysis.analyze(model, feed)[0].activations
    assert found is not None
    with torch.no_grad():
        values = model(torch.cat(batches)).double().flatten()
    centred = values - values.mean()
    variance = centred.square().mean()
    assert found.mean == pytest.approx(float(values.mean()))
    assert found.std == pytest.approx(float(variance.sqrt()))
    assert found.kurtosis == pytest.approx(float((centred**4).mean() / variance**2 - 3), abs=1e-4)
