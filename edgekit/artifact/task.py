"""What a model's outputs mean: which hold class scores, what the labels are, and a metric of the user's."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgekit.errors import DataError, UnknownNameError
from edgekit.types import TEXT_GENERATION

if TYPE_CHECKING:
    from edgekit.types import Array

_SCORE_TASKS = ("classification", "masked-lm", "fill-mask")
MEANINGS = (
    *("classification", "token-classification", "segmentation", "detection", "regression", "embedding"),
    *(
        "image-classification",
        "object-detection",
        "semantic-segmentation",
        "image-segmentation",
        "mask-generation",
    ),
    *("matting", "saliency", "background-removal", "text-detection", "depth-estimation", "fill-mask"),
    *("feature-extraction", "sentence-similarity", "text-classification", "audio-classification"),
)
"""Words of ``--task`` that say what a model's outputs mean; a checkpoint may bring others."""
_OTHER_TASKS = ("feature-extraction", "sentence-similarity", "embedding", "regression", "detection")


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A task metric of the user's.

    ``score(outputs, label)`` judges one sample (arrays by output name, and its label) and gives a number;
    the metric is the mean. A metric that is no mean (F1, mAP, a rank correlation) sets ``whole``: then
    ``score(list of outputs, list of labels)`` judges the set, and all outputs are kept in memory. An error
    (mean squared error, a loss) is one with ``higher_is_better=False``.
    """

    name: str
    score: Callable[..., float]
    whole: bool = False
    higher_is_better: bool = True


@dataclass(frozen=True, kw_only=True)
class Task:
    """What the outputs mean. ``scores`` names those that hold class scores (default: by ``name``, the
    task's, and by their looks); ``labels`` has one entry a sample: a class, an array of classes a row, or ``None``
    where there is none; ``classes`` are the names of the classes in the order of the scores, where they are known."""

    name: str = ""
    scores: Collection[str] | None = None
    labels: Sequence[object] | None = None
    metric: Metric | None = None
    classes: tuple[str, ...] = ()


def declared(own: str, asked: str) -> str:
    """What the outputs mean: ``own`` as the source says it, unless ``--task`` (``asked``, with its fields) names
    another meaning. A file's code says how a recipe trains, and nothing of the outputs."""
    word = asked.partition("(")[0].strip()
    if not word or ":" in word or word in own:
        return own
    return word


def refuse_unknown(asked: str) -> None:
    """Raise :class:`UnknownNameError` where ``--task`` is neither a meaning nor code."""
    word = asked.partition("(")[0].strip()
    if word and ":" not in word and word not in (*MEANINGS, TEXT_GENERATION):
        raise UnknownNameError("task", word, (*MEANINGS, TEXT_GENERATION))


def could_hold_scores(name: str, ref: Array, task: Task) -> bool:
    """Whether rows of ``ref`` can be scores of classes: said so, or 2-D floats of a task that is no other."""
    if task.scores is not None:
        return name in task.scores
    if ref.dtype.kind != "f" or ref.ndim != 2 or ref.shape[1] < 2:
        return False
    return not any(t in task.name for t in _OTHER_TASKS)


def looks_embedded(ref: Array, task: Task) -> bool:
    """Whether the rows have unit length and are no probabilities; never where the task says what they are. One sample's
    scores may have unit length by chance."""
    if task.scores is not None or any(t in task.name for t in _SCORE_TASKS):
        return False
    lengths = np.linalg.norm(ref.astype(np.float64), axis=1)
    probabilities = bool((ref >= 0).all()) and bool(np.allclose(ref.sum(axis=1), 1, atol=1e-3))
    return not probabilities and bool(np.allclose(lengths, 1, atol=1e-3))


def holding_classes(outputs: Mapping[str, Array], task: Task, label: object) -> str:
    """The output that labels are compared with: scores of rows, else classes, else scores of tokens where there is a
    label for each (``[batch, tokens, classes]``). Raises :class:`DataError` where none or several could be."""
    scores = [n for n, a in outputs.items() if could_hold_scores(n, a, task)]
    classes = [n for n, a in outputs.items() if a.dtype.kind in "iu"]
    if len(scores) + len(classes) > 1:
        scores = [n for n in scores if not looks_embedded(outputs[n], task)]
    found = scores or classes or [n for n, a in outputs.items() if _token_scores(a, task, label)]
    if len(found) != 1:
        raise no_classes(len(found), outputs, label)
    return found[0]


def _token_scores(array: Array, task: Task, label: object) -> bool:
    if array.dtype.kind != "f" or array.ndim < 3 or array.shape[-1] < 2 or not isinstance(label, np.ndarray):
        return False
    return label.size == array.size // array.shape[-1] and not any(t in task.name for t in _OTHER_TASKS)


def no_classes(found: int, outputs: Mapping[str, Array] | None = None, label: object = None) -> DataError:
    """The error of labels that there is no output for."""
    form = f" of shape {list(label.shape)}" if isinstance(label, np.ndarray) else ""
    have = ", ".join(f"{name} {list(array.shape)}" for name, array in (outputs or {}).items())
    have = f": {have}" if have else ""
    return DataError(
        f"there are labels{form}, and {found} outputs that could hold the classes{have}",
        hint="give one class for each row of scores, or a label of the output's shape where each place has its own; or "
        "pass --metric file.py:function, a function of (outputs, label), or evaluate without labels",
    )
