"""What is learned, without writing a class: built-in tasks over the user's data, or their own functions.

``classification(batch=64)`` names a built-in task; ``file.py:name`` the user's own: an object that fits
:class:`~edgekit.compress.training.train.Task`, something that returns one, or a function ``train_step(model, batch)``
that gives the loss, with ``data`` (the batches of one epoch) and ``metric(model)`` beside it in the file.

Data without labels is fine: the source's own answers are what is learnt then, and the metric says how far the
compressed model still agrees with the source.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from edgekit.compress import margin
from edgekit.compress.step import Scalar, options
from edgekit.compress.training import dataset, scoring
from edgekit.compress.training.dataset import Batch, Dataset
from edgekit.compress.training.train import Task
from edgekit.core.structure import structure
from edgekit.errors import ConfigError, DataError, SourceError, UnknownNameError, UsageError
from edgekit.load import usercode
from edgekit.types import TorchModel

if TYPE_CHECKING:
    import torch


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
        from torch.nn import functional

        return functional.cross_entropy(outputs.float(), labels.flatten(), label_smoothing=self.smoothing)

    def score(self, outputs: list[torch.Tensor], labels: list[torch.Tensor]) -> float:
        """The share of samples whose highest score is the label's."""
        return scoring.accuracy(outputs, labels)

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
        if self.metric not in ("f1", "accuracy"):
            raise ConfigError(f"unknown metric {self.metric!r}", hint="use f1 or accuracy")

    def loss(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Cross entropy over the tokens that count."""
        from torch.nn import functional

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


@dataclass(frozen=True, kw_only=True)
class Embedding(BuiltIn):
    """Vectors ``[n, …, width]``: one minus the cosine to the label vector (the source's, where the data has no
    labels); the mean cosine."""

    NAME: ClassVar[str] = "embedding"
    METRIC: ClassVar[str] = "cosine"

    def loss(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """One minus the mean cosine."""
        from torch.nn import functional

        return 1 - functional.cosine_similarity(outputs.float(), labels.float(), dim=-1).mean()

    def score(self, outputs: list[torch.Tensor], labels: list[torch.Tensor]) -> float:
        """The mean cosine."""
        return scoring.cosine(outputs, labels)


BUILT_IN: dict[str, type[BuiltIn]] = {
    k.NAME: k for k in (Classification, TokenClassification, Regression, Embedding)
}


@dataclass(frozen=True)
class DataTask:
    """A built-in task over data in memory. Fits :class:`~edgekit.compress.training.train.Task`.

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
        import torch

        order = torch.randperm(
            len(self.train), generator=torch.Generator().manual_seed(seed * 100_003 + epoch)
        )
        for at in range(0, len(order), self.kind.batch):
            yield self.train.batch(order[at : at + self.kind.batch])

    def loss(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """The task's loss."""
        if batch.labels is None:
            raise DataError("the training data has no labels", hint="yield (inputs, label)")
        outputs = self.outputs(model, batch)
        _check(self.kind, outputs, batch.labels)
        return self.kind.loss(outputs, batch.labels)

    def metric(self, model: torch.nn.Module) -> float:
        """The task's metric on the evaluation data."""
        return self._metric(model, self.evaluation)

    def holdout_metric(self, model: torch.nn.Module) -> float:
        """The metric on data that nothing else has seen."""
        if self.held is None:
            raise UsageError("no data was held out", hint="see split()")
        return self._metric(model, self.held)

    def split(self) -> DataTask:
        """The same task with every second evaluation sample (of each class) held out.

        Samples of like length stand together: a batch is padded to its longest.
        """
        labels, count = self.evaluation.labels, len(self.evaluation)
        plain = hasattr(labels, "dim") and labels.dim() == 1 and not labels.is_floating_point()
        keys = labels.tolist() if plain else [0] * count
        order = sorted(range(count), key=lambda i: (keys[i], i))
        if len(order) < 2:
            raise DataError("one evaluation sample cannot be split", hint="give more with --eval")
        size = self.evaluation.length
        return dataclasses.replace(
            self,
            evaluation=self.evaluation.subset(sorted(order[0::2], key=lambda i: (size(i), i)), "search"),
            held=self.evaluation.subset(sorted(order[1::2], key=lambda i: (size(i), i)), "held out"),
        )

    def outputs(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """The output that counts."""
        from edgekit.graph.nested import flatten

        found = flatten(model(**batch.inputs))
        name = self.kind.output or next(iter(found))
        if name not in found:
            raise UnknownNameError("output", name, found)
        return found[name]

    def judge(self, model: torch.nn.Module, *, held: bool = False) -> margin.Score:
        """The metric on the evaluation data (``held``: on what was held out) and without each part of it."""
        import torch

        data = self.held if held else self.evaluation
        if data is None:
            raise UsageError("no data was held out", hint="see split()")
        outputs, labels = self._answers(model, data)
        part = torch.tensor(margin.members(len(data)))
        rows = torch.split(part, [len(o) for o in outputs])
        kept = [[r != p for r in rows] for p in range(int(part.max()) + 1)]
        without = [
            self.kind.score(
                [o[k] for o, k in zip(outputs, keep, strict=True) if k.any()],
                [x[k] for x, k in zip(labels, keep, strict=True) if k.any()],
            )
            for keep in (kept if len(kept) > 1 else ())
        ]
        value = self.kind.score(outputs, labels)
        return margin.Score(value=value, without=tuple(without), count=len(data))

    def _metric(self, model: torch.nn.Module, data: Dataset) -> float:
        return self.kind.score(*self._answers(model, data))

    def _answers(
        self, model: torch.nn.Module, data: Dataset
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Outputs and labels, batch by batch."""
        import torch

        outputs, labels = [], []
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        with torch.no_grad():
            for batch in data.batches(max(self.kind.batch, 64)):
                moved = Batch(inputs={k: v.to(device) for k, v in batch.inputs.items()})
                outputs.append(self.outputs(model, moved).cpu())
                assert batch.labels is not None
                labels.append(batch.labels)
        return outputs, labels


@dataclass(frozen=True)
class OwnFunctions:
    """The user's ``train_step``, ``data`` and ``metric`` as a task."""

    train_step: Callable[..., Any]
    data: Any
    score: Callable[..., Any]
    fingerprint: str
    metric_name: str = "metric"
    counted: list[int] = field(default_factory=list, compare=False)

    def steps(self) -> int:
        """Batches of one epoch, counted once where the data does not say."""
        if not self.counted:
            made = self._made(0, 0)
            self.counted.append(len(made) if hasattr(made, "__len__") else sum(1 for _ in made))
        return self.counted[0]

    def batches(self, epoch: int, seed: int) -> Iterable[Any]:
        """The user's batches; ``data`` may take ``epoch`` and ``seed``. Unseeded shuffling follows the seed."""
        import torch

        torch.manual_seed(seed * 100_003 + epoch)
        made: Iterable[Any] = self._made(epoch, seed)
        return iter(made)

    def loss(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        """What ``train_step`` gives."""
        loss: torch.Tensor = self.train_step(model, batch)
        return loss

    def metric(self, model: torch.nn.Module) -> float:
        """What ``metric`` gives."""
        import torch

        with torch.no_grad():
            return float(self.score(model))

    def _made(self, epoch: int, seed: int) -> Any:
        if not callable(self.data):
            return self.data
        given = {"epoch": epoch, "seed": seed}
        wanted = inspect.signature(self.data).parameters
        return self.data(**{k: v for k, v in given.items() if k in wanted})


class Guarded:
    """The user's task: what their code raises is theirs (``FactoryError``), whenever it is called."""

    def __init__(self, task: Task, text: str) -> None:
        self._task, self._text = task, text

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        with usercode.guarded(f"{self._text}: {name}"):
            known = hasattr(self._task, name)
            value = getattr(self._task, name, None)
        if not known:
            raise AttributeError(name)
        return self._called(name, value) if callable(value) else value

    def _called(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with usercode.guarded(f"{self._text}: {name}"):
                found = function(*args, **kwargs)
                return self._each(iter(found)) if name == "batches" else found

        return call

    def _each(self, batches: Iterator[Any]) -> Iterator[Any]:
        done = object()
        while True:
            with usercode.guarded(f"{self._text}: batches"):
                batch = next(batches, done)
            if batch is done:
                return
            yield batch


def parse(text: str) -> BuiltIn:
    """The built-in task that ``name(option=value;…)`` spells. Raises ``ConfigError``, ``UnknownNameError``."""
    name, _, rest = text.strip().partition("(")
    if name not in BUILT_IN:
        raise UnknownNameError("task", name, BUILT_IN)
    known = options(BUILT_IN[name]())
    given: dict[str, Scalar] = {}
    for item in filter(None, rest.removesuffix(")").replace(",", ";").split(";")):
        key, _, value = (part.strip() for part in item.partition("="))
        if key not in known:
            raise UnknownNameError(f"option of {name}", key, known)
        try:
            given[key] = type(known[key])(value)
        except ValueError as error:
            raise ConfigError(
                f"{key}={value} of {name} is no number", hint=f"like {key}={known[key]}"
            ) from error
    return structure(BUILT_IN[name], known | given, where=name)


def open_task(text: str, model: TorchModel, *, data: str = "", evaluation: str = "") -> Task:
    """The task that ``--task`` names. Built-in ones need ``evaluation``, and ``data`` to train on.

    Raises ``UsageError`` for data that is missing, ``DataError``, ``SourceError`` and ``FactoryError``.
    """
    if usercode.split(text) is not None:
        own: Any = Guarded(usercode.run(text, lambda value: _own(value, text)), text)
        return own  # type: ignore[no-any-return]
    kind = parse(text)
    if not evaluation:
        raise UsageError(f"{kind.NAME} needs data to be judged on", hint="pass --eval file.py:callable")
    judged = dataset.load(evaluation, model)
    train = dataset.load(data, model) if data else judged.subset([], "nothing to train on")
    return _answered(DataTask(kind=kind, train=train, evaluation=judged), model)


def _answered(task: DataTask, model: TorchModel) -> DataTask:
    """Labels where there are none: the source's own answers."""
    import torch

    def filled(data: Dataset) -> Dataset:
        if data.labels is not None or not len(data):
            return data
        with torch.no_grad():
            rows = [
                row.clone()
                for batch in data.batches(max(task.kind.batch, 64))
                for row in task.kind.answers(task.outputs(model.module, batch))
            ]
        same = len({r.shape for r in rows}) == 1
        return data.labelled(torch.stack(rows) if same else rows, "the source's answers")

    return dataclasses.replace(task, train=filled(task.train), evaluation=filled(task.evaluation))


_NEEDED = ("fingerprint", "metric_name", "steps", "batches", "loss", "metric")


def _own(value: Any, text: str) -> Task:
    if inspect.isfunction(value) and len(inspect.signature(value).parameters) == 2:
        return _functions(value, text)
    makes_it = inspect.isclass(value) or (callable(value) and not hasattr(value, "batches"))
    task = value() if makes_it else value
    missing = [name for name in _NEEDED if not hasattr(task, name)]
    if missing:
        raise SourceError(
            f"{text} is no task: it lacks {', '.join(missing)}",
            hint="see edgekit.compress.training.train.Task; or name your function train_step(model, batch)",
        )
    made: Task = task
    return made


def _functions(train_step: Any, text: str) -> OwnFunctions:
    beside = train_step.__globals__
    for name in ("data", "metric"):
        if name not in beside:
            raise SourceError(
                f"{text}: there is no {name} beside it in the file",
                hint="data: the batches of one epoch, or a function that gives them; metric(model): a number, "
                "higher is better",
            )
    file = inspect.getsourcefile(train_step)
    digest = hashlib.sha256(text.encode())
    if file is not None:
        with open(file, "rb") as opened:  # noqa: PTH123
            digest.update(opened.read())
    return OwnFunctions(
        train_step=train_step, data=beside["data"], score=beside["metric"], fingerprint=digest.hexdigest()
    )


def _check(kind: BuiltIn, outputs: torch.Tensor, labels: torch.Tensor) -> None:
    wanted = {"classification": (outputs.shape[:1], 2), "token-classification": (outputs.shape[:-1], 3)}
    if kind.NAME in wanted:
        shape, axes = wanted[kind.NAME]
        if outputs.dim() != axes or labels.numel() != math.prod(shape):
            raise DataError(
                f"{kind.NAME}: outputs {list(outputs.shape)} do not go with labels {list(labels.shape)}",
                hint="name the right output with output=…, or give one label a sample (a token)",
            )
