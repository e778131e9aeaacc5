"""A teacher beside the labels, in the training of any step: the model as it was before the recipe's first step.

What a step takes away is learnt back from what the whole model says of each input (Hinton, Vinyals & Dean,
"Distilling the knowledge in a neural network", 2015): for scores the Kullback-Leibler divergence at a temperature,
for values the mean squared error. The teacher sees exactly what the student is given: a hook takes the student's
arguments from within the task's loss. So any task works, whatever its batches look like.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import nn
from torch.nn import functional

from edgekit.compress.step import Context
from edgekit.compress.training.settings import Training
from edgekit.compress.training.task import AnyBatch, DerivedTask, Task
from edgekit.errors import SourceError, UsageError
from edgekit.graph.nested import flatten


def taught(name: str, training: Training, context: Context) -> Task:
    """What the step ``name`` is trained on: the task, with a teacher beside it where ``training.teacher`` says so.

    Raises ``UsageError`` without a task, or outside a recipe, where there is no teacher.
    """
    task = context.needs_task(name)
    if not training.teacher:
        return task
    if context.original is None:
        raise UsageError(
            f"{name} has no teacher", hint="run it within a recipe, or give the context the original model"
        )
    return Taught(task, context.original, training)


class Taught(DerivedTask):
    """A task of whose loss ``training.teacher`` is the part of a teacher."""

    def __init__(self, task: Task, teacher: nn.Module, training: Training) -> None:
        super().__init__(task)
        self.teacher, self.training = teacher.eval(), training
        for parameter in teacher.parameters():
            parameter.requires_grad_(False)

    def loss(self, model: nn.Module, batch: AnyBatch) -> torch.Tensor:
        """The mean of the task's and the teacher's, weighted."""
        follow(self.teacher, model)
        with Watch(model, ()) as own:
            labelled = self.task.loss(model, batch)
        other = answers(self.teacher, own)
        student, teacher = matched(own.output, other.output, "")
        if self.training.kind == "values":
            taken = functional.mse_loss(student, teacher)
        else:
            taken = soft_loss(student, teacher, self.training.temperature)
        return (1 - self.training.teacher) * labelled + self.training.teacher * taken


class Watch:
    """Keeps a call's arguments and result, and the outputs of some modules, while it is entered."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        self.model, self.names = model, names
        self.states: dict[str, torch.Tensor] = {}
        self.args: tuple[Any, ...] = ()
        self.kwargs: dict[str, Any] = {}
        self._output: object = None

    def __enter__(self) -> Self:
        def whole(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: object) -> None:
            self.args, self.kwargs, self._output = args, kwargs, output

        self.handles = [self.model.register_forward_hook(whole, with_kwargs=True)]
        for name in self.names:
            self.handles.append(self.model.get_submodule(name).register_forward_hook(self._keep(name)))
        return self

    def __exit__(self, *exc: object) -> None:
        for handle in self.handles:
            handle.remove()

    @property
    def output(self) -> object:
        """The result. Raises ``SourceError`` if the model was never called."""
        if self._output is None:
            raise SourceError(
                "the task's loss does not call the model", hint="call model(…), not one of its parts"
            )
        return self._output

    def _keep(self, name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(_: nn.Module, __: object, output: object) -> None:
            floats = [t for t in flatten(output).values() if t.is_floating_point()]
            if floats:
                self.states[name] = floats[0]

        return hook


def answers(teacher: nn.Module, own: Watch, names: Sequence[str] = ()) -> Watch:
    """What ``teacher`` makes of what the student was given. Raises ``SourceError`` where it does not take it."""
    with torch.no_grad(), Watch(teacher, names) as other:
        try:
            teacher(*own.args, **own.kwargs)
        except (RuntimeError, TypeError, ValueError) as error:
            raise SourceError(
                f"the teacher does not take the student's inputs: {error}",
                hint="teacher and student must have the same inputs",
            ) from error
    return other


def matched(own: object, other: object, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The output ``name`` (or the first of floats) of student and teacher. Raises ``SourceError`` where they differ in
    shape."""
    student, teacher = pick(own, name), pick(other, name)
    if student.shape != teacher.shape:
        raise SourceError(
            f"the student gives {list(student.shape)}, the teacher {list(teacher.shape)}",
            hint="name the output that both have (output=NAME)",
        )
    return student.float(), teacher.float()


def pick(result: object, name: str) -> torch.Tensor:
    """The output called ``name``, or the first one of floats. Raises ``SourceError`` where there is none."""
    floats = {k: v for k, v in flatten(result).items() if v.is_floating_point()}
    if name and name not in floats:
        raise SourceError(
            f"there is no output {name!r}", hint=f"outputs: {', '.join(floats) or 'none of floats'}"
        )
    if not floats:
        raise SourceError("the model gives no floats to learn from", hint="a teacher needs scores or values")
    return floats[name] if name else next(iter(floats.values()))


def follow(teacher: nn.Module, student: nn.Module) -> None:
    """The teacher goes where the student is."""
    here = next((p.device for p in student.parameters()), None)
    there = next((p.device for p in teacher.parameters()), None)
    if here is not None and here != there:
        teacher.to(here)


def soft_loss(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """``T² · KL(teacher / T ‖ student / T)`` over the last axis, a mean over the rest (Hinton et al. 2015)."""
    classes = student.shape[-1]
    log_student = functional.log_softmax(student.reshape(-1, classes) / temperature, -1)
    log_teacher = functional.log_softmax(teacher.reshape(-1, classes) / temperature, -1)
    divergence = functional.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
    return divergence * temperature**2
