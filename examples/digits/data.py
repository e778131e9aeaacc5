"""Real inputs for the digits network: what edgekit calibrates and evaluates on.

Calibration comes from the training split only, so that the accuracy that edgekit reports was never
tuned on the digits that it is measured on.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from digits_split import split

CALIBRATION_SAMPLES = 128


def calibration() -> Iterator[dict[str, np.ndarray]]:
    """128 training digits, one a sample: ``{"image": float32 [1, 1, 8, 8]}``."""
    images, _ = split()[0]
    for image in images[:CALIBRATION_SAMPLES]:
        yield {"image": image[None]}


def evaluation() -> Iterator[tuple[dict[str, np.ndarray], Any]]:
    """Every held-out digit with its label."""
    images, labels = split()[1]
    for image, label in zip(images, labels, strict=True):
        yield {"image": image[None]}, int(label)
