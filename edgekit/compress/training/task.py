"""What a model is trained for and judged by: the protocol that the user's own code or a built-in task fits."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:
    import torch

AnyBatch: TypeAlias = Any
"""Whatever the task's own ``loss`` takes: nested tuples, lists and dicts with tensors, the batch axis first."""


@dataclass(frozen=True, kw_only=True)
class Chance:
    """The metric of the best answers that do not look at the input; ``spread``: its standard error on so many
    samples."""

    level: float
    spread: float = 0.0


class Task(Protocol):
    """What a model is trained for and judged by. The user's own code, or one of the built-in tasks.

    One that also has ``chance() -> Chance`` is not left with a model that training made useless.
    """

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
