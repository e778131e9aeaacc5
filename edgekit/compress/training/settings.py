"""How long and how fast a step trains (:class:`Training`, of a recipe), and where (:class:`Loop`, of the machine)."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

from edgekit.compress.step import choice
from edgekit.core.progress import Progress, Silent
from edgekit.errors import ConfigError

OPTIMIZERS = ("adam", "adamw", "sgd")
PRECISIONS = ("fp32", "bf16", "fp16")
KINDS = ("scores", "values")
DEVICES = ("auto", "cpu", "cuda", "mps")
MOST_EPOCHS = 1_000_000
LOGGERS = ("tensorboard", "mlflow", "wandb")


@dataclass(frozen=True, kw_only=True)
class Training:
    """Length and speed of one training run. The rate warms up, then falls to zero along a cosine.

    ``precision``: ``fp32``, or the forward pass in mixed ``bf16`` or ``fp16`` (with loss scaling). ``teacher``: the
    share of the loss that is how far the model is from what it was before the recipe's first step, of its first output
    as ``kind`` says (``scores`` at a ``temperature``, or ``values``); the rest is the task's.
    """

    epochs: float = 1.0
    rate: float = 1e-3
    optimizer: str = "adam"
    weight_decay: float = 0.0
    warmup: float = 0.02
    l1: float = 0.0
    clip: float = 0.0
    patience: int = 0
    precision: str = "fp32"
    teacher: float = 0.0
    temperature: float = 2.0
    kind: str = "scores"

    def __post_init__(self) -> None:
        choice("training", "kind", self.kind, KINDS)
        if not 0 <= self.teacher <= 1 or not 0 < self.temperature < math.inf:
            raise ConfigError(
                f"training with a teacher's share of {self.teacher} at temperature {self.temperature}",
                hint="the share is from 0 to 1, the temperature positive",
            )
        choice("training", "optimizer", self.optimizer, OPTIMIZERS)
        choice("training", "precision", self.precision, PRECISIONS)
        if not 0 <= self.epochs <= MOST_EPOCHS or not 0 < self.rate < math.inf or not 0 <= self.warmup < 1:
            raise ConfigError(
                f"training of {self.epochs} epochs at rate {self.rate} with warm-up {self.warmup}",
                hint=f"epochs are from 0 to {MOST_EPOCHS:,}, the rate positive, warm-up a share below 1",
            )
        for name in ("weight_decay", "l1", "clip", "patience"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"training with {name}={getattr(self, name)}", hint=f"{name} is 0 or more")

    def at(self, progress: float) -> float:
        """The rate at ``progress`` (0 to 1)."""
        if progress < self.warmup:
            return self.rate * progress / self.warmup
        return self.rate * 0.5 * (1 + math.cos(math.pi * (progress - self.warmup) / (1 - self.warmup)))


@dataclass(frozen=True, kw_only=True)
class Loop:
    """What the machine's user chooses: where training runs, and what is shown and written meanwhile.

    ``device`` is one of ``DEVICES``; ``loggers`` some of ``LOGGERS``, writing to ``logs``;
    ``checkpoint_s`` is the time between checkpoints in seconds.
    """

    device: str = "cpu"
    loggers: tuple[str, ...] = ()
    logs: Path = Path("logs")
    checkpoint_s: float = 30.0
    progress: Progress = field(default_factory=Silent)

    def __post_init__(self) -> None:
        choice("the training loop", "device", self.device, DEVICES)
        for name in self.loggers:
            choice("the training loop", "logger", name, LOGGERS)


_loop: ContextVar[Loop] = ContextVar("loop", default=Loop())  # noqa: B039 - frozen


@contextlib.contextmanager
def looping(loop: Loop) -> Iterator[None]:
    """Train with ``loop`` inside the block. Ambient, because no step has a say in it."""
    token = _loop.set(loop)
    try:
        yield
    finally:
        _loop.reset(token)


def current() -> Loop:
    """The loop settings in force."""
    return _loop.get()


def world() -> int:
    """How many processes train together: those that ``torchrun`` started, or this one alone."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first_process() -> bool:
    """Whether this process writes files: the only one, or the first of several that ``torchrun`` started."""
    return os.environ.get("RANK", "0") == "0"


def wait_for_others() -> None:
    """Wait until all processes that train together are here; at once where none have trained."""
    if world() == 1:
        return
    import torch

    if torch.distributed.is_initialized():
        torch.distributed.barrier()
