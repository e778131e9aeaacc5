"""Determinants, factors and functions of small matrices, column by column."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from edgekit.graph.export.decompositions.algebra import small, solved
from edgekit.graph.export.decompositions.table import decomposes, static

aten = torch.ops.aten


def _pivots(a: Tensor) -> tuple[Tensor, Tensor]:
    """The pivots of Gauss' elimination, ``[..., n]``, and the sign of the exchanges of rows, ``[...]``."""
    n = a.shape[-1]
    rows, sign, found = torch.arange(n, device=a.device), torch.ones_like(a[..., 0, 0]), []
    for k in range(n):
        best = torch.where(rows >= k, a[..., k].abs(), -1.0).argmax(-1, keepdim=True)
        order = torch.where(rows == k, best, torch.where(rows == best, k, rows))
        a = a.gather(-2, order.unsqueeze(-1).expand(a.shape))
        sign = sign * torch.where(best.squeeze(-1) == k, 1.0, -1.0)
        pivot = a[..., k, k]
        found.append(pivot)
        row = a[..., k : k + 1, :] / torch.where(pivot == 0, 1.0, pivot)[..., None, None]
        a = torch.where((rows > k).unsqueeze(-1), a - a[..., k : k + 1] * row, a)
    return torch.stack(found, -1), sign


@decomposes(aten.linalg_det.default, aten.det.default, misread=True)
def determinant(a: Tensor) -> Any:
    """The product of the pivots; ONNX's Det is in few runtimes."""
    if not small(a):
        return NotImplemented
    pivots, sign = _pivots(a)
    return pivots.prod(-1) * sign


@decomposes(aten.logdet.default, misread=True)
def logdet(a: Tensor) -> Any:
    """The logarithm of :func:`determinant`, NaN where that is negative."""
    if not small(a):
        return NotImplemented
    sign, logarithm = slogdet(a)
    return torch.where(sign < 0, float("nan"), logarithm)


@decomposes(aten.linalg_slogdet.default, aten.slogdet.default)
def slogdet(a: Tensor) -> Any:
    """Sign, and the sum of the pivots' logarithms."""
    if not small(a):
        return NotImplemented
    pivots, sign = _pivots(a)
    return sign * pivots.sign().prod(-1), pivots.abs().log().sum(-1)


@decomposes(aten.linalg_cholesky.default, aten.cholesky.default)
def cholesky(a: Tensor, *args: bool, upper: bool = False) -> Any:
    """Column by column, the rest less the column's outer product."""
    if not small(a):
        return NotImplemented
    n = a.shape[-1]
    rows, columns = torch.arange(n, device=a.device), []
    for k in range(n):
        column = torch.where(rows >= k, a[..., k] / a[..., k, k].sqrt().unsqueeze(-1), 0.0)
        columns.append(column)
        a = a - column.unsqueeze(-1) * column.unsqueeze(-2)
    return torch.stack(columns, -2 if any(args) or upper else -1)


@decomposes(aten.linalg_cholesky_ex.default)
def cholesky_ex(a: Tensor, *, upper: bool = False, check_errors: bool = False) -> Any:
    """:func:`cholesky`, with the information that nothing went wrong."""
    del check_errors
    if not small(a):
        return NotImplemented
    return cholesky(a, upper=upper), torch.zeros(a.shape[:-2], dtype=torch.int32, device=a.device)


def _reflected(q: Tensor, v: Tensor, tau: Tensor) -> Tensor:
    """``(1 - tau v vᵀ) q``."""
    return q - tau[..., None, None] * v.unsqueeze(-1) * (v.unsqueeze(-2) @ q)


@decomposes(aten.linalg_qr.default)
def qr(a: Tensor, mode: str = "reduced") -> Any:
    """By reflections, with LAPACK's signs."""
    if not static(*a.shape[-2:]) or max(a.shape[-2:]) > _LARGEST or not a.is_floating_point():
        return NotImplemented
    m, n = a.shape[-2:]
    rows, r = torch.arange(m, device=a.device), a
    q = torch.eye(m, dtype=a.dtype, device=a.device).expand(*a.shape[:-2], m, m)
    for k in range(min(m, n)):
        column = torch.where(rows >= k, r[..., k], 0.0)
        rest = torch.where(rows > k, column, 0.0).square().sum(-1)
        first = column[..., k]
        length = (rest + first.square()).sqrt()
        v = column + torch.where(rows == k, torch.where(first < 0, -length, length).unsqueeze(-1), 0.0)
        size = v.square().sum(-1)
        tau = torch.where(rest > 0, 2.0 / torch.where(size == 0, 1.0, size), 0.0)
        r, q = _reflected(r, v, tau), _reflected(q, v, tau)
    r, q = r.triu(), q.mT
    if mode == "r":
        return a.new_empty(0), r[..., : min(m, n), :]
    return (q, r) if mode == "complete" else (q[..., : min(m, n)], r[..., : min(m, n), :])


_LARGEST = 32


@decomposes(aten.linalg_householder_product.default, aten.orgqr.default)
def householder_product(a: Tensor, tau: Tensor) -> Any:
    """The first columns of the product of the reflections that ``a``'s columns and ``tau`` describe."""
    m, n = a.shape[-2:]
    if not static(m, n) or n > _LARGEST or not a.is_floating_point():
        return NotImplemented
    rows = torch.arange(m, device=a.device)
    q = torch.eye(m, n, dtype=a.dtype, device=a.device).expand(a.shape)
    for k in reversed(range(tau.shape[-1])):
        v = torch.where(rows > k, a[..., k], torch.where(rows == k, 1.0, 0.0))
        q = _reflected(q, v, tau[..., k])
    return q


@decomposes(aten.linalg_solve_triangular.default)
def solve_triangular(
    a: Tensor, b: Tensor, *, upper: bool, left: bool = True, unitriangular: bool = False
) -> Any:
    """By elimination, with the triangle alone."""
    if not small(a):
        return NotImplemented
    triangle = a.triu() if upper else a.tril()
    if unitriangular:
        one = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
        triangle = torch.where(one > 0, one, triangle)
    return solved(triangle, b) if left else solved(triangle.mT, b.mT).mT


_HALVINGS = 6
_DEGREE = 12


@decomposes(aten.linalg_matrix_exp.default, aten.matrix_exp.default)
def matrix_exp(a: Tensor) -> Any:
    """Taylor's series of a 64th, squared six times (Moler and Van Loan, 2003): for norms up to 64."""
    if not static(a.shape[-1]) or not a.is_floating_point():
        return NotImplemented
    one = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    part, result = a / 2**_HALVINGS, one
    for k in reversed(range(1, _DEGREE + 1)):
        result = one + part @ result / k
    for _ in range(_HALVINGS):
        result = result @ result
    return result


def _no_square(node: torch.fx.Node) -> bool:
    return len(node.args) > 2 and bool(node.args[2] != 2.0)


@decomposes(aten.cdist.default, aten._cdist_forward.default, where=_no_square)
def cdist(x: Tensor, y: Tensor, p: float = 2.0, compute_mode: int | None = None) -> Tensor:
    """The norm of every difference."""
    del compute_mode
    distance = (x.unsqueeze(-2) - y.unsqueeze(-3)).abs()
    if p == 0:
        return (distance > 0).to(x.dtype).sum(-1)
    if p == float("inf"):
        return distance.amax(-1)
    return distance.sum(-1) if p == 1 else distance.pow(p).sum(-1).pow(1 / p)
