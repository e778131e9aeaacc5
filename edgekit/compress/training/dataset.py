"""Training and evaluation samples in memory, as batches of tensors by input name.

Samples of one shape are stacked; where they differ (sentences, recordings), each batch is padded with zeros
to its longest, and labels that follow the inputs' length with :data:`IGNORED`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeAlias

import numpy as np
import torch

from edgekit.errors import DataError
from edgekit.load.classes import Classes
from edgekit.load.samples import open_samples
from edgekit.types import Sample, TensorSpec, TorchModel

Rows: TypeAlias = torch.Tensor | list[torch.Tensor]
"""One value a sample: a tensor ``[n, …]``, or a list where shapes differ."""

IGNORED = -100
"""The label of padding: no loss, no part in a metric (PyTorch's own convention)."""


class Batch(NamedTuple):
    """Inputs by name, the batch axis first, and labels (``None`` where the data has none)."""

    inputs: dict[str, torch.Tensor]
    labels: torch.Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Samples without their batch axis: one row of each input a sample."""

    inputs: Mapping[str, Rows]
    labels: Rows | None
    fingerprint: str

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def length(self, row: int) -> int:
        """So many numbers the inputs of one sample have."""
        return sum(values[row].numel() for values in self.inputs.values())

    def batch(self, rows: Sequence[int] | torch.Tensor) -> Batch:
        """The samples at ``rows`` as one batch."""
        picked = rows if isinstance(rows, list | tuple) else [int(r) for r in rows]
        inputs = {name: _pick(values, picked, 0) for name, values in self.inputs.items()}
        labels = None if self.labels is None else _pick(self.labels, picked, IGNORED)
        return Batch(inputs=inputs, labels=labels)

    def batches(self, size: int) -> Iterator[Batch]:
        """All samples in order."""
        for at in range(0, len(self), size):
            yield self.batch(list(range(at, min(at + size, len(self)))))

    def subset(self, rows: Sequence[int], name: str) -> Dataset:
        """Some of the samples, as a set with a fingerprint of its own."""
        inputs = {k: _some(v, rows) for k, v in self.inputs.items()}
        labels = None if self.labels is None else _some(self.labels, rows)
        digest = hashlib.sha256(f"{self.fingerprint} {name} {list(rows)}".encode()).hexdigest()
        return Dataset(inputs=inputs, labels=labels, fingerprint=digest)

    def labelled(self, labels: Rows, name: str) -> Dataset:
        """The same inputs with other labels."""
        digest = hashlib.sha256(f"{self.fingerprint} {name}".encode()).hexdigest()
        return replace(self, labels=labels, fingerprint=digest)


def specs(model: TorchModel) -> tuple[TensorSpec, ...]:
    """The model's inputs as the samples have to be: declared dynamic axes are free, the batch axis too."""
    out = []
    for name, example in model.example_inputs.items():
        axes = model.dynamic_axes.get(name, {})
        shape = [axes.get(axis, size) for axis, size in enumerate(example.shape)]
        dtype = str(example.dtype).removeprefix("torch.")
        out.append(TensorSpec(name=name, dtype=dtype, shape=tuple(shape)))
    return tuple(out)


def load(text: str, model: TorchModel) -> Dataset:
    """Read DATA, as ``edgekit build`` takes it, into memory. Raises ``DataError``."""
    classes = Classes(names=tuple(model.labels), required=True)
    return collect(open_samples(text, specs(model), preprocessing=model.preprocessing, classes=classes), text)


def collect(samples: Iterable[Sample], name: str) -> Dataset:
    """Samples (batch axis of 1 first) as a dataset. Raises ``DataError`` for none, or for labels of some only."""
    inputs: dict[str, list[torch.Tensor]] = {}
    labels: list[torch.Tensor] = []
    digest = hashlib.sha256()
    count = 0
    for sample in samples:
        count += 1
        for key, array in sample.inputs.items():
            inputs.setdefault(key, []).extend(torch.from_numpy(array.copy()))
            digest.update(f"{key} {array.dtype} {array.shape}".encode() + array.tobytes())
        label = _label(sample.label, name)
        labels += [] if label is None else [label]
        digest.update(repr(sample.label).encode())
    if not count:
        raise DataError(f"{name} gives no sample", hint="yield (inputs, label)")
    if {len(rows) for rows in inputs.values()} != {count}:
        raise DataError(
            f"{name}: samples of several rows cannot be trained on one by one",
            hint="yield single samples: a batch axis of 1, or none",
        )
    if len(labels) not in (0, count):  # answers of the source would stand beside labels
        raise DataError(f"{name}: some samples have a label and others not", hint="label all, or none")
    return Dataset(
        inputs={key: stacked(rows) for key, rows in inputs.items()},
        labels=stacked(labels) if labels else None,
        fingerprint=digest.hexdigest(),
    )


def _label(label: object, name: str) -> torch.Tensor | None:
    if label is None:
        return None
    array = np.asarray(label)
    if array.dtype.kind not in "biuf":
        raise DataError(
            f"{name}: a label is {label!r}", hint="yield class numbers, or arrays of them, or of floats"
        )
    tensor = torch.from_numpy(array.astype(np.float32 if array.dtype.kind == "f" else np.int64))
    return tensor[0] if tensor.dim() > 1 and tensor.shape[0] == 1 else tensor


def stacked(rows: list[torch.Tensor]) -> Rows:
    """Rows of one shape and type as one tensor; others as they are."""
    return torch.stack(rows) if len({(r.shape, r.dtype) for r in rows}) == 1 else rows


def _some(values: Rows, rows: Sequence[int]) -> Rows:
    return values[list(rows)] if isinstance(values, torch.Tensor) else [values[r] for r in rows]


def _pick(values: Rows, rows: Sequence[int], padding: int) -> torch.Tensor:
    """The rows as one tensor, padded at the end of each axis to the longest."""
    some = _some(values, rows)
    if isinstance(some, torch.Tensor):
        return some
    sizes = [max(r.shape[axis] for r in some) for axis in range(some[0].dim())]
    out = torch.full((len(some), *sizes), padding, dtype=some[0].dtype)
    for row, value in zip(out, some, strict=True):
        row[tuple(slice(0, size) for size in value.shape)] = value
    return out
