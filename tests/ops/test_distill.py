"""Distillation: each part of the loss against its definition, and students that learn what their teacher knows."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from edgekit.compress.registry import parse
from edgekit.compress.run import run
from edgekit.compress.step import Context, spell
from edgekit.compress.steps import distill_synthetic
from edgekit.compress.steps.distill import Distill
from edgekit.compress.steps.distill_lessons import relation_loss
from edgekit.compress.steps.distill_states import attention_loss, feature_loss, find_pairs, stack
from edgekit.compress.training.settings import Training
from edgekit.compress.training.teacher import soft_loss
from edgekit.compress.training.train import fit
from edgekit.errors import ConfigError, SourceError, UsageError


class Net(nn.Module):
    """A stack of equal blocks between a stem and a head."""

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        self.stem = nn.Linear(6, width)
        self.blocks = nn.Sequential(
            *(nn.Sequential(nn.Linear(width, width), nn.Tanh()) for _ in range(blocks))
        )
        self.head = nn.Linear(width, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.stem(x)))


@dataclass
class Points:
    """Labels from a random network; few of them are right, so that they alone teach little."""

    x: torch.Tensor
    labels: torch.Tensor
    truth: torch.Tensor
    fingerprint: str = "points"
    metric_name: str = "agreement"

    def steps(self) -> int:
        return len(self.x) // 32

    def batches(self, epoch: int, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        order = torch.randperm(len(self.x), generator=torch.Generator().manual_seed(seed + epoch))
        return ((self.x[rows], self.labels[rows]) for rows in order.split(32))

    def loss(self, model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    def metric(self, model: nn.Module) -> float:
        with torch.no_grad():
            return float((model(self.x).argmax(1) == self.truth).float().mean())


@pytest.fixture(scope="module")
def lesson() -> tuple[Net, Points]:
    torch.manual_seed(0)
    teacher = Net(24, 4).eval()
    with torch.no_grad():
        for p in teacher.parameters():
            p.mul_(2.0)
        x = torch.randn(512, 6)
        truth = teacher(x).argmax(1)
    noise = torch.rand(512) < 0.8
    labels = torch.where(noise, torch.randint(0, 4, (512,)), truth)
    return teacher, Points(x=x, labels=labels, truth=truth)


def taught(step: Distill, lesson: tuple[Net, Points], student: nn.Module) -> float:
    teacher, points = lesson
    return points.metric(step.apply(student, Context(task=points, original=copy.deepcopy(teacher))))


def small() -> Net:
    torch.manual_seed(1)
    return Net(12, 2)


TRAINING = Training(epochs=15.0, rate=1e-2)


def test_soft_beats_labels(lesson: tuple[Net, Points]) -> None:
    plain = small()
    fit(plain, lesson[1], TRAINING, seed=0)
    soft = taught(Distill(soft=1.0, labels=0.0, training=TRAINING), lesson, small())
    assert soft > lesson[1].metric(plain) + 0.05
    assert soft > 0.85


@pytest.mark.parametrize(
    "step",
    [
        Distill(soft=0.0, hard=1.0, labels=0.0, training=TRAINING),
        Distill(soft=0.5, features=1.0, labels=0.0, training=TRAINING),
        Distill(soft=0.5, relations=1.0, labels=0.1, confidence=0.01, training=TRAINING),
        Distill(soft=1.0, labels=0.0, kind="values", training=TRAINING),
    ],
    ids=["hard", "features", "relations", "values"],
)
def test_each_part_teaches(lesson: tuple[Net, Points], step: Distill) -> None:
    before = lesson[1].metric(small())
    assert taught(step, lesson, small()) > max(0.75, before + 0.2)


def test_the_teacher_is_the_model_before_the_first_step(lesson: tuple[Net, Points]) -> None:
    teacher, points = lesson
    steps = [
        parse("prune(sparsity=0.7)"),
        Distill(soft=1.0, labels=0.0, training=Training(epochs=3.0, rate=3e-3)),
    ]
    before = {n: t.clone() for n, t in teacher.state_dict().items()}
    model, report = run(copy.deepcopy(teacher), steps, Context(task=points))
    assert report.steps[0].after.metric is not None
    assert report.steps[1].after.metric is not None
    assert report.steps[1].after.metric > report.steps[0].after.metric
    assert all(torch.equal(teacher.state_dict()[n], t) for n, t in before.items())
    assert model is not teacher


def test_no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inputs made of a network with batch norms have the statistics of the data that it was trained on, and
    teach a student far better than noise."""
    torch.manual_seed(0)
    teacher = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(32, 3),
    )  # fmt: skip
    images = torch.randn(256, 1, 8, 8) * 2 + 3
    for _ in range(30):
        teacher(images)
    made = distill_synthetic.make(teacher.eval(), {"image": images[:1]}, 0)["image"]
    assert abs(float(made.mean()) - 3) < 0.3
    assert abs(float(made.std()) - 2) < 0.4

    def error() -> float:
        torch.manual_seed(5)
        student = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)
        )
        step = Distill(
            data="synthetic",
            synthetic=128,
            soft=1.0,
            labels=0.0,
            kind="values",
            training=Training(epochs=20.0, rate=1e-2),
        )
        student = step.apply(student, Context(example_inputs={"image": images[:1]}, original=teacher))
        with torch.no_grad():
            wanted = teacher(images)
            return float((student(images) - wanted).square().mean() / wanted.var())

    dreamt = error()
    monkeypatch.setattr(distill_synthetic, "UPDATES", 0)
    assert dreamt < error() / 4


def test_blocks_are_paired() -> None:
    pairs = find_pairs(Net(8, 3), Net(8, 6), "")
    assert [(p.student, p.teacher) for p in pairs] == [
        ("blocks.0", "blocks.1"), ("blocks.1", "blocks.3"), ("blocks.2", "blocks.5")
    ]  # fmt: skip
    assert stack(nn.Linear(2, 2)) == []
    with pytest.raises(ConfigError, match="no stack"):
        find_pairs(nn.Linear(2, 2), Net(8, 3), "")
    with pytest.raises(ConfigError, match="nowhere"):
        find_pairs(Net(8, 3), Net(8, 3), "nowhere=head")


def test_losses_are_zero_for_equals_and_follow_their_definition() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(5, 7), torch.randn(5, 7)
    p, q = torch.softmax(y / 3, -1), torch.softmax(x / 3, -1)
    assert torch.isclose(soft_loss(x, y, 3.0), 9 * (p * (p / q).log()).sum(-1).mean(), rtol=1e-5)
    assert soft_loss(x, x, 2.0).abs() < 1e-6
    assert relation_loss(x, 3 * x).abs() < 1e-6  # relations do not know a scale
    assert relation_loss(x, y) > 0.01
    states = torch.randn(2, 4, 6)
    assert feature_loss(5 * states, states).abs() < 1e-6
    assert attention_loss(states, states).abs() < 1e-6
    image = torch.randn(2, 3, 4, 4)
    assert attention_loss(torch.cat([image, image], 1), image).abs() < 1e-6
    with pytest.raises(SourceError, match="do not match"):
        feature_loss(torch.randn(2, 4, 6), torch.randn(2, 5, 6))


def test_refusals(lesson: tuple[Net, Points]) -> None:
    teacher, points = lesson
    with pytest.raises(ConfigError):
        Distill(temperature=0.0)
    with pytest.raises(ConfigError):
        Distill(kind="values", hard=1.0)
    with pytest.raises(UsageError, match="teacher"):
        Distill().apply(small(), Context(task=points))
    with pytest.raises(UsageError, match="train"):
        Distill().apply(small(), Context(original=teacher))
    with pytest.raises(SourceError, match="the student gives"):
        taught(Distill(training=Training(epochs=1.0)), (Net(8, 3).stem, points), small())  # type: ignore[arg-type]
    step = parse("distill(soft=0.5;temperature=4.0;training.epochs=2.0)")
    assert spell(step) == "distill(soft=0.5;temperature=4.0;training.epochs=2.0)"
