"""What a model is trained for and judged by: the protocol that the user's own code or a built-in task fits."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:
    import torch

AnyBatch: TypeAlias = Any
"""Whatever the task's own ``loss`` takes: nested tuples, lists and dicts with tensors, the batch axis first."""


class Task(Protocol):
    """What a model is trained for and judged by. The user's own code, or one of the built-in tasks."""

    @property
    def fingerprint(self) -> str:
        """Identifies data and loss in cache keys."""
        ...

    @property
    def metric_name(self) -> str:
        """For reports, for example ``"accuracy"``."""
        ...

    def steps(self) -> int:
        """Batches of one epoch."""
        ...

    def batches(self, epoch: int, seed: int) -> Iterable[AnyBatch]:
        """The batches of one epoch, shuffled by ``seed`` and ``epoch`` only."""
        ...

    def loss(self, model: torch.nn.Module, batch: AnyBatch) -> torch.Tensor:
        """The scalar to minimise: a mean over the batch. ``batch`` is on the model's device."""
        ...

    def metric(self, model: torch.nn.Module) -> float:
        """Quality on data that is not trained on; higher is better. The model may be on a GPU."""
        ...


class DerivedTask:
    """Another task with a loss of its own: what a step adds to the training."""

    def __init__(self, task: Task) -> None:
        self.task = task

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

    def batches(self, epoch: int, seed: int) -> Iterable[AnyBatch]:
        """The task's."""
        return self.task.batches(epoch, seed)

    def metric(self, model: torch.nn.Module) -> float:
        """The task's."""
        return self.task.metric(model)
