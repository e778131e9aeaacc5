"""The training loop that steps use between and after their changes to a model.

What to learn is the user's :class:`Task`; how long and how fast is :class:`Training`; where it runs and what
is logged is :class:`~edgekit.compress.training.engine.Loop`. The order of the batches follows from the seed, and a run
inside :func:`edgekit.compress.step.run` that is killed goes on from its last checkpoint to the same weights,
bit for bit on the CPU.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from edgekit.compress.training import engine as engines
from edgekit.compress.training import loggers, resume
from edgekit.compress.training.engine import PRECISIONS, Engine
from edgekit.errors import ConfigError, DataError

if TYPE_CHECKING:
    import torch

    from edgekit.core.progress import Task as ProgressTask

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
        """The scalar to minimise: a mean over the batch. ``batch`` is on the model's device."""
        ...

    def metric(self, model: torch.nn.Module) -> float:
        """Quality on data that is not trained on; higher is better. The model may be on a GPU."""
        ...


@dataclass(frozen=True, kw_only=True)
class Training:
    """Length and speed of one training run. The rate warms up, then falls to zero along a cosine.

    ``precision``: ``fp32``, or the forward pass in mixed ``bf16`` or ``fp16`` (with loss scaling).
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

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise ConfigError(f"unknown optimizer {self.optimizer!r}", hint=f"use {', '.join(OPTIMIZERS)}")
        if self.precision not in PRECISIONS:
            raise ConfigError(f"unknown precision {self.precision!r}", hint=f"use {', '.join(PRECISIONS)}")
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

    ``each_step`` is called with the progress (0 to 1) before every step: schedules hang on it. What it
    remembers must follow from the calls it got or lie in buffers of the model: a run that is resumed repeats
    the calls, then loads the weights and buffers. With ``patience`` the run ends after so many epochs without
    a better metric, and the best weights return.

    Raises :class:`~edgekit.errors.DataError` if the loss is not finite or there are no batches.
    """
    if training.epochs <= 0:
        model.eval()
        return math.nan
    running = resume.running()
    home = next((p.device for p in model.parameters()), None)
    run = _Run(model, task, training, seed)
    try:
        run.go(each_step, running.next() if running is not None else None)
    finally:
        if home is not None:
            model.to(home)
        model.eval()
    return run.mean


class _Run:
    """One training run: its state is what a checkpoint holds."""

    def __init__(self, model: torch.nn.Module, task: Task, training: Training, seed: int) -> None:
        import torch

        torch.manual_seed(seed)
        self.model, self.task, self.training, self.seed = model, task, training, seed
        self.engine: Engine = engines.engine(training.precision)
        model.to(self.engine.device)
        self.engine.align(model)
        self.raw = _optimizer([p for p in model.parameters() if p.requires_grad], training)
        self.optimizer = self.engine.prepare(self.raw)
        self.total = max(1, round(training.epochs * task.steps()))
        self.done, self.epoch, self.in_epoch = 0, 0, 0
        self.losses, self.mean = 0.0, math.nan
        self.best, self.waited, self.stopped = -math.inf, 0, False
        self.best_state: dict[str, torch.Tensor] = {}
        self.epoch_random = self.engine.random_state()

    def go(self, each_step: Callable[[float], None] | None, checkpoint: Path | None) -> None:
        """From the checkpoint, or from the start, to the end."""
        loop = engines.current()
        if checkpoint is not None and checkpoint.is_file():
            self._load(checkpoint, each_step)
        saved = time.monotonic()
        with loop.progress.task("train", total=self.total) as shown, loggers.opened(loop) as log:
            shown.advance(self.done)
            while self.done < self.total and not self.stopped:
                for batch in self._rest_of_epoch():
                    if each_step is not None:
                        each_step(self.done / self.total)
                    self._one(batch, log, shown)
                    if checkpoint is not None and self._due(saved, loop.checkpoint_s):
                        self._save(checkpoint)
                        saved = time.monotonic()
                self._end_epoch(log)
        if self.best_state:
            self.model.load_state_dict(self.best_state)
        if checkpoint is not None:
            self.best_state, self.stopped = {}, True
            self.raw.state.clear()
            self._save(checkpoint)

    def _rest_of_epoch(self) -> Iterable[Any]:
        """The epoch's batches that were not trained on yet."""
        self.model.train()
        left = self.total - self.done
        now = self.engine.random_state()
        if not self.in_epoch:
            self.epoch_random = now
        self.engine.set_random_state(self.epoch_random)  # a loader may draw its order when it is started
        batches = iter(self.task.batches(self.epoch, self.seed))
        if self.in_epoch:
            for _ in itertools.islice(batches, self.in_epoch):
                pass
            self.engine.set_random_state(now)  # what skipping draws was drawn before the checkpoint
        return itertools.islice(batches, left)

    def _one(self, batch: Any, log: loggers.Log, shown: ProgressTask) -> None:
        """One update."""
        training, progress = self.training, self.done / self.total
        rate = training.at(progress)
        for group in self.raw.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        mine, weight = self.engine.share(batch)
        with self.engine.autocast():
            loss = self.task.loss(self.model, mine)
        value = self.engine.mean(float(loss.detach()) * weight * self.engine.world)
        if not math.isfinite(value):
            raise DataError(
                f"the loss became {value}",
                hint="lower the rate (training.rate), or look for bad values in the data",
            )
        if training.l1:
            loss = loss + training.l1 * sum(
                p.abs().sum() for n, p in self.model.named_parameters() if "weight" in n
            )
        self.engine.backward(loss * weight if self.engine.world > 1 else loss)
        self.engine.average(self.model)
        if training.clip:
            self.engine.clip(self.model, self.optimizer, training.clip)
        self.optimizer.step()
        self.losses += value
        self.done, self.in_epoch = self.done + 1, self.in_epoch + 1
        log.write({"loss": value, "rate": rate}, self.done)
        shown.advance()

    def _end_epoch(self, log: loggers.Log) -> None:
        if not self.in_epoch:
            raise DataError("the task has no training batches", hint="check what its batches() yields")
        self.mean = self.losses / self.in_epoch
        self.epoch, self.in_epoch, self.losses = self.epoch + 1, 0, 0.0
        if not self.training.patience:
            return
        self.model.eval()
        value = self.engine.mean(self.task.metric(self.model))
        log.write({self.task.metric_name or "metric": value}, self.done)
        if value > self.best:
            self.best, self.waited = value, 0
            self.best_state = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        else:
            self.waited += 1
            self.stopped = self.waited >= self.training.patience

    def _due(self, saved: float, seconds: float) -> bool:
        """Whether it is time for a checkpoint: the first process's clock counts."""
        if self.engine.world == 1:
            return time.monotonic() - saved >= seconds
        if self.done % 16:
            return False
        return self.engine.mean(float(time.monotonic() - saved >= seconds)) > 0

    def _save(self, path: Path) -> None:
        tensors = {f"model/{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"best/{k}": v for k, v in self.best_state.items()}
        numbers: dict[str, float] = {}
        for index, state in self.raw.state_dict()["state"].items():
            for name, value in state.items():
                if hasattr(value, "detach"):
                    tensors[f"optimizer/{index}/{name}"] = value
                elif value is not None:
                    numbers[f"{index}/{name}"] = value
        tensors |= {"random/now": self.engine.random_state(), "random/epoch": self.epoch_random}
        if not resume.is_first_process():
            return
        facts = {name: getattr(self, name) for name in _COUNTERS}
        resume.write(path, tensors, {"state": facts, "optimizer": numbers, "scaling": self.engine.scaling()})

    def _load(self, path: Path, each_step: Callable[[float], None] | None) -> None:
        tensors, facts = resume.read(path)
        for name in _COUNTERS:
            setattr(self, name, facts["state"][name])
        if each_step is not None:
            for done in range(self.done):
                each_step(done / self.total)
        parts: dict[str, dict[str, torch.Tensor]] = {"model": {}, "best": {}, "optimizer": {}, "random": {}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition("/")
            parts[part][rest] = tensor
        self.model.load_state_dict(parts["model"])
        self.best_state = parts["best"]
        state: dict[int, dict[str, Any]] = {}
        for name, value in (*parts["optimizer"].items(), *facts["optimizer"].items()):
            index, _, key = name.partition("/")
            state.setdefault(int(index), {})[key] = value
        self.raw.load_state_dict({"state": state, "param_groups": self.raw.state_dict()["param_groups"]})
        self.engine.set_scaling(facts["scaling"])
        self.epoch_random = parts["random"]["epoch"]
        self.engine.set_random_state(parts["random"]["now"])


_COUNTERS = ("done", "epoch", "in_epoch", "losses", "mean", "best", "waited", "stopped")


def _optimizer(parameters: list[torch.nn.Parameter], training: Training) -> torch.optim.Optimizer:
    import torch

    if training.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, lr=training.rate, momentum=0.9, nesterov=True, weight_decay=training.weight_decay
        )
    kind = torch.optim.AdamW if training.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, lr=training.rate, weight_decay=training.weight_decay)
