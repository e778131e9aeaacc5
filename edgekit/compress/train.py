"""The training loop that steps use between and after their changes to a model.

What to learn is the user's :class:`Task`; how long and how fast is :class:`Training`. One process; the
order of the batches follows from the seed, so that a run can be repeated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from edgekit.errors import ConfigError, DataError

if TYPE_CHECKING:
    import torch

OPTIMIZERS = ("adam", "adamw", "sgd")


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

    def batches(self, epoch: int, seed: int) -> Iterable[Any]:
        """The batches of one epoch, shuffled by ``seed`` and ``epoch`` only."""
        ...

    def loss(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        """The scalar to minimise."""
        ...

    def metric(self, model: torch.nn.Module) -> float:
        """Quality on data that is not trained on; higher is better."""
        ...


@dataclass(frozen=True, kw_only=True)
class Training:
    """Length and speed of one training run. The rate warms up, then falls to zero along a cosine."""

    epochs: float = 1.0
    rate: float = 1e-3
    optimizer: str = "adam"
    weight_decay: float = 0.0
    warmup: float = 0.02
    l1: float = 0.0
    clip: float = 0.0
    patience: int = 0

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise ConfigError(f"unknown optimizer {self.optimizer!r}", hint=f"use {', '.join(OPTIMIZERS)}")
        if self.epochs < 0 or self.rate <= 0 or not 0 <= self.warmup < 1:
            raise ConfigError(
                f"training of {self.epochs} epochs at rate {self.rate} with warm-up {self.warmup}",
                hint="epochs must not be negative, the rate positive, warm-up a share below 1",
            )

    def at(self, progress: float) -> float:
        """The rate at ``progress`` (0 to 1)."""
        if progress < self.warmup:
            return self.rate * progress / self.warmup
        return self.rate * 0.5 * (1 + math.cos(math.pi * (progress - self.warmup) / (1 - self.warmup)))


def fit(
    model: torch.nn.Module,
    task: Task,
    training: Training,
    *,
    seed: int,
    each_step: Callable[[float], None] | None = None,
) -> float:
    """Train ``model`` in place; the last epoch's mean loss.

    ``each_step`` is called with the progress (0 to 1) before every step: schedules hang on it. With
    ``patience`` the run ends after so many epochs without a better metric, and the best weights return.
    Raises :class:`~edgekit.errors.DataError` if the loss is not finite or there are no batches.
    """
    import torch

    torch.manual_seed(seed)
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = _optimizer(trainable, training)
    total = max(1, round(training.epochs * task.steps()))
    done, epoch, mean = 0, 0, math.nan
    best, best_state, waited = -math.inf, None, 0
    while done < total and training.epochs > 0:
        model.train()
        losses, before = 0.0, done
        for batch in task.batches(epoch, seed):
            if done >= total:
                break
            if each_step is not None:
                each_step(done / total)
            losses += _step(model, task, batch, optimizer, training, done / total)
            done += 1
        if done == before:
            raise DataError("the task has no training batches", hint="check what its batches() yields")
        mean, epoch = losses / (done - before), epoch + 1
        if training.patience:
            model.eval()
            value = task.metric(model)
            if value > best:
                best, waited = value, 0
                best_state = {k: v.detach().clone() for k, v in model.state_dict().items()}
            else:
                waited += 1
                if waited >= training.patience:
                    break
    if best_state is not None:
        model.load_state_dict(best_state)
    model.eval()
    return mean


def _optimizer(parameters: list[torch.nn.Parameter], training: Training) -> torch.optim.Optimizer:
    import torch

    if training.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, lr=training.rate, momentum=0.9, nesterov=True, weight_decay=training.weight_decay
        )
    kind = torch.optim.AdamW if training.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, lr=training.rate, weight_decay=training.weight_decay)


def _step(
    model: torch.nn.Module,
    task: Task,
    batch: Any,
    optimizer: torch.optim.Optimizer,
    training: Training,
    progress: float,
) -> float:
    """One update; the loss of the batch."""
    import torch

    for group in optimizer.param_groups:
        group["lr"] = training.at(progress)
    optimizer.zero_grad(set_to_none=True)
    loss = task.loss(model, batch)
    value = float(loss.detach())
    if not math.isfinite(value):
        raise DataError(
            f"the loss became {value}",
            hint="lower the rate (training.rate), or look for bad values in the data",
        )
    if training.l1:
        loss = loss + training.l1 * sum(p.abs().sum() for n, p in model.named_parameters() if "weight" in n)
    loss.backward()  # type: ignore[no-untyped-call]
    if training.clip:
        torch.nn.utils.clip_grad_norm_(model.parameters(), training.clip)
    optimizer.step()
    return value
