"""The training loop that steps use between and after their changes to a model.

What to learn is the user's :class:`~edgekit.compress.training.task.Task`; how long and how fast, and where it runs,
are :mod:`~edgekit.compress.training.settings`. The order of the batches follows from the seed, and a run
inside :func:`edgekit.compress.run.run` that is killed goes on from its last checkpoint to the same weights,
bit for bit on the CPU.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn

from edgekit.compress import constraints
from edgekit.compress.training import checkpoint as checkpoints
from edgekit.compress.training import loggers
from edgekit.compress.training.engine import Engine, engine
from edgekit.compress.training.settings import Training, current, is_first_process
from edgekit.compress.training.task import AnyBatch, Task
from edgekit.core.progress import Task as ProgressTask
from edgekit.errors import DataError, TrainingError


def fit(
    model: nn.Module,
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

    A model whose parameters are all frozen is trained as a whole; where some are, they stay as they are.

    Raises :class:`~edgekit.errors.DataError` if the loss is not finite or there are no batches,
    :class:`~edgekit.errors.TrainingError` if a weight is not in the end.
    """
    if training.epochs <= 0:
        model.eval()
        return math.nan
    thaw(model)
    running = checkpoints.running()
    home = next((p.device for p in model.parameters()), None)
    run = _Run(model, task, training, seed)
    try:
        run.go(each_step, running.next() if running is not None else None)
    finally:
        if home is not None:
            model.to(home)
        model.eval()
    return run.mean


def thaw(model: nn.Module) -> None:
    """Let a model be trained whose parameters are all frozen."""
    if not any(p.requires_grad for p in model.parameters()):
        for name, parameter in model.named_parameters():
            # Integers and their scales are opened by their constraint (edgekit.compress.constraints).
            if parameter.is_floating_point() and "parametrizations." not in name:
                parameter.requires_grad_(True)


class _Run:
    """One training run: its state is what a checkpoint holds."""

    def __init__(self, model: nn.Module, task: Task, training: Training, seed: int) -> None:
        torch.manual_seed(seed)
        self.model, self.task, self.training, self.seed = model, task, training, seed
        self.engine: Engine = engine(training.precision)
        model.to(self.engine.device)
        self.engine.align(model)
        self.total = max(1, round(training.epochs * task.steps()))
        self.done, self.epoch, self.in_epoch = 0, 0, 0
        self.losses, self.mean = 0.0, math.nan
        self.best, self.waited, self.stopped = -math.inf, 0, False
        self.best_state: dict[str, torch.Tensor] = {}
        self.epoch_random = self.engine.random_state()

    def go(self, each_step: Callable[[float], None] | None, checkpoint: Path | None) -> None:
        """From the checkpoint, or from the start, to the end; what steps before made of the weights is kept."""
        with constraints.held(self.model) as project:
            self.project = project
            self.raw = _optimizer([p for p in self.model.parameters() if p.requires_grad], self.training)
            self.optimizer = self.engine.prepare(self.raw)
            self._train(each_step, checkpoint)

    def _train(self, each_step: Callable[[float], None] | None, checkpoint: Path | None) -> None:
        loop = current()
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
        self._look()
        if (
            checkpoint is not None
        ):  # ended: a later run of the same step takes the result, without the moments
            self.best_state, self.stopped = {}, True
            self.raw.state.clear()
            self._save(checkpoint)

    def _look(self) -> None:
        """The loss was finite before the last update; the weights behind it may not be."""
        bad = [n for n, p in self.model.named_parameters() if not bool(torch.isfinite(p.detach()).all())]
        if bad:
            raise TrainingError(
                f"training ended with weights that are not finite: {', '.join(bad[:3])}",
                hint="lower the rate (training.rate), or limit the gradients (training.clip=1.0)",
            )

    def _rest_of_epoch(self) -> Iterator[AnyBatch]:
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

    def _one(self, batch: AnyBatch, log: loggers.Write, shown: ProgressTask) -> None:
        """One update."""
        training, progress = self.training, self.done / self.total
        rate = training.at(progress)
        for group in self.raw.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        part, weight = self.engine.share(batch)
        with self.engine.autocast():
            loss = self.task.loss(self.model, part)
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
        self.project()
        self.losses += value
        self.done, self.in_epoch = self.done + 1, self.in_epoch + 1
        log({"loss": value, "rate": rate}, self.done)
        shown.advance()

    def _end_epoch(self, log: loggers.Write) -> None:
        if not self.in_epoch:
            raise DataError("the task has no training batches", hint="check what its batches() yields")
        self.mean = self.losses / self.in_epoch
        self.epoch, self.in_epoch, self.losses = self.epoch + 1, 0, 0.0
        if not self.training.patience:
            return
        self.model.eval()
        value = self.engine.mean(self.task.metric(self.model))
        log({self.task.metric_name or "metric": value}, self.done)
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
        if self.done % 16:  # asking the others costs a round trip
            return False
        return self.engine.mean(float(time.monotonic() - saved >= seconds)) > 0

    def _save(self, path: Path) -> None:
        tensors = {f"model/{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"best/{k}": v for k, v in self.best_state.items()}
        numbers: dict[str, float] = {}
        for index, state in self.raw.state_dict()["state"].items():
            for name, value in state.items():
                if isinstance(value, torch.Tensor):
                    tensors[f"optimizer/{index}/{name}"] = value
                elif value is not None:
                    numbers[f"{index}/{name}"] = value
        # The generators' states are gathered from all processes: each has to come here before the first one writes.
        tensors |= {"random/now": self.engine.random_state(), "random/epoch": self.epoch_random}
        if not is_first_process():
            return
        facts = {name: getattr(self, name) for name in _COUNTERS}
        checkpoints.write(
            path, tensors, {"state": facts, "optimizer": numbers, "scaling": self.engine.scaling()}
        )

    def _load(self, path: Path, each_step: Callable[[float], None] | None) -> None:
        tensors, facts = checkpoints.read(path)
        for name in _COUNTERS:
            setattr(self, name, facts["state"][name])
        if each_step is not None:
            for done in range(self.done):
                each_step(done / self.total)
        weights, self.best_state, moments, random = checkpoints.parts(
            tensors, "model", "best", "optimizer", "random"
        )
        self.model.load_state_dict(weights)
        state: dict[int, dict[str, torch.Tensor | float]] = {}
        for name, value in (*moments.items(), *facts["optimizer"].items()):
            index, _, key = name.partition("/")
            state.setdefault(int(index), {})[key] = value
        self.raw.load_state_dict({"state": state, "param_groups": self.raw.state_dict()["param_groups"]})
        self.engine.set_scaling(facts["scaling"])
        self.epoch_random = random["epoch"]
        self.engine.set_random_state(random["now"])


_COUNTERS = ("done", "epoch", "in_epoch", "losses", "mean", "best", "waited", "stopped")


def _optimizer(parameters: list[torch.nn.Parameter], training: Training) -> torch.optim.Optimizer:
    if training.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, lr=training.rate, momentum=0.9, nesterov=True, weight_decay=training.weight_decay
        )
    kind = torch.optim.AdamW if training.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, lr=training.rate, weight_decay=training.weight_decay)
