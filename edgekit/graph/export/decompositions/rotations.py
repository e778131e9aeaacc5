"""Singular values, eigenvalues of symmetric matrices and pseudo-inverses of small matrices, by Jacobi's rotations.

Half of the columns are rotated against the other half at a time; after some rounds of all pairs nothing is left to
rotate in float32 (Golub and Van Loan, 2013, 8.5 and 8.6). Vectors have a sign of their own, as LAPACK's have:
where a module's outputs depend on it, the comparison with the module refuses the graph.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from edgekit.graph.export.decompositions.table import decomposes, static

aten = torch.ops.aten

_LARGEST = 8
"""Columns: each sweep is that many rounds of three dozen operators."""


def _rounds(columns: int) -> range:
    """How often half of the columns are rotated: all pairs meet in each of six sweeps, of four for few."""
    return range((6 if columns > 4 else 4) * (columns - 1))


def _angle(difference: Tensor, product: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the rotations that make ``product`` zero, the smaller of the two possible."""
    none = product == 0
    zeta = difference / (2 * torch.where(none, 1.0, product))
    tangent = torch.where(zeta < 0, -1.0, 1.0) / (zeta.abs() + (1 + zeta.square()).sqrt())
    tangent = torch.where(none, 0.0, tangent)
    cosine = (1 + tangent.square()).rsqrt()
    return cosine, cosine * tangent


def _turned(a: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """The columns of the left half rotated against those of the right half, and moved on in their ring: after ``n - 1``
    rounds every two columns have met, and all are where they were (Brent and Luk, 1985)."""
    half = a.shape[-1] // 2
    p, q = a[..., :half], a[..., half:]
    c, s = cosine.unsqueeze(-2), sine.unsqueeze(-2)
    p, q = c * p - s * q, s * p + c * q
    if half == 1:
        return torch.cat([p, q], -1)
    return torch.cat([p[..., :1], q[..., :1], p[..., 1:-1], q[..., 1:], p[..., -1:]], -1)


def _one_sided(a: Tensor) -> tuple[Tensor, Tensor]:
    """``(b, v)`` with ``a v = b``, the columns of ``b`` orthogonal to each other and ``v`` orthogonal."""
    n = a.shape[-1]
    a = torch.nn.functional.pad(a, [0, n % 2])  # a column of zeros is never rotated
    half = a.shape[-1] // 2
    v = torch.eye(2 * half, dtype=a.dtype, device=a.device).expand(*a.shape[:-2], 2 * half, 2 * half)
    for _ in _rounds(2 * half):
        p, q = a[..., :half], a[..., half:]
        difference = q.square().sum(-2) - p.square().sum(-2)
        angle = _angle(difference, (p * q).sum(-2))
        a, v = _turned(a, *angle), _turned(v, *angle)
    return a[..., :n], v[..., :n, :n]


def _two_sided(a: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues ``[..., n]`` of a symmetric matrix, and its eigenvectors as columns, in no order."""
    n = a.shape[-1]
    a = torch.nn.functional.pad(a, [0, n % 2, 0, n % 2])
    half = a.shape[-1] // 2
    v = torch.eye(2 * half, dtype=a.dtype, device=a.device).expand(a.shape)
    for _ in _rounds(2 * half):
        diagonal = a.diagonal(0, -2, -1)
        off = a[..., :half, half:].diagonal(0, -2, -1)
        angle = _angle(diagonal[..., half:] - diagonal[..., :half], off)
        a = _turned(_turned(a, *angle).mT, *angle)
        v = _turned(v, *angle)
    return a.diagonal(0, -2, -1)[..., :n], v[..., :n, :n]


def _fits(a: Tensor) -> bool:
    sizes = a.shape[-2:]
    return static(*sizes) and 0 < min(sizes) <= _LARGEST and a.is_floating_point()


def _in_order(values: Tensor, vectors: list[Tensor], *, largest: bool) -> tuple[Tensor, list[Tensor]]:
    """Sorted values, and the columns that go with them."""
    ordered, places = values.topk(values.shape[-1], -1, largest, True)
    return ordered, [t.gather(-1, places.unsqueeze(-2).expand(t.shape)) for t in vectors]


@decomposes(aten._linalg_svd.default, aten.linalg_svd.default)
def svd(a: Tensor, full_matrices: bool = False, compute_uv: bool = True, *, driver: str | None = None) -> Any:
    """One-sided rotations of the smaller side's columns; vectors in their reduced form alone."""
    del driver
    if not _fits(a) or (compute_uv and full_matrices and a.shape[-2] != a.shape[-1]):
        return NotImplemented
    wide = a.shape[-2] < a.shape[-1]
    b, v = _one_sided(a.mT if wide else a)
    sizes, (b, v) = _in_order(b.square().sum(-2).sqrt(), [b, v], largest=True)
    u = b / torch.where(sizes == 0, 1.0, sizes).unsqueeze(-2)
    return (v, sizes, u.mT) if wide else (u, sizes, v.mT)


@decomposes(aten.linalg_svdvals.default)
def svdvals(a: Tensor, *, driver: str | None = None) -> Any:
    """The singular values of :func:`svd`."""
    result = svd(a, compute_uv=False, driver=driver)
    return result if result is NotImplemented else result[1]


@decomposes(aten._linalg_eigh.default, aten.linalg_eigh.default)
def eigh(a: Tensor, uplo: str = "L", compute_v: bool = True) -> Any:
    """Rotations from both sides, of one triangle and its mirror image."""
    del compute_v
    if not _fits(a):
        return NotImplemented
    half = a.tril(-1) if uplo.upper() == "L" else a.triu(1)
    whole = half + half.mT + torch.diag_embed(a.diagonal(0, -2, -1))
    values, vectors = _two_sided(whole)
    values, (vectors,) = _in_order(values, [vectors], largest=False)
    return values, vectors


@decomposes(aten.linalg_eigvalsh.default)
def eigvalsh(a: Tensor, uplo: str = "L") -> Any:
    """The eigenvalues of :func:`eigh`."""
    result = eigh(a, uplo)
    return result if result is NotImplemented else result[0]


@decomposes(aten.linalg_pinv.atol_rtol_tensor, aten.linalg_pinv.atol_rtol_float)
def pseudo_inverse(a: Tensor, *, atol: Any = None, rtol: Any = None, hermitian: bool = False) -> Any:
    """From the singular values above the tolerance."""
    if not _fits(a) or hermitian:
        return NotImplemented
    wide = a.shape[-2] < a.shape[-1]
    b, v = _one_sided(a.mT if wide else a)
    squares = b.square().sum(-2)
    sizes = squares.sqrt()
    share = rtol if rtol is not None else 0.0 if atol is not None else _share(a)
    least = sizes.amax(-1, keepdim=True) * share
    least = torch.maximum(least, torch.zeros_like(least) + (0.0 if atol is None else atol))
    factors = torch.where(sizes > least, 1 / torch.where(squares == 0, 1.0, squares), 0.0)
    inverse = (v * factors.unsqueeze(-2)) @ b.mT
    return inverse.mT if wide else inverse


def _share(a: Tensor) -> float:
    """PyTorch's default tolerance, relative to the largest singular value."""
    return max(a.shape[-2:]) * torch.finfo(a.dtype).eps
