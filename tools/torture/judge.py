"""Whether outputs are what PyTorch gives."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from torture.case import Case

FRESH = 3
"""Inputs that the build has not seen."""

NEAR_DB = {"fp32": 60.0, "int8": 9.0}
"""What an output that passed must have on fresh inputs, against PyTorch: the gates' limits (80 dB, 12 dB) less what
three small inputs may be worse."""
HALF_DB = 30.0
SAME = {"fp32": 0.99, "int8": 0.8}
"""The share of equal elements of integer and boolean outputs."""


def named(names: Sequence[str], example: Any) -> dict[str, np.ndarray]:
    """Tensors in the order of the call, under edgekit's names."""
    return {n: t.numpy() for n, t in zip(names, tensors(example), strict=True)}


def tensors(value: Any) -> list[Tensor]:
    """The tensors of what a module takes or returns, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [t for v in value.values() for t in tensors(v)]
    if isinstance(value, list | tuple):
        return [t for v in value for t in tensors(v)]
    if hasattr(value, "__dataclass_fields__"):
        return [t for f in value.__dataclass_fields__ for t in tensors(getattr(value, f))]
    return []


def reference(module: nn.Module, example: Any) -> list[np.ndarray]:
    """What PyTorch gives, called as a user calls it."""
    again = _cloned(example)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if isinstance(again, Mapping):
            result = module(**again)
        else:
            result = module(*again) if isinstance(again, tuple) else module(again)
    return [t.detach().resolve_conj().resolve_neg().numpy() for t in tensors(result)]


def _cloned(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, Mapping):
        return {k: _cloned(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_cloned(v) for v in value)
    return value


def near(case: Case, precision: str) -> float:
    return min(NEAR_DB[precision], HALF_DB) if case.half else NEAR_DB[precision]


def far(got: list[np.ndarray], expected: list[np.ndarray], precision: str, near: float) -> tuple[str, float]:
    """What is wrong with an answer, or nothing; and its worst signal-to-noise ratio in dB."""
    if [g.shape for g in got] != [e.shape for e in expected]:
        return f"shapes {[g.shape for g in got]} instead of {[e.shape for e in expected]}", 0.0
    worst = float("inf")
    for i, (g, e) in enumerate(zip(got, expected, strict=True)):
        if not e.size:
            continue
        if e.dtype.kind in "fc":
            decibel = _snr(g, e)
            worst = min(worst, decibel)
            if decibel < near:
                return f"output {i}: {decibel:.1f} dB", decibel
        elif (share := float(np.mean(g == e))) < SAME[precision]:
            return f"output {i}: {share:.0%} of its elements are equal", 0.0
    return "", worst


def _snr(got: np.ndarray, expected: np.ndarray) -> float:
    a, b = expected.astype(np.float64), got.astype(np.float64)
    if not np.array_equal(np.isfinite(a), np.isfinite(b)) or not np.array_equal(np.isnan(a), np.isnan(b)):
        return float("-inf")
    finite = np.isfinite(a)
    noise = float(np.square(a[finite] - b[finite]).sum())
    signal = float(np.square(a[finite]).sum())
    return 10 * float(np.log10(max(signal, 1e-12) / noise)) if noise > 1e-14 else float("inf")
