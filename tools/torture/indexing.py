"""Gathers, scatters, masks, tables."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from torture.case import B, F, I, U, alone, both, case, rows

PLACES = torch.tensor([[0, 2, 1, 5, 3, 4, 2, 0], [5, 1, 0, 0, 2, 2, 4, 3]])[None]

rows("index/gather", lambda x: x.gather(1, PLACES))
rows("index/take-along", lambda x: torch.take_along_dim(x, x.argsort(2), 2))
rows("index/select", lambda x: x.index_select(1, torch.tensor([4, 0, 0, 2])))
rows("index/list", lambda x: x[:, [5, 1, 1], :] * x[:, :, [0, 7, 3]][:, :3].sum(-1, True))
rows("index/two-lists", lambda x: x[:, torch.tensor([[0], [2]]), torch.tensor([1, 3, 5])])
rows("index/take", lambda x: x.take(torch.tensor([[0, 11, 47]])))
rows("index/put", lambda x: x.index_put((torch.tensor([0]), torch.tensor([2])), torch.tensor(3.0)))
rows(
    "index/put-accumulate",
    lambda x: x.index_put((torch.tensor([0, 0, 0]), torch.tensor([2, 4, 2])), x[0, :3], True),
)
rows("index/add", lambda x: x.index_add(1, torch.tensor([1, 1, 4]), x[:, :3], alpha=2))
rows("index/copy", lambda x: x.index_copy(2, torch.tensor([6, 0]), x[:, :, :2] * 3))
rows("index/fill", lambda x: x.index_fill(1, torch.tensor([0, 3]), 0.5))
rows("index/scatter", lambda x: x.scatter(1, PLACES[:, :1], x[:, :1] * 2))
rows("index/scatter-value", lambda x: x.scatter(2, torch.tensor([[[1], [3]]]), 0.75))
rows("index/scatter-add", lambda x: x.scatter_add(1, PLACES, x[:, :2]))
for _reduce in ("sum", "prod", "mean", "amax", "amin"):
    rows(f"index/scatter-{_reduce}", lambda x, r=_reduce: x.scatter_reduce(1, PLACES, x[:, :2] * 2, r))
rows("index/scatter-mean-alone", lambda x: x.scatter_reduce(1, PLACES, x[:, :2], "mean", include_self=False))
rows("index/slice-scatter", lambda x: torch.slice_scatter(x, x[:, 1:3] * 2, 1, 0, 4, 2))
rows("index/select-scatter", lambda x: torch.select_scatter(x, x[:, 0] * 2, 1, 3))
rows("index/diagonal-scatter", lambda x: torch.diagonal_scatter(x, torch.ones(1, 6), 0, 1, 2))
rows("index/masked-fill", lambda x: x.masked_fill(x > 0.5, float("-inf")).softmax(-1))
rows("index/masked-scatter", lambda x: x.masked_scatter(x > 0.3, torch.arange(48.0)))
rows("index/masked-sum", lambda x: x[x > 0].sum().reshape(1, 1) + x.mean())
rows("index/where-indices", lambda x: x.amax(1)[:, torch.where(torch.tensor([1, 0, 1, 1, 0, 0, 1, 0]))[0]])
rows("index/one-hot", lambda x: functional.one_hot(x.argmax(1), 6).float() @ torch.arange(6.0))
rows("index/bucketize", lambda x: torch.bucketize(x, torch.tensor([-0.8, -0.1, 0.1, 0.7])).float())
rows(
    "index/searchsorted",
    lambda x: torch.searchsorted(x.sort(-1)[0], torch.tensor([[[0.1, 0.4]]]).expand(1, 6, 2)).float(),
)
both("index/computed", lambda x, i: x[i] + x.gather(0, i[:, None].expand(-1, 4)), F(9, 4), I(9, 5))
both("index/negative", lambda x, i: x[i], F(9, 4), I(9, 5, low=-9))
both(
    "index/dynamic",
    lambda x, i: x.index_select(0, i),
    F(9, 4),
    I(9, 5),
    dynamic={"y": {0: "n"}},
    other=(F(9, 4), I(9, 8)),
)
both("index/mask-where", lambda x, m: torch.where(m, x, x.mean()), F(4, 6), B(4, 6))
alone("index/nonzero", lambda x: x.nonzero(), I(2, 4, 5), reason=("nonzero", "NonZero"))


class Tables(nn.Module):
    """An embedding with a row of padding, and one that is normed."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 6, padding_idx=0)
        self.places = nn.Embedding(8, 6, max_norm=1.0)

    def forward(self, ids: Tensor) -> Tensor:
        return self.words(ids) + self.places(torch.arange(ids.shape[1]))


class Bag(nn.Module):
    """A bag of words of a fixed length, and a layer behind it."""

    def __init__(self, **how: Any) -> None:
        super().__init__()
        self.bag, self.last = nn.EmbeddingBag(20, 6, **how), nn.Linear(6, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.last(self.bag(ids))


class Offsets(nn.Module):
    """Bags that begin at offsets, with weights for each word."""

    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(20, 6, mode="sum")

    def forward(self, ids: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
        return self.bag(ids, offsets, per_sample_weights=weights)


case("table/embedding", Tables, I(20, 2, 7))
case("table/bag-mean", lambda: Bag(mode="mean"), I(20, 3, 7))
case("table/bag-sum", lambda: Bag(mode="sum"), I(20, 3, 7))
case("table/bag-max", lambda: Bag(mode="max"), I(20, 3, 7))
case("table/bag-padding", lambda: Bag(mode="mean", padding_idx=2), I(20, 3, 7))


class Ragged(nn.Module):
    """Bags at fixed offsets."""

    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(20, 6, mode="sum")

    def forward(self, ids: Tensor, weights: Tensor) -> Tensor:
        return self.bag(ids, torch.tensor([0, 3, 4]), per_sample_weights=weights)


case("table/bag-offsets", Ragged, (I(20, 9), U(0, 1, 9)))
