"""What edgekit calibrates and evaluates the network on."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import speech

CALIBRATION_SAMPLES = 200


def calibration() -> Iterator[dict[str, np.ndarray]]:
    """200 clips of the training set, spread over digits and speakers."""
    features = speech.features("train")
    for row in np.linspace(0, len(features) - 1, CALIBRATION_SAMPLES).astype(int):
        yield {"features": features[row][None]}


def evaluation() -> Iterator[tuple[dict[str, np.ndarray], int]]:
    """The official test set."""
    for one, label in zip(speech.features("test"), speech.read("test").labels, strict=True):
        yield {"features": one[None]}, int(label)
