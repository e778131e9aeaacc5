"""What edgekit calibrates and evaluates the classifier on."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import sst2

CALIBRATION_SAMPLES = 128


def calibration() -> Iterator[dict[str, np.ndarray]]:
    """128 sentences of the training set."""
    yield from (inputs for inputs, _ in _samples("train", CALIBRATION_SAMPLES))


def evaluation() -> Iterator[tuple[dict[str, np.ndarray], int]]:
    """The test set: good is 1, bad is 0."""
    return _samples("test")


def _samples(part: str, count: int = 0) -> Iterator[tuple[dict[str, np.ndarray], int]]:
    """``count`` sentences spread over one part (0: all), ``[1, 64]`` each."""
    found = sst2.read(part)
    rows = np.unique(np.linspace(0, len(found) - 1, count or len(found)).round().astype(int))
    for row in rows:
        yield (
            {"input_ids": found.ids[row][None], "attention_mask": found.mask[row][None]},
            int(found.labels[row]),
        )
