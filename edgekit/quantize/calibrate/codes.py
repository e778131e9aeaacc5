"""What the calibration doctor can find, by code: what ``--accept-data`` takes."""

from __future__ import annotations

CODES = (
    "colour-order",
    "constant",
    "coverage",
    "duplicates",
    "evaluation-data",
    "example",
    "grey",
    "layout",
    "noise",
    "normalization",
    "not-finite",
    "scale",
    "too-few-samples",
    "zeros",
)
