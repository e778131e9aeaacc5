"""Sorting, choosing, running values."""

import torch

from torture.case import F, I, alone, rows

ORDER = {
    "sort": lambda x: x.sort(-1),
    "sort-descending": lambda x: x.sort(1, descending=True)[0],
    "stable-sort": lambda x: (x * 2).round().sort(stable=True, dim=-1),
    "argsort": lambda x: x.gather(2, x.argsort(-1, descending=True)),
    "msort": lambda x: torch.msort(x[0])[None],
    "topk": lambda x: x.topk(3, -1),
    "topk-smallest": lambda x: x.topk(2, 1, largest=False)[0],
    "topk-unsorted": lambda x: x.topk(4, -1, sorted=False)[0].sum(-1),
    "kthvalue": lambda x: x.kthvalue(3, -1)[0],
    "median": lambda x: x.median(-1)[0],
    "median-whole": lambda x: x.median().reshape(1, 1),
    "nanmedian": lambda x: torch.where(x > 0.8, torch.nan, x).nanmedian(-1)[0].nan_to_num(),
    "quantile": lambda x: torch.quantile(x, 0.3, -1),
    "quantiles": lambda x: torch.quantile(x, torch.tensor([0.1, 0.5, 0.9]), 1).mT.reshape(1, -1),
    "quantile-nearest": lambda x: torch.quantile(x, 0.4, -1, interpolation="nearest"),
    "nanquantile": lambda x: torch.nanquantile(x, 0.5, -1),
    "mode": lambda x: x.round().mode(-1)[0],
    "cummax": lambda x: x.cummax(-1)[0],
    "cummin": lambda x: x.cummin(1)[0],
    "cumsum": lambda x: x.cumsum(1),
    "cumsum-integer": lambda x: (x > 0).cumsum(-1) * 1.0,
    "cumprod": lambda x: (1 + 0.1 * x).cumprod(-1),
    "logcumsumexp": lambda x: x.logcumsumexp(-1),
    "cumulative-trapezoid": lambda x: torch.cumulative_trapezoid(x, dx=0.5),
    "argmax-whole": lambda x: (x, x.argmax()),
    "argmin-kept": lambda x: (x, x.argmin(1, keepdim=True)),
    "max-dim": lambda x: x.max(-1),
    "unravel": lambda x: (x, torch.stack(torch.unravel_index(x.argmax(), (1, 6, 8)))),
}
for _name, _what in ORDER.items():
    rows(f"order/{_name}", _what)
alone("order/sort-integers", lambda x: x.sort(-1), I(1000, 3, 9))
alone("order/sort-booleans", lambda x: (x > 0).sort(stable=True, dim=-1), F(3, 9))
alone("order/unique", lambda x: x.unique(), I(6, 12), reason=("unique", "Unique"))
alone(
    "order/unique-counts",
    lambda x: torch.unique(x, return_inverse=True, return_counts=True),
    I(6, 12),
    reason=("unique", "Unique"),
)
alone("order/bincount", lambda x: torch.bincount(x, minlength=7), I(6, 12), reason=("bincount",))
alone("order/histogram", lambda x: torch.histc(x, 6, -2, 2), F(40))
