"""Sources and data for the tests of what goes wrong."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from edgekit import TorchModel


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 16)
        self.second = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.first(x)))


def tiny():
    torch.manual_seed(1)
    return Tiny(), torch.randn(1, 8)


class _Erf(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.erf(x)


def with_erf():
    return _Erf(), torch.randn(1, 8)


def without_example():
    torch.manual_seed(1)
    return Tiny()


def collapsing():
    """INT8 with ranges from inputs that are a thousand times too small."""
    return tiny()


def raising():
    return helper_that_raises()


def helper_that_raises():
    raise RuntimeError("the weights are in the other office")


def _rows(scale: float = 1.0, count: int = 32) -> Iterator[np.ndarray]:
    generator = np.random.default_rng(5)
    for _ in range(count):
        yield (scale * generator.standard_normal((1, 8))).astype(np.float32)


def wide() -> Iterator[np.ndarray]:
    yield from _rows()


def narrow() -> Iterator[np.ndarray]:
    yield from _rows(scale=1e-3)


def wrong_shape() -> Iterator[np.ndarray]:
    yield from _rows(count=3)
    yield np.zeros((1, 7), np.float32)


def wrong_dtype() -> Iterator[np.ndarray]:
    yield np.array([["a"] * 8])


def nothing() -> Iterator[np.ndarray]:
    return iter(())


def not_a_number() -> Iterator[np.ndarray]:
    yield from _rows(count=2)
    yield np.full((1, 8), np.nan, np.float32)


def slow() -> Iterator[np.ndarray]:
    """As long as the environment says, in all; at once by default."""
    rows = list(_rows())
    for row in rows:
        time.sleep(float(os.environ.get("EDGEKIT_TEST_SLOW", "0")) / len(rows))
        yield row


class Outlier(nn.Module):
    """A classifier in which one channel of one layer is many times the others: INT8 sees only that one."""

    def __init__(self, times: float = 1000.0) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.first = nn.Linear(8, 32)
        self.fragile = nn.Linear(32, 32)
        self.last = nn.Linear(32, 4)
        with torch.no_grad():
            self.fragile.weight[0] *= times
            self.last.weight[:, 0] *= 0.1 / times

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.fragile(torch.tanh(self.first(x))))


def outlier():
    return Outlier(), torch.zeros(1, 8)


def within_int16():
    """Beside a hundred times larger values INT16 leaves eight bits to the others, INT8 one."""
    return Outlier(100.0), torch.zeros(1, 8)


class Product(nn.Module):
    """One product that is worth four bits (2,048 weights) between two small ones."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.wide, self.last = nn.Linear(8, 32), nn.Linear(32, 64), nn.Linear(64, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.wide(torch.relu(self.first(x)))))


def product():
    torch.manual_seed(2)
    return Product(), torch.zeros(1, 8)


def outlier_labels(times: float = 1000.0) -> Iterator[tuple[np.ndarray, int]]:
    model = Outlier(times).eval()
    for row in _rows(count=256):
        yield row, int(model(torch.from_numpy(row)).argmax())


def within_int16_labels() -> Iterator[tuple[np.ndarray, int]]:
    yield from outlier_labels(100.0)


def bright() -> Iterator[np.ndarray]:
    """Inputs that somebody forgot to divide by 255."""
    for row in _rows(count=64):
        yield row * 255


def plain() -> Iterator[np.ndarray]:
    yield from _rows(count=64)


class Text(nn.Module):
    """The mean of embeddings where the mask says so."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(50, 8), nn.Linear(8, 3)

    def forward(self, ids, mask):
        kept = mask[..., None].float()
        return self.head((self.embedding(ids) * kept).sum(1) / kept.sum(1).clamp(min=1))


def text():
    torch.manual_seed(0)
    example = {"ids": torch.ones(1, 6, dtype=torch.long), "mask": torch.ones(1, 6, dtype=torch.bool)}
    return TorchModel(
        module=Text().eval(),
        example_inputs=example,
        dynamic_axes={"ids": {1: "length"}, "mask": {1: "length"}},
        preprocessing={"padding": {"values": {"ids": 0, "mask": 0}}},
    )


def rows(generator):
    for i in range(40):
        length = 3 + i % 17
        yield {"ids": generator.integers(0, 50, (1, length)), "mask": np.ones((1, length), bool)}


def sentences():
    return rows(np.random.default_rng(0))


def unseeded():
    return rows(np.random.default_rng())


class Tagger(nn.Module):
    """Words through a recurrent layer, which has no calibrated ranges."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.steps, self.tags = (
            nn.Embedding(50, 24),
            nn.GRU(24, 32, batch_first=True),
            nn.Linear(32, 5),
        )

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        return self.tags(self.steps(self.words(words))[0])


def tagger():
    torch.manual_seed(0)
    return Tagger(), torch.randint(0, 50, (1, 20))


def tagged_words() -> Iterator[np.ndarray]:
    for row in np.random.default_rng(1).integers(0, 50, (64, 20)):
        yield row[None]


class Detector(nn.Module):
    """Boxes in pixels and scores between 0 and 1 in one output."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
        self.box, self.score = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 1, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        found = self.body(image)
        return torch.cat([self.box(found) * 640, self.score(found).sigmoid()], dim=1)


def detector():
    torch.manual_seed(0)
    return Detector(), torch.rand(1, 3, 16, 16)


def pictures() -> Iterator[np.ndarray]:
    for seed in range(32):
        generator = np.random.default_rng(seed)
        coarse = generator.random((1, 3, 4, 4), dtype=np.float32)
        yield np.repeat(np.repeat(coarse, 4, axis=2), 4, axis=3)
