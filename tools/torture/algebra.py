"""Products and linear algebra."""

import torch
from torch import Tensor, nn

from torture.case import F, alone, both, case, rows


def square(x: Tensor) -> Tensor:
    """A well-conditioned matrix of a ``[1, 6, 6]`` input."""
    return x @ x.mT + 2 * torch.eye(6)


PRODUCTS = {
    "einsum-batch": lambda x, y: torch.einsum("bij,bkj->bik", x, y),
    "einsum-outer": lambda x, y: torch.einsum("bij,bkl->bil", x, y),
    "einsum-diagonal": lambda x, y: torch.einsum("bii->bi", x @ y.mT[:, :, :4]),
    "einsum-three": lambda x, y: torch.einsum("bij,bkj,bk->i", x, y, y.sum(-1)),
    "einsum-ellipsis": lambda x, y: torch.einsum("...ij,...kj->...ki", x, y),
    "bmm": lambda x, y: torch.bmm(x, y.mT),
    "baddbmm": lambda x, y: torch.baddbmm(x[:, :, :1], x, y.mT, beta=0.5, alpha=2),
    "addmm": lambda x, y: torch.addmm(x[0, :, 0], y[0], x[0].mT, alpha=0.5),
    "matmul-broadcast": lambda x, y: torch.matmul(x[:, None], y[None].mT),
    "matmul-vector": lambda x, y: x @ y[0, 0] + (x[0, 0] @ y[0].mT).sum(),
    "tensordot": lambda x, y: torch.tensordot(x, y, dims=([0, 2], [0, 2])),
    "cross": lambda x, y: torch.linalg.cross(x[..., :3], y[:, :4, :3]),
    "cdist": lambda x, y: torch.cdist(x, y),
    "cdist-1": lambda x, y: torch.cdist(x, y, p=1.0),
    "chain": lambda x, y: torch.linalg.multi_dot([x[0], y[0].mT, y[0]]),
    "inner": lambda x, y: torch.inner(x, y),
}
for _name, _what in PRODUCTS.items():
    both(f"product/{_name}", _what, F(2, 4, 6), F(2, 5, 6))


class Pair(nn.Module):
    """A bilinear form."""

    def __init__(self) -> None:
        super().__init__()
        self.pair = nn.Bilinear(4, 5, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.pair(x, y)


case("product/bilinear", Pair, (F(3, 4), F(3, 5)))

ALGEBRA = {
    "cholesky": lambda x: torch.linalg.cholesky(square(x)),
    "determinant": lambda x: torch.linalg.det(square(x) * 0.3).reshape(1, 1),
    "logdet": lambda x: torch.logdet(square(x)).reshape(1, 1),
    "slogdet": lambda x: torch.linalg.slogdet(square(x))[1].reshape(1, 1),
    "inverse": lambda x: torch.linalg.inv(square(x)),
    "matrix-exp": lambda x: torch.linalg.matrix_exp(x * 0.2),
    "matrix-power": lambda x: torch.linalg.matrix_power(x, 3),
    "pseudo-inverse": lambda x: torch.linalg.pinv(square(x)),
    "qr": lambda x: torch.linalg.qr(square(x))[1].abs(),
    "solve": lambda x: torch.linalg.solve(square(x), x),
    "solve-triangular": lambda x: torch.linalg.solve_triangular(square(x).tril(), x, upper=False),
    "trace": lambda x: torch.trace(x[0]).reshape(1, 1),
}
for _name, _what in ALGEBRA.items():
    rows(f"algebra/{_name}", _what, (6, 6))
alone("algebra/eigenvalues", lambda x: torch.linalg.eigvalsh(x @ x.mT), F(4, 4), reason=("linalg", "eigh"))
alone("algebra/singular-values", lambda x: torch.linalg.svdvals(x), F(4, 3), reason=("linalg", "svd"))
