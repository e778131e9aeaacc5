"""Rows of weights by least squares where some of them stay zero."""

from __future__ import annotations

import torch

_ITERATIONS = 300
_ENOUGH = 1e-16
"""Of the squared residual."""


def solved(moments: torch.Tensor, missing: torch.Tensor, free: torch.Tensor | None) -> torch.Tensor:
    """``x`` with ``x @ moments = missing``; with ``free`` (0 or 1, in the shape of ``x``) each row by conjugate
    gradients over its free entries, the others 0."""
    if free is None:
        exact: torch.Tensor = torch.linalg.solve(moments, missing.T).T
        return exact
    scale, tiny = 1 / moments.diagonal(), torch.finfo(torch.float64).tiny
    x, left = torch.zeros_like(missing), missing * free
    start = left.square().sum()
    direction = scaled = left * scale
    for _ in range(_ITERATIONS):
        if left.square().sum() <= _ENOUGH * start:
            break
        moved = direction @ moments * free
        before = (left * scaled).sum(1, keepdim=True)
        step = before / (direction * moved).sum(1, keepdim=True).clamp_min(tiny)
        x, left = x + step * direction, left - step * moved
        scaled = left * scale
        direction = scaled + direction * (left * scaled).sum(1, keepdim=True) / before.clamp_min(tiny)
    return x
