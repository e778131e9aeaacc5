"""The user's own task: an object of theirs, or their functions ``train_step``, ``data`` and ``metric``."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass, field, replace
from types import FunctionType
from typing import Any, cast

import torch
from torch import nn

from edgekit.compress.training.task import AnyBatch, Task
from edgekit.core.dependency import digest
from edgekit.core.store import canonical_json
from edgekit.errors import SourceError
from edgekit.load import usercode


def open_task(text: str) -> Task:
    """The task that ``file.py:name`` names. Raises ``SourceError`` for what is none, ``FactoryError`` for what the
    user's code raises."""
    task = usercode.run(text, lambda value: _own(value, text))
    if isinstance(task, OwnFunctions):
        # The file, the modules that it imports, and what they read so far; what comes later is in the step's record.
        parts = [text, digest(usercode.reads(text).dependencies)]
        task = replace(task, fingerprint=hashlib.sha256(canonical_json(parts)).hexdigest())
    return cast("Task", Guarded(task, text))


@dataclass(frozen=True)
class OwnFunctions:
    """The user's ``train_step``, ``data`` and ``metric`` as a task."""

    train_step: Callable[[nn.Module, AnyBatch], torch.Tensor]
    data: Iterable[AnyBatch] | Callable[..., Iterable[AnyBatch]]
    score: Callable[[nn.Module], float]
    fingerprint: str
    metric_name: str = "metric"
    counted: list[int] = field(default_factory=list, compare=False)

    def steps(self) -> int:
        """Batches of one epoch, counted once where the data does not say."""
        if not self.counted:
            epoch = self._epoch(0, 0)
            self.counted.append(len(epoch) if isinstance(epoch, Sized) else sum(1 for _ in epoch))
        return self.counted[0]

    def batches(self, epoch: int, seed: int) -> Iterable[AnyBatch]:
        """The user's batches; ``data`` may take ``epoch`` and ``seed``. Unseeded shuffling follows the seed."""
        torch.manual_seed(seed * 100_003 + epoch)
        return iter(self._epoch(epoch, seed))

    def loss(self, model: nn.Module, batch: AnyBatch) -> torch.Tensor:
        """What ``train_step`` gives."""
        return self.train_step(model, batch)

    def metric(self, model: nn.Module) -> float:
        """What ``metric`` gives."""
        with torch.no_grad():
            return float(self.score(model))

    def _epoch(self, epoch: int, seed: int) -> Iterable[AnyBatch]:
        if not callable(self.data):
            return self.data
        names = inspect.signature(self.data).parameters
        return self.data(**{k: v for k, v in {"epoch": epoch, "seed": seed}.items() if k in names})


class Guarded:
    """The user's task: what their code raises is theirs (``FactoryError``), whenever it is called."""

    def __init__(self, task: Task, text: str) -> None:
        self._task, self._text = task, text

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        with usercode.guarded(f"{self._text}: {name}", usercode.session(self._text)):
            exists = hasattr(self._task, name)
            value = getattr(self._task, name, None)
        if not exists:
            raise AttributeError(name)
        return self._called(name, value) if callable(value) else value

    def _called(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: object, **kwargs: object) -> object:
            with usercode.guarded(f"{self._text}: {name}", usercode.session(self._text)):
                result = function(*args, **kwargs)
                return self._each(iter(result)) if name == "batches" else result

        return call

    def _each(self, batches: Iterator[AnyBatch]) -> Iterator[AnyBatch]:
        """A generator of theirs runs their code only when it is asked for the next batch."""
        end = object()
        while True:
            with usercode.guarded(f"{self._text}: batches", usercode.session(self._text)):
                batch = next(batches, end)
            if batch is end:
                return
            yield batch


_NEEDED = ("fingerprint", "metric_name", "steps", "batches", "loss", "metric")


def _own(value: object, text: str) -> Task:
    if inspect.isfunction(value) and len(inspect.signature(value).parameters) == 2:
        return _functions(value, text)
    makes_it = inspect.isclass(value) or (callable(value) and not hasattr(value, "batches"))
    task = value() if makes_it and callable(value) else value
    missing = [name for name in _NEEDED if not hasattr(task, name)]
    if missing:
        raise SourceError(
            f"{text} is no task: it lacks {', '.join(missing)}",
            hint="see edgekit.compress.training.task.Task; or name your function train_step(model, batch)",
        )
    return cast("Task", task)


def _functions(train_step: FunctionType, text: str) -> OwnFunctions:
    names = train_step.__globals__
    for name in ("data", "metric"):
        if name not in names:
            raise SourceError(
                f"{text}: there is no {name} beside it in the file",
                hint="data: the batches of one epoch, or a function that gives them; metric(model): a number, "
                "higher is better",
            )
    return OwnFunctions(train_step=train_step, data=names["data"], score=names["metric"], fingerprint="")
