"""What edgekit calibrates and evaluates the tagger on, and how entities are scored."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import wnut

CALIBRATION_SAMPLES = 128


def calibration() -> Iterator[dict[str, np.ndarray]]:
    """128 sentences of the training set."""
    sentences = wnut.read("train")
    for row in range(0, len(sentences), len(sentences) // CALIBRATION_SAMPLES):
        yield {"input_ids": sentences.ids[row][None], "attention_mask": sentences.mask[row][None]}


def evaluation() -> Iterator[tuple[dict[str, np.ndarray], Any]]:
    """The test set, with a tag for every token."""
    sentences = wnut.read("test")
    for ids, mask, labels in zip(sentences.ids, sentences.mask, sentences.labels, strict=True):
        yield {"input_ids": ids[None], "attention_mask": mask[None]}, labels


def entity_f1(outputs: list[dict[str, np.ndarray]], labels: list[np.ndarray]) -> float:
    """Micro-averaged F1 of whole entities; for ``--metric``."""
    from seqeval.metrics import f1_score

    logits = [next(iter(named.values())) for named in outputs]
    predicted, true = wnut.spans(logits, [np.asarray(label) for label in labels])
    return float(f1_score(true, predicted, zero_division=0))


entity_f1.whole = True  # type: ignore[attr-defined]  # no mean over sentences: edgekit hands in the whole set
