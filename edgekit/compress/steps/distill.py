"""Distillation: a student learns from a teacher's outputs, inner states and relations beside the labels.

Which parts count is a matter of weights, all of them options of :class:`Distill`:

- ``soft``: Kullback-Leibler divergence to the teacher's scores at a temperature, times its square (Hinton,
  Vinyals & Dean, "Distilling the knowledge in a neural network", 2015); for outputs that are no scores
  (``kind="values"``) the mean squared error.
- ``hard``: cross entropy to the class that the teacher takes.
- ``labels``: the task's own loss.
- ``features``, ``attention``: inner states (:mod:`edgekit.compress.steps.distill_states`).
- ``relations``: distances and angles between the samples of a batch (Park et al., "Relational knowledge
  distillation", CVPR 2019).
- ``confidence``: a penalty on certain outputs (Pereyra et al. 2017), which regularises a small student.

The teacher sees exactly what the student is given: a hook takes the student's arguments from within the
task's loss. So any task works, whatever its batches look like. Where there is no data (``data="synthetic"``)
inputs are made from the teacher itself (:mod:`edgekit.compress.steps.distill_synthetic`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from edgekit.compress.training.train import Training, fit
from edgekit.errors import ConfigError, SourceError, UsageError

if TYPE_CHECKING:
    import torch

    from edgekit.compress.step import Context
    from edgekit.compress.steps.distill_states import Pair
    from edgekit.compress.training.train import Task

KINDS = ("scores", "values")
DATA = ("task", "synthetic")


@dataclass(frozen=True, kw_only=True)
class Distill:
    """Train a student to do as its teacher does.

    ``teacher``: a SOURCE whose factory gives the teacher; without it the model as it was before the recipe's
    first step. ``student``: a SOURCE whose factory gives another network; without it the model as the steps
    before left it (pruned, with fewer layers …). ``pairs``: modules whose outputs are matched,
    ``"student.name=teacher.name,…"``; without it blocks of the longest stack in both, spread evenly.
    ``output``: the output to match where there are several. ``synthetic``: how many inputs to make where
    ``data="synthetic"``.
    """

    NAME: ClassVar[str] = "distill"
    NEEDS_ORIGINAL: ClassVar[bool] = True

    teacher: str = ""
    student: str = ""
    soft: float = 0.9
    temperature: float = 2.0
    hard: float = 0.0
    labels: float = 0.1
    features: float = 0.0
    attention: float = 0.0
    relations: float = 0.0
    confidence: float = 0.0
    pairs: str = ""
    kind: str = "scores"
    output: str = ""
    data: str = "task"
    synthetic: int = 256
    training: Training = field(default_factory=lambda: Training(epochs=1.0))

    def __post_init__(self) -> None:
        weights = (self.soft, self.hard, self.labels, self.features, self.attention, self.relations)
        if min(*weights, self.confidence) < 0 or not any(weights) or self.temperature <= 0:
            raise ConfigError(
                f"distill with the weights {weights} and temperature {self.temperature}",
                hint="weights must not be negative, one of them must be positive, as must the temperature",
            )
        if self.kind not in KINDS or self.data not in DATA:
            raise ConfigError(
                f"distill with kind={self.kind} and data={self.data}",
                hint=f"kind is {' or '.join(KINDS)}, data {' or '.join(DATA)}",
            )
        if self.kind == "values" and (self.hard or self.confidence):
            raise ConfigError("values have no classes", hint="set hard=0 and confidence=0, or kind=scores")

    def apply(self, model: torch.nn.Module, context: Context) -> torch.nn.Module:
        """The trained student.

        Raises ``UsageError`` without a task (or inputs to make synthetic ones like), ``SourceError`` for a
        teacher that does not take the student's inputs or gives other outputs.
        """
        from edgekit.compress.steps.distill_states import find_pairs, projections

        student = self.restore(model, {})
        teacher = self._teacher(context)
        pairs: tuple[Pair, ...] = ()
        if self.features or self.attention:
            pairs = find_pairs(student, teacher, self.pairs)
        task = self._task(teacher, context)
        lessons = Lessons(step=self, teacher=teacher, pairs=pairs, task=task)
        learner = _Learner(
            student, projections(student, teacher, pairs, task, context.seed) if self.features else {}
        )
        fit(learner, lessons, self.training, seed=context.seed)
        return student.eval()

    def restore(self, model: torch.nn.Module, tensors: Mapping[str, torch.Tensor]) -> torch.nn.Module:
        """The student before training: ``model``, or what the factory gives."""
        del tensors
        return _module(self.student, "student") if self.student else model

    def _teacher(self, context: Context) -> torch.nn.Module:
        teacher = _module(self.teacher, "teacher") if self.teacher else context.original
        if teacher is None:
            raise UsageError(
                "distill has no teacher", hint="name one (teacher=file.py:factory), or run it within a recipe"
            )
        for parameter in teacher.parameters():
            parameter.requires_grad_(False)
        return teacher.eval()

    def _task(self, teacher: torch.nn.Module, context: Context) -> Task:
        if self.data == "task":
            return context.needs_task(self.NAME)
        from edgekit.compress.steps.distill_synthetic import Synthetic

        if not context.example_inputs:
            raise UsageError("synthetic data needs example inputs", hint="give the source's factory some")
        if self.labels:
            raise ConfigError("synthetic inputs have no labels", hint="set labels=0")
        return Synthetic(
            teacher=teacher,
            like=context.example_inputs,
            count=self.synthetic,
            seed=context.seed,
            judge=context.task,
        )


class Lessons:
    """The task seen through the teacher: :class:`~edgekit.compress.training.train.Task` for the student's training."""

    def __init__(
        self, *, step: Distill, teacher: torch.nn.Module, pairs: tuple[Pair, ...], task: Task
    ) -> None:
        self.step, self.teacher, self.pairs, self.task = step, teacher, pairs, task

    @property
    def fingerprint(self) -> str:
        """The task's."""
        return self.task.fingerprint

    @property
    def metric_name(self) -> str:
        """The task's."""
        return self.task.metric_name

    def steps(self) -> int:
        """The task's."""
        return self.task.steps()

    def batches(self, epoch: int, seed: int) -> Iterable[Any]:
        """The task's."""
        return self.task.batches(epoch, seed)

    def metric(self, model: torch.nn.Module) -> float:
        """The student's quality."""
        return self.task.metric(model.get_submodule("student"))

    def loss(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        """The weighted sum of all parts."""
        import torch

        from edgekit.compress.steps.distill_states import Watch, state_loss

        student = model.get_submodule("student")
        self._follow(student)
        with Watch(student, [p.student for p in self.pairs]) as own:
            labelled = self.task.loss(student, batch)
        with torch.no_grad(), Watch(self.teacher, [p.teacher for p in self.pairs]) as other:
            try:
                self.teacher(*own.args, **own.kwargs)
            except (RuntimeError, TypeError, ValueError) as error:
                raise SourceError(
                    f"the teacher does not take the student's inputs: {error}",
                    hint="teacher and student must have the same inputs",
                ) from error
        total = self.step.labels * labelled + self._outputs(own.output, other.output)
        if self.pairs:
            total = total + state_loss(self.step, model, self.pairs, own, other)
        return total

    def _outputs(self, own: Any, other: Any) -> torch.Tensor:
        """Soft, hard and relational parts over the matched output."""
        from torch.nn import functional

        step = self.step
        student, teacher = pick(own, step.output), pick(other, step.output)
        if student.shape != teacher.shape:
            raise SourceError(
                f"the student gives {list(student.shape)}, the teacher {list(teacher.shape)}",
                hint="name the output that both have (output=NAME)",
            )
        student, teacher = student.float(), teacher.float()
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

    def _follow(self, student: torch.nn.Module) -> None:
        """The teacher goes where the student is."""
        here = next((p.device for p in student.parameters()), None)
        there = next((p.device for p in self.teacher.parameters()), None)
        if here is not None and here != there:
            self.teacher.to(here)


def soft_loss(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """``T² · KL(teacher / T ‖ student / T)`` over the last axis, a mean over the rest (Hinton et al. 2015)."""
    from torch.nn import functional

    classes = student.shape[-1]
    log_student = functional.log_softmax(student.reshape(-1, classes) / temperature, -1)
    log_teacher = functional.log_softmax(teacher.reshape(-1, classes) / temperature, -1)
    divergence = functional.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
    return divergence * temperature**2


def relation_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Huber loss on distances (of mean 1) and angles between samples ``[N, D]`` (Park et al. 2019, weights 1 : 2)."""
    import torch
    from torch.nn import functional

    def distances(x: torch.Tensor) -> torch.Tensor:
        square = x.square().sum(1)
        far = (square[:, None] + square[None] - 2 * x @ x.T).clamp_min(1e-12).sqrt()
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


def pick(result: Any, name: str) -> torch.Tensor:
    """The output called ``name``, or the first one of floats. Raises ``SourceError`` where there is none."""
    from edgekit.graph.nested import flatten

    found = {k: v for k, v in flatten(result).items() if v.is_floating_point()}
    if name and name not in found:
        raise SourceError(
            f"there is no output {name!r}", hint=f"outputs: {', '.join(found) or 'none of floats'}"
        )
    if not found:
        raise SourceError("the model gives no floats to learn from", hint="distill needs scores or values")
    return found[name] if name else next(iter(found.values()))


def _module(text: str, role: str) -> torch.nn.Module:
    from edgekit.load import load, parse
    from edgekit.types import TorchModel

    loaded = load(parse(text))
    if not isinstance(loaded, TorchModel):
        raise SourceError(f"the {role} {text} is no PyTorch module", hint="name a factory")
    return loaded.module


def _Learner(student: torch.nn.Module, maps: Mapping[str, torch.nn.Module]) -> torch.nn.Module:  # noqa: N802
    """Student and projections as one module, so that both are trained."""
    import torch

    learner = torch.nn.Module()
    learner.add_module("student", student)
    learner.add_module("maps", torch.nn.ModuleDict(dict(maps)))
    return learner
