"""What is learned, without writing a class: built-in tasks over the user's data, or their own functions.

``classification(batch=64)`` names a built-in task; ``file.py:name`` the user's own: an object that fits
:class:`~edgekit.compress.training.task.Task`, something that returns one, or a function ``train_step(model, batch)``
that gives the loss, with ``data`` (the batches of one epoch) and ``metric(model)`` beside it in the file
(:mod:`edgekit.compress.training.user_task`).

Data without labels is fine: the source's own answers are what is learnt then, and the metric says how far the
compressed model still agrees with the source.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional

from edgekit.compress import margin
from edgekit.compress.registry import parse_options
from edgekit.compress.step import choice, options
from edgekit.compress.training import dataset, scoring, user_task
from edgekit.compress.training.dataset import Batch, Dataset
from edgekit.compress.training.task import Chance, Task
from edgekit.core.structure import structure
from edgekit.errors import ConfigError, DataError, UnknownNameError, UsageError
from edgekit.graph.nested import flatten, invoke
from edgekit.load import usercode
from edgekit.types import TorchModel


@dataclass(frozen=True, kw_only=True)
class BuiltIn:
    """Options that the built-in tasks share. ``batch`` is the batch size; ``output`` names the output that
    counts, where the model has several (default: the first); ``smoothing`` is of the labels."""

    NAME: ClassVar[str] = ""
    METRIC: ClassVar[str] = ""

    batch: int = 32
    output: str = ""
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        if self.batch < 1 or not 0 <= self.smoothing < 1:
            raise ConfigError(
                f"{self.NAME} with batch {self.batch} and smoothing {self.smoothing}",
                hint="a batch of at least 1, a smoothing from 0 to below 1",
            )

    def loss(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Mean loss of one batch."""
        raise NotImplementedError

    def score(self, outputs: list[torch.Tensor], labels: list[torch.Tensor]) -> float:
        """The metric over all samples, batch by batch; higher is better."""
        raise NotImplementedError

    def right(self, outputs: list[torch.Tensor], labels: list[torch.Tensor]) -> tuple[bool, ...]:
        """For each sample whether it is right, where :meth:`score` is their share; else nothing."""
        del outputs, labels
        return ()

    def chance(self, labels: list[torch.Tensor]) -> Chance:
        """What :meth:`score` gives at best for answers that do not look at the input."""
        raise NotImplementedError

    def answers(self, outputs: torch.Tensor) -> torch.Tensor:
        """What stands in for labels where there are none."""
        return outputs


@dataclass(frozen=True, kw_only=True)
class Classification(BuiltIn):
    """One class a sample: cross entropy of scores ``[n, classes]``; accuracy."""

    NAME: ClassVar[str] = "classification"
    METRIC: ClassVar[str] = "accuracy"

    def loss(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Cross entropy."""
        return functional.cross_entropy(outputs.float(), labels.flatten(), label_smoothing=self.smoothing)

    def score(self, outputs: list[torch.Tensor], labels: list[torch.Tensor]) -> float:
        """The share of samples whose highest score is the label's."""
        return scoring.accuracy(outputs, labels)

    def right(self, outputs: list[torch.Tensor], labels: list[torch.Tensor]) -> tuple[bool, ...]:
        """Whether the highest score is the label's; nothing where labels are left out."""
        each = torch.cat(
            [o.argmax(-1).flatten() == x.flatten() for o, x in zip(outputs, labels, strict=True)]
        )
        left_out = any(bool((x == dataset.IGNORED).any()) for x in labels)
        return () if left_out else tuple(each.tolist())

    def chance(self, labels: list[torch.Tensor]) -> Chance:
        """The share of the most frequent class."""
        return scoring.majority(labels)

    def answers(self, outputs: torch.Tensor) -> torch.Tensor:
        """The class with the highest score."""
        return outputs.argmax(-1)


@dataclass(frozen=True, kw_only=True)
class TokenClassification(BuiltIn):
    """One class a token: cross entropy of scores ``[n, tokens, classes]``, label -100 left out. ``metric`` is
    ``f1`` (micro, all classes but ``outside``) or ``accuracy``."""

    NAME: ClassVar[str] = "token-classification"
    METRIC: ClassVar[str] = "f1"

    metric: str = "f1"
    outside: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        choice(self.NAME, "metric", self.metric, ("f1", "accuracy"))

    def loss(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Cross entropy over the tokens that count."""
        return functional.cross_entropy(
            outputs.float().flatten(0, -2),
            labels.flatten(),
            label_smoothing=self.smoothing,
            ignore_index=dataset.IGNORED,
        )

    def score(self, outputs: list[torch.Tensor], labels: list[torch.Tensor]) -> float:
        """F1 or accuracy over all tokens that count."""
        if self.metric == "accuracy":
            return scoring.accuracy(outputs, labels)
        return scoring.f1(outputs, labels, outside=self.outside)

    def chance(self, labels: list[torch.Tensor]) -> Chance:
        """Of one class for all tokens."""
        if self.metric == "accuracy":
            return scoring.majority(labels)
        return scoring.constant_f1(labels, outside=self.outside)

    def answers(self, outputs: torch.Tensor) -> torch.Tensor:
        """The class with the highest score, token by token."""
        return outputs.argmax(-1)


@dataclass(frozen=True, kw_only=True)
class Regression(BuiltIn):
    """Numbers: mean squared error; R², the share of the labels' variance that is explained."""

    NAME: ClassVar[str] = "regression"
    METRIC: ClassVar[str] = "r2"

    def loss(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Mean squared error."""
        return (outputs.float() - labels.to(outputs.dtype).view_as(outputs)).square().mean()

    def score(self, outputs: list[torch.Tensor], labels: list[torch.Tensor]) -> float:
        """R²."""
        return scoring.r2(outputs, labels)

    def chance(self, labels: list[torch.Tensor]) -> Chance:
        """0, of the labels' mean."""
        del labels
        return Chance(level=0.0)


@dataclass(frozen=True, kw_only=True)
class Embedding(BuiltIn):
    """Vectors ``[n, …, width]``: one minus the cosine to the label vector (the source's, where the data has no
    labels); the mean cosine."""

    NAME: ClassVar[str] = "embedding"
    METRIC: ClassVar[str] = "cosine"

    def loss(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """One minus the mean cosine."""
        return 1 - functional.cosine_similarity(outputs.float(), labels.float(), dim=-1).mean()

    def score(self, outputs: list[torch.Tensor], labels: list[torch.Tensor]) -> float:
        """The mean cosine."""
        return scoring.cosine(outputs, labels)

    def chance(self, labels: list[torch.Tensor]) -> Chance:
        """Of the mean direction."""
        return scoring.constant_cosine(labels)


BUILT_IN: dict[str, type[BuiltIn]] = {
    k.NAME: k for k in (Classification, TokenClassification, Regression, Embedding)
}


@dataclass(frozen=True)
class DataTask:
    """A built-in task over data in memory. Fits :class:`~edgekit.compress.training.task.Task`.

    ``held`` is evaluation data that nothing but :meth:`holdout_metric` looks at.
    """

    kind: BuiltIn
    train: Dataset
    evaluation: Dataset
    held: Dataset | None = None
    cache: dict[str, str] = field(default_factory=dict, compare=False, repr=False)

    @property
    def fingerprint(self) -> str:
        """The task's options and both data sets."""
        parts = (
            self.kind.NAME,
            repr(options(self.kind)),
            self.train.fingerprint,
            self.evaluation.fingerprint,
        )
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    @property
    def metric_name(self) -> str:
        """What :meth:`metric` gives."""
        return str(getattr(self.kind, "metric", "")) or self.kind.METRIC

    def steps(self) -> int:
        """Batches of one epoch; the last may be smaller."""
        return math.ceil(len(self.train) / self.kind.batch)

    def batches(self, epoch: int, seed: int) -> Iterator[Batch]:
        """Every training sample once, shuffled."""
        order = torch.randperm(
            len(self.train), generator=torch.Generator().manual_seed(seed * 100_003 + epoch)
        )
        for at in range(0, len(order), self.kind.batch):
            yield self.train.batch(order[at : at + self.kind.batch])

    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """The task's loss."""
        if batch.labels is None:
            raise DataError("the training data has no labels", hint="yield (inputs, label)")
        outputs = self.outputs(model, batch)
        _check(self.kind, outputs, batch.labels)
        return self.kind.loss(outputs, batch.labels)

    def metric(self, model: nn.Module) -> float:
        """The task's metric on the evaluation data."""
        return self._metric(model, self.evaluation)

    def chance(self) -> Chance:
        """What answers that do not look at the input reach on the evaluation data."""
        batches = self.evaluation.batches(max(self.kind.batch, 64))
        return self.kind.chance([b.labels for b in batches if b.labels is not None])

    def holdout_metric(self, model: nn.Module) -> float:
        """The metric on data that nothing else has seen."""
        if self.held is None:
            raise UsageError("no data was held out", hint="see split()")
        return self._metric(model, self.held)

    def split(self) -> DataTask:
        """The same task with every second evaluation sample (of each class) held out.

        Samples of like length stand together: a batch is padded to its longest.
        """
        labels, count = self.evaluation.labels, len(self.evaluation)
        keys = [0] * count
        if isinstance(labels, torch.Tensor) and labels.dim() == 1 and not labels.is_floating_point():
            keys = labels.tolist()
        order = sorted(range(count), key=lambda i: (keys[i], i))
        if len(order) < 2:
            raise DataError("one evaluation sample cannot be split", hint="give more with --eval")
        size = self.evaluation.length
        return dataclasses.replace(
            self,
            evaluation=self.evaluation.subset(sorted(order[0::2], key=lambda i: (size(i), i)), "search"),
            held=self.evaluation.subset(sorted(order[1::2], key=lambda i: (size(i), i)), "held out"),
        )

    def outputs(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """The output that counts."""
        outputs = flatten(invoke(model, batch.inputs))
        name = self.kind.output or next(iter(outputs))
        if name not in outputs:
            raise UnknownNameError("output", name, outputs)
        return outputs[name]

    def judge(self, model: nn.Module, *, held: bool = False) -> margin.Score:
        """The metric on the evaluation data (``held``: on what was held out) and without each part of it."""
        data = self.held if held else self.evaluation
        if data is None:
            raise UsageError("no data was held out", hint="see split()")
        outputs, labels = self._answers(model, data)
        part = torch.tensor(margin.members(len(data)))
        rows = torch.split(part, [len(o) for o in outputs])
        others = [[r != p for r in rows] for p in range(int(part.max()) + 1)]
        without = [
            self.kind.score(
                [o[k] for o, k in zip(outputs, keep, strict=True) if k.any()],
                [x[k] for x, k in zip(labels, keep, strict=True) if k.any()],
            )
            for keep in (others if len(others) > 1 else ())
        ]
        value = self.kind.score(outputs, labels)
        right = self.kind.right(outputs, labels)
        return margin.Score(value=value, without=tuple(without), count=len(data), right=right)

    def _metric(self, model: nn.Module, data: Dataset) -> float:
        return self.kind.score(*self._answers(model, data))

    def _answers(self, model: nn.Module, data: Dataset) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Outputs and labels, batch by batch."""
        outputs, labels = [], []
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        with torch.no_grad():
            for batch in data.batches(max(self.kind.batch, 64)):
                moved = Batch(inputs={k: v.to(device) for k, v in batch.inputs.items()})
                outputs.append(self.outputs(model, moved).cpu())
                assert batch.labels is not None
                labels.append(batch.labels)
        return outputs, labels


def parse(text: str) -> BuiltIn:
    """The built-in task that ``name(option=value;…)`` spells. Raises ``ConfigError``, ``UnknownNameError``."""
    name, _, rest = text.strip().partition("(")
    if name not in BUILT_IN:
        raise UnknownNameError("task", name, BUILT_IN)
    defaults = options(BUILT_IN[name]())
    values = parse_options(name, rest.removesuffix(")").replace(",", ";").split(";"), defaults)
    return structure(BUILT_IN[name], defaults | values, where=name)


def open_task(text: str, model: TorchModel, *, data: str = "", evaluation: str = "") -> Task:
    """The task that ``--task`` names. Built-in ones need ``evaluation``, and ``data`` to train on.

    Raises ``UsageError`` for data that is missing, ``DataError``, ``SourceError`` and ``FactoryError``.
    """
    if usercode.split(text) is not None:
        return user_task.open_task(text)
    kind = parse(text)
    if not evaluation:
        raise UsageError(f"{kind.NAME} needs data to be judged on", hint="pass --eval file.py:callable")
    judged = dataset.load(evaluation, model)
    train = dataset.load(data, model) if data else judged.subset([], "nothing to train on")
    return _answered(DataTask(kind=kind, train=train, evaluation=judged), model)


def _answered(task: DataTask, model: TorchModel) -> DataTask:
    """Labels where there are none: the source's own answers."""

    def filled(data: Dataset) -> Dataset:
        if data.labels is not None or not len(data):
            return data
        with torch.no_grad():
            rows = [
                row.clone()
                for batch in data.batches(max(task.kind.batch, 64))
                for row in task.kind.answers(task.outputs(model.module, batch))
            ]
        return data.labelled(dataset.stacked(rows), "the source's answers")

    return dataclasses.replace(task, train=filled(task.train), evaluation=filled(task.evaluation))


def _check(kind: BuiltIn, outputs: torch.Tensor, labels: torch.Tensor) -> None:
    forms = {"classification": (outputs.shape[:1], 2), "token-classification": (outputs.shape[:-1], 3)}
    if kind.NAME in forms:
        shape, axes = forms[kind.NAME]
        if outputs.dim() != axes or labels.numel() != math.prod(shape):
            raise DataError(
                f"{kind.NAME}: outputs {list(outputs.shape)} do not go with labels {list(labels.shape)}",
                hint="name the right output with output=…, or give one label a sample (a token)",
            )
