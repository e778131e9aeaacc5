"""Inverse matrices and linear equations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from edgekit.graph.export.decompositions.table import decomposes, static

aten = torch.ops.aten


_LARGEST = 32
"""Columns: each is a dozen operators."""


def solved(a: Tensor, b: Tensor) -> Tensor:
    """``a⁻¹ b`` for ``a [..., n, n]`` and ``b [..., n, m]``: Gauss and Jordan's elimination, rows exchanged for the
    largest pivot."""
    n = a.shape[-1]
    lead = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])  # type: ignore[no-untyped-call]
    whole = torch.cat([a.expand(*lead, n, n), b.expand(*lead, n, b.shape[-1])], -1)
    rows = torch.arange(n, device=a.device)
    for k in range(n):
        sizes = torch.where(rows >= k, whole[..., k].abs(), -1.0)
        best = sizes.argmax(-1, keepdim=True)
        order = torch.where(rows == k, best, torch.where(rows == best, k, rows))
        whole = whole.gather(-2, order.unsqueeze(-1).expand(whole.shape))
        row = whole[..., k : k + 1, :]
        pivot = row / row[..., k : k + 1]
        rest = whole - whole[..., k : k + 1] * pivot
        whole = torch.where((rows == k).unsqueeze(-1), pivot, rest)
    return whole[..., n:]


def small(a: Tensor) -> bool:
    """Whether it is a float matrix with few enough columns to be taken apart."""
    return static(a.shape[-1]) and a.shape[-1] <= _LARGEST and a.is_floating_point()


@decomposes(aten.linalg_inv.default, aten.inverse.default)
def inverse(a: Tensor) -> Any:
    """By elimination, beside the identity."""
    if not small(a):
        return NotImplemented
    return solved(a, torch.eye(a.shape[-1], dtype=a.dtype, device=a.device))


@decomposes(aten.linalg_inv_ex.default)
def inverse_ex(a: Tensor, *, check_errors: bool = False) -> Any:
    """:func:`inverse`, with the information that nothing went wrong."""
    del check_errors
    if not small(a):
        return NotImplemented
    return inverse(a), torch.zeros(a.shape[:-2], dtype=torch.int32, device=a.device)


@decomposes(aten.linalg_solve.default)
def solve(a: Tensor, b: Tensor, *, left: bool = True) -> Any:
    """By elimination; a vector is a matrix of one column."""
    if not small(a):
        return NotImplemented
    vector = b.dim() == 1 or (b.dim() == a.dim() - 1 and b.shape == a.shape[:-1])
    right = b.unsqueeze(-1) if vector else b
    if left:
        result = solved(a, right)
    else:
        result = solved(a.mT, right if vector else right.mT)
        result = result if vector else result.mT
    return result.squeeze(-1) if vector else result
