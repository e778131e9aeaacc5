"""Metrics over batches of outputs and labels; label -100 is left out. All are better the higher they are."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch.nn import functional

from edgekit.compress.training.dataset import IGNORED
from edgekit.compress.training.task import Chance
from edgekit.errors import DataError


def accuracy(outputs: list[torch.Tensor], labels: list[torch.Tensor]) -> float:
    """The share of labels that have the highest score."""
    right = total = 0
    for guess, label in _classes(outputs, labels):
        right += int((guess == label).sum())
        total += len(label)
    return right / max(1, total)


def f1(outputs: list[torch.Tensor], labels: list[torch.Tensor], *, outside: int) -> float:
    """Micro-averaged F1 of all classes but ``outside``; 1 where there are none to find and none is found."""
    guesses = positives = right = 0
    for guess, label in _classes(outputs, labels):
        guesses += int((guess != outside).sum())
        positives += int((label != outside).sum())
        right += int(((guess == label) & (label != outside)).sum())
    return 2 * right / (guesses + positives) if guesses + positives else 1.0


def r2(outputs: list[torch.Tensor], labels: list[torch.Tensor]) -> float:
    """1 - squared error / variance of the labels."""
    predicted = torch.cat([o.double().flatten() for o in outputs])
    true = torch.cat([x.double().flatten() for x in labels])
    if predicted.shape != true.shape:
        raise DataError(
            f"{len(predicted)} outputs do not go with {len(true)} labels", hint="give a label for each number"
        )
    spread = (true - true.mean()).square().sum()
    return float(1 - (predicted - true).square().sum() / spread.clamp_min(1e-30))


def cosine(outputs: list[torch.Tensor], labels: list[torch.Tensor]) -> float:
    """The mean cosine between rows."""
    if any(o.shape != x.shape for o, x in zip(outputs, labels, strict=True)):
        raise DataError("outputs and labels have different shapes", hint="give vectors as the model gives")
    rows = [
        functional.cosine_similarity(o.double(), x.double(), dim=-1)
        for o, x in zip(outputs, labels, strict=True)
    ]
    return float(torch.cat([r.flatten() for r in rows]).mean())


def majority(labels: list[torch.Tensor]) -> Chance:
    """The accuracy of answering always the same class."""
    counts = _counts(labels)
    total = max(1, int(counts.sum()))
    share = int(counts.max()) / total if len(counts) else 0.0
    return Chance(level=share, spread=math.sqrt(share * (1 - share) / total))


def constant_f1(labels: list[torch.Tensor], *, outside: int) -> Chance:
    """:func:`f1` of answering always the same class."""
    counts = _counts(labels)
    inside = counts.clone()
    inside[outside : outside + 1] = 0
    total, positives = int(counts.sum()), int(inside.sum())
    return Chance(level=2 * int(inside.max()) / (total + positives) if positives else 1.0)


def constant_cosine(labels: list[torch.Tensor]) -> Chance:
    """:func:`cosine` of answering always the mean direction."""
    rows = functional.normalize(torch.cat([x.double().flatten(0, -2) for x in labels]), dim=-1)
    return Chance(level=float(rows.mean(0).norm()))


def _counts(labels: list[torch.Tensor]) -> torch.Tensor:
    """How often each class occurs."""
    flat = torch.cat([x.flatten() for x in labels])
    return torch.bincount(flat[flat != IGNORED])


def _classes(
    outputs: list[torch.Tensor], labels: list[torch.Tensor]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for scores, label in zip(outputs, labels, strict=True):
        guess, flat = scores.argmax(-1).flatten(), label.flatten()
        if guess.shape != flat.shape:
            raise DataError(
                f"outputs {list(scores.shape)} do not go with labels {list(label.shape)}",
                hint="one label for each row of scores",
            )
        counts = flat != IGNORED
        if counts.any() and not 0 <= int(flat[counts].min()) <= int(flat[counts].max()) < scores.shape[-1]:
            raise DataError(
                f"labels from {int(flat[counts].min())} to {int(flat[counts].max())} with {scores.shape[-1]} scores",
                hint="labels are class numbers from 0; name the right output with output=… of the task",
            )
        yield guess[counts], flat[counts]
