"""Reductions."""

import torch

from torture.case import B, F, I, alone, both, rows

REDUCTIONS = {
    "all-any": lambda x: (x, (x > -9).all(-1), (x > 1).any(1)),
    "amax-amin": lambda x: x.amax((1, 2), keepdim=True) * x.amin(2, keepdim=True),
    "aminmax": lambda x: torch.stack(torch.aminmax(x, dim=-1), 1),
    "count-nonzero": lambda x: (x, torch.count_nonzero(x.relu(), -1)),
    "diff": lambda x: torch.diff(x, n=2),
    "dist": lambda x: torch.dist(x, x.flip(1), 3).reshape(1, 1),
    "logsumexp": lambda x: torch.logsumexp(x, (1, 2)),
    "mean-std": lambda x: torch.cat(torch.std_mean(x, -1, correction=0), -1),
    "nansum": lambda x: torch.where(x > 0.5, torch.nan, x).nansum(-1),
    "nanmean": lambda x: torch.where(x > 0.5, torch.nan, x).nanmean(-1),
    "norm": lambda x: (torch.linalg.vector_norm(x, 3, -1), x.norm(p=float("inf"), dim=1)),
    "norm-matrix": lambda x: (torch.linalg.matrix_norm(x), torch.linalg.matrix_norm(x, 1)),
    "product": lambda x: x.prod(-1) + x.prod(1, keepdim=True).sum(-1),
    "product-whole": lambda x: x.tanh().prod().reshape(1, 1),
    "renorm": lambda x: torch.renorm(x, 2, 1, 0.9),
    "trapezoid": lambda x: torch.trapezoid(x, torch.linspace(0, 1, 8).square()),
    "variance": lambda x: x.var(1) + x.std((1, 2), keepdim=True)[:, 0],
    "cov": lambda x: torch.cov(x[0])[None],
    "corrcoef": lambda x: torch.corrcoef(x[0])[None],
}
for _name, _what in REDUCTIONS.items():
    rows(f"reduction/{_name}", _what)
alone("reduction/integers", lambda x: (x.sum(1), x.amax(), x.prod(0)), I(5, 3, 4))
alone("reduction/booleans", lambda x: (x.sum(), x.all(0), x.any()), B(3, 4))
alone(
    "reduction/dynamic",
    lambda x: (x.mean(1), x.std(1), x.sum()),
    F(2, 6),
    dynamic={"x": {1: "n"}},
    other=F(2, 11),
)
both("reduction/pairwise", lambda x, y: torch.nn.functional.pairwise_distance(x, y, p=1.5), F(4, 6), F(4, 6))
