"""The one split of scikit-learn's digits that training, calibration and evaluation share."""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

SEED = 7
HELD_OUT = 0.25


def split() -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """(images, labels) for training, then held out: a fixed, stratified split of scikit-learn's digits.

    Images are float32 ``[N, 1, 8, 8]`` in 0 to 1, labels int64 ``[N]``.
    """
    data = load_digits()
    images = (data.images / 16).astype(np.float32)[:, None]
    labels = data.target.astype(np.int64)
    train_x, held_x, train_y, held_y = train_test_split(
        images, labels, test_size=HELD_OUT, stratify=labels, random_state=SEED
    )
    return (train_x, train_y), (held_x, held_y)
