"""The metric of a task: of modules and of files on their real runtime, on the half of the evaluation data that the
search sees and on the other, which is held out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar, cast

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as tree

from edgekit.compress import margin
from edgekit.compress.margin import Score
from edgekit.compress.training.task import Task
from edgekit.devices.execute import run_artifact
from edgekit.devices.runnable import Runnable
from edgekit.errors import DataError, UsageError
from edgekit.graph.nested import invoke
from edgekit.pipeline.compress import TrainingTask
from edgekit.pipeline.pixels import Pixels
from edgekit.types import TensorSpec, TorchModel

if TYPE_CHECKING:
    from edgekit.types import Array

_T = TypeVar("_T")


class HalvedTask(Task, Protocol):
    """A task with a metric for the search and another for the end. Built-in ones also tell a metric's value on parts
    of the data (``judge``), others may give a number a sample (``scores``, ``holdout_scores``)."""

    def holdout_metric(self, model: nn.Module) -> float:
        """The metric on data that :meth:`metric` does not use."""
        ...


def halved(training: TrainingTask) -> HalvedTask:
    """The task with its evaluation data halved. Raises ``UsageError`` where it cannot be."""
    if not training.exists:
        raise UsageError(
            "a budget needs a task: what is lost is measured by its metric",
            hint="pass --task classification --eval DATA (and --train DATA to train), or --task file.py:task",
        )
    task = training.open()
    split = getattr(task, "split", None)
    task = task if split is None else split()
    if not callable(getattr(task, "holdout_metric", None)):
        raise UsageError(
            "the task has no data that the search does not see: the budget could not be confirmed",
            hint="give it holdout_metric(model), on data that metric(model) does not use",
        )
    return cast("HalvedTask", task)


def scorer(task: HalvedTask, *, held: bool) -> Callable[[nn.Module], Score]:
    """The task's metric on the data that the search sees, or on what is ``held`` out, with its values on parts of it
    where the task can tell: built-in ones can, others by ``scores(model)`` (``holdout_scores``), a number a sample."""
    judge = getattr(task, "judge", None)

    def score(model: nn.Module) -> Score:
        if callable(judge):
            return cast("Score", judge(model, held=held))
        each = getattr(task, "holdout_scores" if held else "scores", None)
        with torch.no_grad():
            if callable(each):
                return margin.of_values(each(model))
            return Score(value=float((task.holdout_metric if held else task.metric)(model)))

    return score


class Judge(Generic[_T]):
    """A task's ``metric`` of files on their real runtime.

    The metric wants a module, so it is called with a stand-in: once with one that answers as the original does
    (``base`` is what that gave), then for all files twice: with one that notes its inputs, and, after everything was
    run in one fresh process, with one that gives the runtime's answers.
    """

    def __init__(self, metric: Callable[[nn.Module], _T], model: TorchModel) -> None:
        self._metric, self._model = metric, model
        first = _StandIn(model, ()).eval()
        self.base = metric(first)
        self._forms = tuple(first.forms)

    def of(self, runnable: Runnable, onnx: tuple[TensorSpec, ...]) -> _T:
        """The metric of ``runnable``. ``onnx`` are the graph's inputs, which say whether it takes batches."""
        stand_in = _StandIn(self._model, self._forms).eval()
        self._metric(stand_in)
        units = {s.name: s.shape[0] if s.shape and isinstance(s.shape[0], int) else 0 for s in onnx}
        calls = [list(_pieces(inputs, units)) for inputs in stand_in.inputs]
        with run_artifact(runnable, (piece for pieces in calls for piece in pieces)) as result:
            rows = iter(result.outputs)
            stand_in.answers = [_joined([next(rows) for _ in pieces]) for pieces in calls]
        return self._metric(stand_in)


def from_source(runnable: Runnable, pixels: Pixels | None) -> Runnable:
    """``runnable`` so that it takes the source's inputs, also where preprocessing was folded into it."""
    return runnable if pixels is None else replace(runnable, preprocess=pixels.fed)


class _StandIn(nn.Module):
    """In the place of the model: first notes its inputs, then gives ``answers``. ``forms`` are the original's results,
    call by call, of which only the form is wanted."""

    def __init__(self, model: TorchModel, known: Sequence[object]) -> None:
        super().__init__()
        self._model, self._known = model, known
        self.inputs: list[dict[str, Array]] = []
        self.forms: list[object] = []
        self.answers: list[list[Array]] = []
        self._call = 0

    def forward(self, *args: torch.Tensor, **kwargs: torch.Tensor) -> object:
        if self.answers:
            self._call += 1
            return _filled(self.forms[self._call - 1], self.answers[self._call - 1])
        inputs = dict(zip(self._model.example_inputs, args, strict=False)) | kwargs
        self.inputs.append({k: v.detach().cpu().numpy() for k, v in inputs.items()})
        if len(self.forms) < len(self._known):
            self.forms.append(self._known[len(self.forms)])
        else:
            with torch.no_grad():
                self.forms.append(invoke(self._model.module, inputs))
        return self.forms[-1]


def _filled(form: object, arrays: list[Array]) -> object:
    """``form`` with its tensors replaced in order."""
    leaves, spec = tree.tree_flatten(form)
    tensors = iter(arrays)
    count = sum(isinstance(x, torch.Tensor) for x in leaves)
    if count != len(arrays):
        raise DataError(
            f"the model returns {count} tensors, the artifact {len(arrays)}",
            hint="let forward return a tensor, or a tuple or dict of tensors",
        )
    filled = [torch.from_numpy(next(tensors).copy()) if isinstance(x, torch.Tensor) else x for x in leaves]
    return tree.tree_unflatten(filled, spec)


def _pieces(inputs: Mapping[str, Array], units: Mapping[str, int]) -> Iterator[dict[str, Array]]:
    """A batch as the graph takes it: whole where its batch axis is free, else in pieces of the graph's size."""
    fixed = {units[name] for name in inputs if units.get(name)}
    rows = {len(array) for array in inputs.values()}
    if not fixed or rows == fixed:
        yield dict(inputs)
        return
    if len(fixed) > 1 or len(rows) > 1 or next(iter(rows)) % next(iter(fixed)):
        raise DataError(
            f"batches of {sorted(rows)} do not fit a graph of {sorted(fixed)} rows",
            hint="declare the batch axis dynamic (TorchModel.dynamic_axes)",
        )
    size = next(iter(fixed))
    for at in range(0, next(iter(rows)), size):
        yield {name: array[at : at + size] for name, array in inputs.items()}


def _joined(pieces: list[Mapping[str, Array]]) -> list[Array]:
    return [
        np.concatenate([p[name] for p in pieces]) if len(pieces) > 1 else pieces[0][name]
        for name in pieces[0]
    ]
