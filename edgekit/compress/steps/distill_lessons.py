"""What ``distill`` trains: the task's loss, and how far the student is from its teacher.

The teacher sees exactly what the student is given: a hook takes the student's arguments from within the
task's loss. So any task works, whatever its batches look like.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional

from edgekit.compress.step import Context, Tensors
from edgekit.compress.steps.distill import Distill
from edgekit.compress.steps.distill_states import Pair, find_pairs, projections, state_loss
from edgekit.compress.steps.distill_synthetic import Synthetic
from edgekit.compress.training.task import AnyBatch, DerivedTask, Task
from edgekit.compress.training.teacher import Watch, answers, follow, matched, soft_loss
from edgekit.compress.training.train import fit
from edgekit.errors import ConfigError, SourceError, UsageError
from edgekit.load import load, parse
from edgekit.types import TorchModel


def apply(step: Distill, model: nn.Module, context: Context) -> nn.Module:
    """The trained student.

    Raises ``UsageError`` without a task (or inputs to make synthetic ones like), ``SourceError`` for a
    teacher that does not take the student's inputs or gives other outputs.
    """
    student = restore(step, model, {})
    teacher = _teacher(step, context)
    pairs: tuple[Pair, ...] = ()
    if step.features or step.attention:
        pairs = find_pairs(student, teacher, step.pairs)
    task = _task(step, teacher, context)
    maps = projections(student, teacher, pairs, task, context.seed) if step.features else {}
    fit(
        _learner(student, maps),
        Lessons(step=step, teacher=teacher, pairs=pairs, task=task),
        step.training,
        seed=context.seed,
    )
    return student.eval()


def restore(step: Distill, model: nn.Module, tensors: Tensors) -> nn.Module:
    """The student before training: ``model``, or what the factory gives."""
    del tensors
    return _module(step.student, "student") if step.student else model


def _teacher(step: Distill, context: Context) -> nn.Module:
    teacher = _module(step.teacher, "teacher") if step.teacher else context.original
    if teacher is None:
        raise UsageError(
            "distill has no teacher", hint="name one (teacher=file.py:factory), or run it within a recipe"
        )
    for parameter in teacher.parameters():
        parameter.requires_grad_(False)
    return teacher.eval()


def _task(step: Distill, teacher: nn.Module, context: Context) -> Task:
    if step.data == "task":
        return context.needs_task(step.NAME)
    example = context.needs_example("synthetic data")
    if step.labels:
        raise ConfigError("synthetic inputs have no labels", hint="set labels=0")
    return Synthetic(
        teacher=teacher, like=example, count=step.synthetic, seed=context.seed, judge=context.task
    )


def _module(text: str, role: str) -> nn.Module:
    """The module of the SOURCE ``text``. Raises ``SourceError`` for one that is no PyTorch module."""
    loaded = load(parse(text))
    if not isinstance(loaded, TorchModel):
        raise SourceError(f"the {role} {text} is no PyTorch module", hint="name a factory")
    return loaded.module


def _learner(student: nn.Module, maps: Mapping[str, nn.Module]) -> nn.Module:
    """Student and projections as one module, so that both are trained."""
    learner = nn.Module()
    learner.add_module("student", student)
    learner.add_module("maps", nn.ModuleDict(dict(maps)))
    return learner


class Lessons(DerivedTask):
    """The task seen through the teacher, for the student's training."""

    def __init__(self, *, step: Distill, teacher: nn.Module, pairs: tuple[Pair, ...], task: Task) -> None:
        super().__init__(task)
        self.step, self.teacher, self.pairs = step, teacher, pairs

    def metric(self, model: nn.Module) -> float:
        """The student's quality."""
        return self.task.metric(model.get_submodule("student"))

    def loss(self, model: nn.Module, batch: AnyBatch) -> torch.Tensor:
        """The weighted sum of all parts."""
        student = model.get_submodule("student")
        follow(self.teacher, student)
        with Watch(student, [p.student for p in self.pairs]) as own:
            labelled = self.task.loss(student, batch)
        other = answers(self.teacher, own, [p.teacher for p in self.pairs])
        # The task's loss is computed even where labels=0: it is what calls the student.
        total = self.step.labels * labelled + self._outputs(own.output, other.output)
        if self.pairs:
            total = total + state_loss(self.step, model, self.pairs, own, other)
        return total

    def _outputs(self, own: object, other: object) -> torch.Tensor:
        """Soft, hard and relational parts over the matched output."""
        step = self.step
        student, teacher = matched(own, other, step.output)
        total = student.new_zeros(())
        if step.soft and step.kind == "values":
            total = total + step.soft * functional.mse_loss(student, teacher)
        elif step.soft:
            total = total + step.soft * soft_loss(student, teacher, step.temperature)
        if step.hard:
            classes = student.shape[-1]
            total = total + step.hard * functional.cross_entropy(
                student.reshape(-1, classes), teacher.reshape(-1, classes).argmax(-1)
            )
        if step.relations:
            total = total + step.relations * relation_loss(student.flatten(1), teacher.flatten(1))
        if step.confidence:
            log = functional.log_softmax(student, -1)
            total = total + step.confidence * (log.exp() * log).sum(-1).mean()
        return total


def relation_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Huber loss on distances (of mean 1) and angles between samples ``[N, D]`` (Park et al. 2019, weights 1 : 2)."""

    def distances(x: torch.Tensor) -> torch.Tensor:
        square = x.square().sum(1)
        far = (square[:, None] + square[None] - 2 * x @ x.T).clamp_min(1e-12).sqrt()
        # The root's gradient at zero is infinite: hence the small number, and no distance of a sample to itself.
        far = far * (1 - torch.eye(len(x), device=x.device, dtype=x.dtype))
        some = far[far > 1e-5]
        return far / (some.mean() if some.numel() else 1.0)

    def angles(x: torch.Tensor) -> torch.Tensor:
        unit = functional.normalize(x[None] - x[:, None], dim=-1)
        return torch.bmm(unit, unit.transpose(1, 2))

    if len(student) < 2:
        return student.sum() * 0
    near = functional.smooth_l1_loss(distances(student), distances(teacher))
    return near + 2 * functional.smooth_l1_loss(angles(student), angles(teacher))
