"""The task's metric of source and artifact, on the samples that have labels, and the interval of the loss."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from edgekit.artifact.task import Metric, Task, holding_classes, looks_embedded, no_classes
from edgekit.devices.statistics import Interval, jackknife, paired_bootstrap, paired_proportions
from edgekit.errors import DataError, MetricError, UnknownNameError

if TYPE_CHECKING:
    from edgekit.types import Array

    Outputs = Mapping[str, Array]

IGNORED = -100
"""A row with this label has none: the convention of PyTorch's losses and of Hugging Face's token labels."""
_GROUPS, _FEWEST = 20, 5
"""Groups of a jackknife, at most and at least: each costs two calls of the user's metric."""
_PATIENCE_S = 60.0
"""What the interval of a metric of the whole set may take; a metric too slow for the fewest groups has none."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """The metric of the ``source`` and of the ``artifact``, and the interval of the loss.

    ``rows`` counts what is independent (rows of a batch, not the pixels or tokens in one), ``row_loss`` is how much of
    the metric one more of them could lose, ``labelled`` how many samples have labels, ``changed`` how many rows are
    scored otherwise, ``guess`` the accuracy of naming the most frequent label always. ``artifact`` is ``None`` where
    its outputs are not finite.
    """

    source: float
    artifact: float | None
    interval: Interval | None
    rows: int
    row_loss: float
    labelled: int
    changed: int | None
    guess: float | None


@dataclass
class Judge:
    """Takes samples one by one; without labels, or where no sample has one, there is no result."""

    task: Task
    first: list[float] = field(default_factory=list)
    second: list[float] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    kept: tuple[list[Outputs], list[Outputs]] = field(default_factory=lambda: ([], []))
    labels: list[object] = field(default_factory=list)
    seen: Counter[int] = field(default_factory=Counter)
    classes: str = ""
    embedded: bool = True
    broken: bool = False

    def add(self, expected: Outputs, got: Outputs, index: int) -> None:
        """Score one sample, or keep it for a metric over the whole set; one without a label is passed over."""
        labels, metric = self.task.labels, self.task.metric
        if labels is None:
            return
        if index >= len(labels):
            raise DataError(
                f"there are {len(labels)} labels and more samples than that", hint="give every sample a label"
            )
        label = labels[index]
        if label is None:
            return
        self.labels.append(label)
        self.broken |= _broken(expected, got)
        if metric is None:
            self._count(expected, got, label, index)
        elif metric.whole:
            self.kept[0].append(dict(expected))
            self.kept[1].append({name: got[name] for name in expected})
        else:
            self.first.append(_number(metric, metric.score(expected, label), f"sample {index}", "source"))
            if not self.broken:
                score = metric.score(got, label)
                self.second.append(_number(metric, score, f"sample {index}", "artifact"))

    def _count(self, expected: Outputs, got: Outputs, label: object, index: int) -> None:
        name = self.classes = self.classes or holding_classes(expected, self.task, label)
        reference = expected[name]
        rows = reference.dtype.kind == "f" and reference.ndim == 2
        self.embedded &= rows and looks_embedded(reference, self.task)
        wanted = _wanted(reference, label, self.task.classes, index)
        counted = wanted != IGNORED
        self.seen.update(wanted[counted].tolist())
        right = [_named(outputs[name])[counted] == wanted[counted] for outputs in (expected, got)]
        self.first.extend(right[0].astype(float).tolist())
        self.second.extend(right[1].astype(float).tolist())
        batch = reference.shape[0] if reference.ndim else 1
        inner = counted.reshape(batch, -1) if batch and counted.size % batch == 0 else counted.reshape(1, -1)
        self.sizes.extend(int(n) for n in inner.sum(axis=1) if n)

    def result(self) -> Judged | None:
        """What came of it. Raises :class:`MetricError` for what the user's metric does."""
        metric = self.task.metric
        if not self.labels:
            return None
        if metric is not None and metric.whole:
            return self._of_the_set(metric)
        if metric is None and self.classes and self.embedded:
            raise no_classes(0)
        if not self.first:
            return None
        source = math.fsum(self.first) / len(self.first)
        if self.broken:
            return self._judged(source, None, None, len(self.sizes or self.first), 1.0)
        artifact = math.fsum(self.second) / len(self.second)
        if metric is not None:
            losses = np.subtract(self.first, self.second) * (1 if metric.higher_is_better else -1)
            every = (*self.first, *self.second)
            row_loss = max(max(every) - min(every), abs(source))
            return self._judged(source, artifact, paired_bootstrap(losses.tolist()), len(losses), row_loss)
        if max(self.sizes) == 1:
            return self._judged(source, artifact, self._proportions(), len(self.first), 1.0)
        starts = np.cumsum([0, *self.sizes[:-1]])
        share = len(self.sizes) / len(self.first)  # a row of many labels weighs as many as it has
        losses = np.add.reduceat(np.subtract(self.first, self.second), starts) * share
        return self._judged(
            source, artifact, paired_bootstrap(losses.tolist()), len(losses), max(self.sizes) * share
        )

    def _proportions(self) -> Interval:
        both = sum(bool(a and b) for a, b in zip(self.first, self.second, strict=True))
        one, two = round(sum(self.first)) - both, round(sum(self.second)) - both
        return paired_proportions(both, one, two, len(self.first) - both - one - two)

    def _of_the_set(self, metric: Metric) -> Judged:
        first, second = self.kept
        count, begin = len(self.labels), time.monotonic()
        source = _number(metric, metric.score(first, list(self.labels)), "the set", "source")
        if self.broken:
            return self._judged(source, None, None, count, abs(source))
        artifact = _number(metric, metric.score(second, list(self.labels)), "the set", "artifact")
        sign = 1.0 if metric.higher_is_better else -1.0
        groups = min(_GROUPS, count, int(_PATIENCE_S / max(time.monotonic() - begin, 1e-9)))
        parts = self._without_each_group(metric, sign, groups) if groups >= min(_FEWEST, count) else []
        interval = None if len(parts) < 2 else jackknife(parts, sign * (source - artifact))
        return self._judged(source, artifact, interval, count, abs(source))

    def _without_each_group(self, metric: Metric, sign: float, groups: int) -> list[float]:
        """The loss with one group of samples left out each time; nothing where the metric cannot be had of a part."""
        count = len(self.labels)
        parts: list[float] = []
        for group in range(groups):
            chosen = [i for i in range(count) if i % groups != group]
            labels = [self.labels[i] for i in chosen]
            try:
                one, two = (
                    _number(metric, metric.score([side[i] for i in chosen], labels), "a part", "model")
                    for side in self.kept
                )
            except MetricError:
                return []
            parts.append(sign * (one - two))
        return parts

    def _changed(self) -> int | None:
        """How many rows are scored otherwise; ``None`` where only the set is."""
        if len(self.first) != len(self.second) or not self.first:
            return None
        return sum(a != b for a, b in zip(self.first, self.second, strict=True))

    def _judged(
        self, source: float, artifact: float | None, interval: Interval | None, rows: int, row_loss: float
    ) -> Judged:
        return Judged(
            source=source,
            artifact=artifact,
            interval=interval,
            rows=rows,
            row_loss=row_loss,
            labelled=len(self.labels),
            changed=self._changed(),
            guess=max(self.seen.values()) / self.seen.total() if self.seen else None,
        )


def _broken(expected: Outputs, got: Outputs) -> bool:
    """Whether the artifact gives NaN or infinity where the source does not: no metric can be asked of that."""
    return any(
        bool((np.isfinite(ref) & ~np.isfinite(got[name])).any())
        for name, ref in expected.items()
        if ref.dtype.kind == "f"
    )


def _number(metric: Metric, value: object, where: str, whose: str) -> float:
    """A score as a finite number. Raises :class:`MetricError`."""
    try:
        number = float(value)  # type: ignore[arg-type]  # whatever the user's function gives
    except (TypeError, ValueError) as error:
        raise MetricError(
            f"the metric {metric.name} gives a {type(value).__name__} for {where}, no number",
            hint="return one number, a Python float",
        ) from error
    if not math.isfinite(number):
        raise MetricError(
            f"the metric {metric.name} gives {number} for {where} (the {whose}'s outputs)",
            hint="a division by zero, or a logarithm of it, in your metric: return a number for such samples too",
        )
    return number


def _named(array: Array) -> Array:
    """The classes that an output names."""
    return np.asarray(array.argmax(axis=-1) if array.dtype.kind == "f" else array).reshape(-1)


def _wanted(reference: Array, label: object, classes: Sequence[str], index: int) -> Array:
    """The label as one class for each that ``reference`` names. Raises :class:`DataError` for what is none of it."""
    scored = reference.dtype.kind == "f"
    count = reference.shape[-1] if scored else len(classes)
    wanted = np.asarray(_by_name(label, classes, index)).reshape(-1)
    if wanted.dtype.kind not in "iub":
        raise DataError(
            f"sample {index} has the label {label!r}, which is no class: a {wanted.dtype}",
            hint="labels are the numbers of classes, from 0; for any other kind pass --metric file.py:function, "
            "a function of (outputs, label)",
        )
    wanted = wanted.astype(np.int64)
    outside = (wanted != IGNORED) & ((wanted < 0) | ((wanted >= count) if count else False))
    if outside.any():
        known = f"{count} classes, 0 to {count - 1}" if count else "classes from 0 on"
        raise DataError(
            f"sample {index} has the label {wanted[outside][0]}; the model has {known}",
            hint="number the labels as the model's outputs are, from 0 (a row with -100 is left out)",
        )
    size = _named(reference).size
    if wanted.size == 1 and size > 1:
        wanted = np.repeat(wanted, size)
    if wanted.size != size:
        raise DataError(
            f"sample {index} has {size} rows and {wanted.size} labels",
            hint="give one label a row, or pass a metric",
        )
    return wanted


def _by_name(label: object, classes: Sequence[str], index: int) -> object:
    if not isinstance(label, str):
        return label
    if label in classes:
        return classes.index(label)
    if not classes:
        raise DataError(
            f"sample {index} has the label {label!r}, and the source does not say which class that is",
            hint="declare the classes in order (TorchModel(labels=…)), or give their numbers from 0",
        )
    raise DataError(
        f"sample {index} has the label {label!r}, which is no class of the model",
        hint=UnknownNameError("class", label, classes).hint,
    )
