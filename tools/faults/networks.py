"""Ten small networks of as many kinds of output, each trained in seconds, with data to calibrate and to evaluate on.

``score`` says how good outputs are against the truth (0 to 1): it decides whether a fault did harm, and no gate
sees it. Everything is drawn from fixed seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import nn

Rows: TypeAlias = np.ndarray
Score: TypeAlias = Callable[[Sequence[dict[str, np.ndarray]]], float]
EVALUATED = 128


@dataclass(frozen=True, kw_only=True)
class Network:
    """A trained module, inputs ``[n, …]`` to calibrate and to evaluate on, and how good outputs are."""

    name: str
    module: nn.Module
    calibration: Rows
    evaluation: Rows
    score: Score
    image: bool = False


def networks() -> list[Network]:
    """All of them, trained now."""
    torch.set_num_threads(1)
    makers = (
        digits,
        indices,
        embedding,
        detector,
        segmentation,
        weather,
        barometer,
        denoiser,
        sequence,
        depth,
    )
    made = []
    for maker in makers:
        torch.manual_seed(0)
        made.append(maker())
    return made


def _fit(
    module: nn.Module,
    x: torch.Tensor,
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    epochs: int,
) -> None:
    optimizer = torch.optim.Adam(module.parameters(), 3e-3)
    module.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(32):
            optimizer.zero_grad()
            loss(module(x[rows]), rows).backward()
            optimizer.step()
    module.eval()


def _first(outputs: Sequence[dict[str, np.ndarray]]) -> np.ndarray:
    return np.concatenate([next(iter(o.values())) for o in outputs])


def _explained(truth: np.ndarray) -> Score:
    """R² of the worst column, not below 0. Columns are those of axis 1."""

    def score(outputs: Sequence[dict[str, np.ndarray]]) -> float:
        axes = tuple(k for k in range(truth.ndim) if k != 1)
        error = ((_first(outputs) - truth) ** 2).mean(axis=axes)
        return float(max(0.0, (1 - error / truth.var(axis=axes)).min()))

    return score


# --- classes -----------------------------------------------------------------------------------------


def _digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    order = np.random.default_rng(0).permutation(len(bunch.target))
    return (bunch.images[order, None] / 16).astype(np.float32), bunch.target[order]


class Convolutions(nn.Module):
    """Three convolutions and a linear layer on 8 x 8 pictures."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(32, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).mean((2, 3)))


def _accuracy(labels: np.ndarray) -> Score:
    def score(outputs: Sequence[dict[str, np.ndarray]]) -> float:
        found = _first(outputs)
        classes = found if found.ndim == 1 else found.argmax(axis=1)
        return float((classes == labels).mean())

    return score


def _classifier() -> tuple[Convolutions, np.ndarray, np.ndarray]:
    x, y = _digits()
    network, labels = Convolutions(10), torch.from_numpy(y)
    _fit(
        network,
        torch.from_numpy(x[600:]),
        lambda p, rows: nn.functional.cross_entropy(p, labels[600:][rows]),
        12,
    )
    return network, x, y


def digits() -> Network:
    """Scores of ten classes."""
    network, x, y = _classifier()
    return Network(
        name="classes", module=network, calibration=x[200:328], evaluation=x[:EVALUATED], image=True,
        score=_accuracy(y[:EVALUATED]),
    )  # fmt: skip


class Indices(nn.Module):
    """The class itself, and whether it is sure."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scores = self.network(x)
        return scores.argmax(1), scores.amax(1) > 4.0


def indices() -> Network:
    """Integers and booleans for outputs."""
    network, x, y = _classifier()
    return Network(
        name="indices", module=Indices(network).eval(), calibration=x[200:328], evaluation=x[:EVALUATED],
        image=True, score=_accuracy(y[:EVALUATED]),
    )  # fmt: skip


class Unit(nn.Module):
    """An embedding of unit length."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(self.network(x), dim=1)


def embedding() -> Network:
    """Unit vectors of 32 columns, good when the nearest class centre is the right one."""
    x, y = _digits()
    network, labels = Unit(Convolutions(32)), torch.from_numpy(y)
    centres = nn.functional.normalize(torch.randn(10, 32), dim=1)
    _fit(
        network,
        torch.from_numpy(x[600:]),
        lambda p, rows: nn.functional.cross_entropy(p @ centres.T * 8, labels[600:][rows]),
        12,
    )

    def score(outputs: Sequence[dict[str, np.ndarray]]) -> float:
        return float(((_first(outputs) @ centres.numpy().T).argmax(1) == y[:EVALUATED]).mean())

    return Network(
        name="embedding",
        module=network,
        calibration=x[200:328],
        evaluation=x[:EVALUATED],
        image=True,
        score=score,
    )


# --- pictures ----------------------------------------------------------------------------------------


def _scenes(count: int, seed: int, size: int = 32) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pictures with one coloured square each: ``[n, 3, s, s]``, its box in pixels ``[n, 4]`` and its class ``[n]``."""
    random = np.random.default_rng(seed)
    grain = random.normal(0.4, 0.06, (count, 3, size // 4, size // 4))
    x = grain.repeat(4, axis=2).repeat(4, axis=3) + random.normal(0, 0.02, (count, 3, size, size))
    boxes, classes = np.zeros((count, 4)), random.integers(0, 3, count)
    for k in range(count):
        w, h = random.integers(6, 14, 2)
        left, top = random.integers(0, size - w), random.integers(0, size - h)
        x[k, :, top : top + h, left : left + w] = 0.15
        x[k, classes[k], top : top + h, left : left + w] = 0.9
        boxes[k] = (left + w / 2, top + h / 2, w, h)
    return x.astype(np.float32), boxes.astype(np.float32) * 20, classes


class Detector(nn.Module):
    """A box in pixels (0 to 640) and scores (0 to 1) for every cell, in one tensor ``[n, 7, cells]``."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.SiLU(),
            nn.Conv2d(16, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.SiLU(),
            nn.Conv2d(32, 32, 3, 1, 1), nn.BatchNorm2d(32), nn.SiLU(),
        )  # fmt: skip
        self.box, self.classes = nn.Conv2d(32, 4, 1), nn.Conv2d(32, 3, 1)
        y, x = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
        self.register_buffer("grid", torch.stack([x, y]).reshape(1, 2, -1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.body(x)
        box, classes = self.box(features).flatten(2), self.classes(features).flatten(2)
        centre = (torch.sigmoid(box[:, :2]) + self.grid) * 80.0
        return torch.cat([centre, torch.sigmoid(box[:, 2:]) * 320.0, torch.sigmoid(classes)], 1)


def detector() -> Network:
    """Found: the best cell has the right class, a score of a half and an overlap of a half."""
    x, boxes, classes = _scenes(1500, 0)
    cells = (boxes[:, 1] // 80).astype(int) * 8 + (boxes[:, 0] // 80).astype(int)
    network = Detector()
    rows_of, box_of, class_of = torch.from_numpy(cells), torch.from_numpy(boxes), torch.from_numpy(classes)

    def loss(p: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        here = torch.arange(len(rows))
        wanted = torch.zeros_like(p[:, 4:])
        wanted[here, class_of[rows], rows_of[rows]] = 1
        scores = nn.functional.binary_cross_entropy(p[:, 4:].clamp(1e-6, 1 - 1e-6), wanted, reduction="sum")
        return (scores + 0.02 * (p[here, :4, rows_of[rows]] - box_of[rows]).abs().sum()) / len(rows)

    _fit(network, torch.from_numpy(x), loss, 25)
    fresh, truth, names = _scenes(EVALUATED, 2)
    return Network(
        name="boxes and scores", module=network, calibration=_scenes(128, 1)[0], evaluation=fresh, image=True,
        score=lambda outputs: float(np.mean(list(map(_found, _first(outputs), truth, names)))),
    )  # fmt: skip


def _found(output: np.ndarray, box: np.ndarray, name: int) -> bool:
    cell = int(output[4:].max(axis=0).argmax())
    scores, found = output[4:, cell], output[:4, cell]
    low = np.maximum(found[:2] - found[2:] / 2, box[:2] - box[2:] / 2)
    high = np.minimum(found[:2] + found[2:] / 2, box[:2] + box[2:] / 2)
    both = np.clip(high - low, 0, None).prod()
    overlap = both / (found[2:].prod() + box[2:].prod() - both + 1e-9)
    return bool(scores.argmax() == name and scores.max() > 0.5 and overlap > 0.5)


def segmentation() -> Network:
    """Softmax over four classes for each pixel; good by the worst class's intersection over union."""
    x, boxes, classes = _scenes(600, 3)
    network = nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 16, 3, padding=1), nn.ReLU(),
        nn.Conv2d(16, 4, 1), nn.Softmax(1),
    )  # fmt: skip
    masks = torch.from_numpy(_masks(boxes, classes))
    _fit(
        network,
        torch.from_numpy(x),
        lambda p, rows: nn.functional.nll_loss(p.clamp_min(1e-6).log(), masks[rows]),
        8,
    )
    fresh, truth, names = _scenes(EVALUATED, 5)
    wanted = _masks(truth, names)

    def score(outputs: Sequence[dict[str, np.ndarray]]) -> float:
        found = _first(outputs).argmax(axis=1)
        overlaps = [
            ((found == k) & (wanted == k)).sum() / max(1, ((found == k) | (wanted == k)).sum())
            for k in range(4)
        ]
        return float(min(overlaps))

    return Network(
        name="masks", module=network, calibration=_scenes(96, 4)[0], evaluation=fresh, image=True, score=score
    )


def _masks(boxes: np.ndarray, classes: np.ndarray) -> np.ndarray:
    masks = np.zeros((len(boxes), 32, 32), np.int64)
    for mask, box, name in zip(masks, boxes / 20, classes, strict=True):
        left, top = (box[:2] - box[2:] / 2).round().astype(int)
        mask[top : top + int(box[3]), left : left + int(box[2])] = name + 1
    return masks


def depth() -> Network:
    """A number a pixel: how far the square's edge is, smoothed; good by its explained variance."""
    x, _, _ = _scenes(500, 8)
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 1, 3, padding=1),
    )
    wanted = _blurred(x)
    target = torch.from_numpy(wanted)
    _fit(network, torch.from_numpy(x), lambda p, rows: ((p - target[rows]) ** 2).mean(), 12)
    fresh = _scenes(EVALUATED, 9)[0]
    return Network(
        name="a number a pixel", module=network, calibration=_scenes(96, 10)[0], evaluation=fresh, image=True,
        score=_explained(_blurred(fresh)),
    )  # fmt: skip


def _blurred(x: np.ndarray) -> np.ndarray:
    grey = torch.from_numpy(x).amax(1, keepdim=True)
    return nn.functional.avg_pool2d(grey, 5, 1, 2, count_include_pad=False).numpy()


# --- numbers -----------------------------------------------------------------------------------------


def _sensors(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 8)).astype(np.float32)


def _measured(x: np.ndarray) -> np.ndarray:
    """Kelvin, pascal and a probability, of eight sensors."""
    one, two, three = np.tanh(x[:, 0] + x[:, 1]), np.sin(x[:, 2]) + 0.5 * x[:, 3], x[:, 4] - x[:, 5] * 0.7
    return np.stack([288 + 8 * one, 101325 + 600 * two, 1 / (1 + np.exp(-2 * three))], axis=1).astype(
        np.float32
    )


class Scaled(nn.Module):
    """A network whose outputs have their units: ``scale`` times, ``offset`` on top."""

    def __init__(self, outputs: int, scale: Sequence[float], offset: Sequence[float]) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, outputs)
        )
        self.register_buffer("scale", torch.tensor(scale))
        self.register_buffer("offset", torch.tensor(offset))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x) * self.scale + self.offset


def _regression(name: str, of: Callable[[np.ndarray], np.ndarray]) -> Network:
    x = _sensors(2000, 1)
    wanted = of(x)
    spread, mean = wanted.std(axis=0), wanted.mean(axis=0)
    network = Scaled(wanted.shape[1], spread.tolist(), mean.tolist())
    target, scale = torch.from_numpy(wanted), torch.from_numpy(spread)
    _fit(network, torch.from_numpy(x), lambda p, rows: (((p - target[rows]) / scale) ** 2).mean(), 25)
    fresh = _sensors(EVALUATED, 3)
    return Network(
        name=name, module=network, calibration=_sensors(128, 2), evaluation=fresh, score=_explained(of(fresh))
    )


def weather() -> Network:
    """Three units side by side."""
    return _regression("three units", _measured)


def barometer() -> Network:
    """One number on a large offset: 1013 hPa and a little."""
    return _regression("an offset", lambda x: (_measured(x)[:, 1:2] - 101325) / 400 + 1013)


# --- signals -----------------------------------------------------------------------------------------


def _signals(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Tones, half of them quiet, with and without noise: ``[n, 1, 256]`` each."""
    random = np.random.default_rng(seed)
    t = np.arange(256) / 8000
    clean = np.stack([
        sum(random.uniform(0.1, 0.3) * np.sin(2 * np.pi * f * t + random.uniform(0, 6)) for f in tones)
        * (1.0 if k % 2 else 0.1)
        for k, tones in enumerate(random.uniform(100, 900, (count, 4)))
    ])[:, None]  # fmt: skip
    noisy = clean + 0.3 * clean.std(axis=2, keepdims=True) * random.normal(size=clean.shape)
    return noisy.astype(np.float32), clean.astype(np.float32)


def denoiser() -> Network:
    """A filter on loud and quiet signals; good by the share of the clean signal it explains in the worst half."""
    noisy, clean = _signals(800, 0)
    network = nn.Sequential(
        nn.Conv1d(1, 16, 9, padding=4),
        nn.LeakyReLU(0.2),
        nn.Conv1d(16, 16, 9, padding=4),
        nn.LeakyReLU(0.2),
        nn.Conv1d(16, 1, 9, padding=4),
    )
    wanted = torch.from_numpy(clean)
    energy = wanted.square().mean((1, 2), keepdim=True)
    _fit(
        network, torch.from_numpy(noisy), lambda p, rows: ((p - wanted[rows]) ** 2 / energy[rows]).mean(), 10
    )
    fresh, truth = _signals(EVALUATED, 2)

    def score(outputs: Sequence[dict[str, np.ndarray]]) -> float:
        found = _first(outputs)
        halves = [1 - ((found[k::2] - truth[k::2]) ** 2).mean() / truth[k::2].var() for k in (0, 1)]
        return float(max(0.0, min(halves)))

    return Network(
        name="a filter", module=network, calibration=_signals(96, 1)[0], evaluation=fresh, score=score
    )


class Recurrent(nn.Module):
    """Tokens through an embedding and attention to a score of two classes."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(64, 32)
        self.mix = nn.Sequential(
            nn.Conv1d(32, 32, 3, padding=1), nn.ReLU(), nn.Conv1d(32, 32, 3, padding=1), nn.ReLU()
        )
        self.head = nn.Linear(32, 2)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.mix(self.embed(tokens).transpose(1, 2)).amax(2))


def _sentences(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Forty tokens; the class is whether token 7 is followed by token 9 somewhere."""
    random = np.random.default_rng(seed)
    tokens, classes = random.integers(0, 64, (count, 40)), random.integers(0, 2, count)
    places = random.integers(0, 39, count)
    for row, place, name in zip(tokens, places, classes, strict=True):
        row[place : place + 2] = (7, 9) if name else (9, 7)
    return tokens.astype(np.int64), classes


def sequence() -> Network:
    """Integers in, two scores out."""
    tokens, classes = _sentences(3000, 0)
    network, labels = Recurrent(), torch.from_numpy(classes)
    _fit(network, torch.from_numpy(tokens), lambda p, rows: nn.functional.cross_entropy(p, labels[rows]), 12)
    fresh, truth = _sentences(EVALUATED, 2)
    return Network(
        name="tokens",
        module=network,
        calibration=_sentences(128, 1)[0],
        evaluation=fresh,
        score=_accuracy(truth),
    )
