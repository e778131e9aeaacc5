"""Real sentences for the encoder: one file to calibrate on, another, never seen, to evaluate on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from minilm_tokens import tokenize

HERE = Path(__file__).parent


def calibration() -> Iterator[dict[str, np.ndarray]]:
    """One sample a sentence: ``input_ids`` and ``attention_mask`` int64 ``[1, 64]``."""
    yield from map(tokenize, sentences("calibration.txt"))


def evaluation() -> Iterator[dict[str, np.ndarray]]:
    """The held-out sentences. The metric is the cosine to the fp32 embedding: there are no labels."""
    yield from map(tokenize, sentences("evaluation.txt"))


def sentences(name: str) -> list[str]:
    """The non-empty lines of a text file beside this one."""
    return [line for line in (HERE / name).read_text(encoding="utf-8").splitlines() if line.strip()]
