"""A face-detector-like network, trained here: priors, offsets and exponentials of sizes are decoded in the graph.

``python box_decoding.py``: the mean IoU of each INT8 artifact's boxes with the float network's.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

SIZE, STRIDES, SIDES = 96, (8, 16), ((10.0, 16.0), (24.0, 36.0))


def priors() -> torch.Tensor:
    """``[boxes, 4]``: centre and size as shares of the picture."""
    rows = []
    for stride, sides in zip(STRIDES, SIDES, strict=True):
        places = (torch.arange(SIZE // stride) + 0.5) * stride / SIZE
        for y in places:
            for x in places:
                rows += [[float(x), float(y), side / SIZE, side / SIZE] for side in sides]
    return torch.tensor(rows)


def block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False), nn.BatchNorm2d(inputs), nn.ReLU(),
        nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
    )  # fmt: skip


class Faces(nn.Module):
    """Scores ``[1, boxes, 2]`` and corners ``[1, boxes, 4]`` as shares of the picture."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.first = nn.Sequential(block(16, 32, 2), block(32, 48, 2), block(48, 48, 1))
        self.second = nn.Sequential(block(48, 64, 2), block(64, 64, 1))
        self.scores = nn.ModuleList(nn.Conv2d(c, 4, 3, padding=1) for c in (48, 64))
        self.boxes = nn.ModuleList(nn.Conv2d(c, 8, 3, padding=1) for c in (48, 64))
        self.register_buffer("priors", priors())

    def raw(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits and offsets by box."""
        first = self.first(self.stem(image))
        maps = (first, self.second(first))
        scores = [_flat(head(m), 2) for head, m in zip(self.scores, maps, strict=True)]
        offsets = [_flat(head(m), 4) for head, m in zip(self.boxes, maps, strict=True)]
        return torch.cat(scores, 1), torch.cat(offsets, 1)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scores, offsets = self.raw(image)
        centre = self.priors[:, :2] + offsets[..., :2] * 0.1 * self.priors[:, 2:]
        size = self.priors[:, 2:] * torch.exp(offsets[..., 2:] * 0.2)
        return scores.softmax(-1), torch.cat([centre - size / 2, centre + size / 2], -1)


def _flat(found: torch.Tensor, values: int) -> torch.Tensor:
    """``[batch, boxes, values]`` of a map."""
    return found.permute(0, 2, 3, 1).reshape(len(found), -1, values)


def scene(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A picture ``[3, SIZE, SIZE]`` of one to three bright ellipses on clutter, and their corners."""
    grid = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)
    picture = np.repeat(np.repeat(generator.normal(0, 0.5, (3, 12, 12)), 8, 1), 8, 2).astype(np.float32)
    corners = []
    for _ in range(generator.integers(1, 4)):
        w, h = generator.uniform(9, 40, 2)
        x, y = generator.uniform(w / 2, SIZE - w / 2), generator.uniform(h / 2, SIZE - h / 2)
        inside = ((grid[1] - x) / (w / 2)) ** 2 + ((grid[0] - y) / (h / 2)) ** 2 < 1
        picture[:, inside] = generator.uniform(0.8, 2.0, (3, 1))
        corners.append([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
    return picture, np.array(corners, np.float32) / SIZE


def overlap(one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
    """IoU of corners ``[…, 4]``, broadcast."""
    low, high = torch.maximum(one[..., :2], two[..., :2]), torch.minimum(one[..., 2:], two[..., 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    area = [(b[..., 2:] - b[..., :2]).clamp(min=0).prod(-1) for b in (one, two)]
    return shared / (area[0] + area[1] - shared).clamp(min=1e-9)


def _loss(network: Faces, pictures: torch.Tensor, truths: list[torch.Tensor]) -> torch.Tensor:
    scores, offsets = network.raw(pictures)
    p = network.priors
    corners = torch.cat([p[:, :2] - p[:, 2:] / 2, p[:, :2] + p[:, 2:] / 2], -1)
    total = scores.new_zeros(())
    for row, truth in enumerate(truths):
        best, which = overlap(corners[:, None], truth[None]).max(1)
        positive = best > 0.35
        wanted = truth[which]
        centre, size = (wanted[:, :2] + wanted[:, 2:]) / 2, wanted[:, 2:] - wanted[:, :2]
        target = torch.cat([(centre - p[:, :2]) / (0.1 * p[:, 2:]), torch.log(size / p[:, 2:]) / 0.2], -1)
        weight = torch.tensor([1.0, 4.0])
        total = total + nn.functional.cross_entropy(scores[row], positive.long(), weight)
        if positive.any():
            total = total + 0.5 * nn.functional.smooth_l1_loss(offsets[row][positive], target[positive])
    return total / len(truths)


@functools.cache
def trained() -> Faces:
    torch.manual_seed(0)
    network, generator = Faces(), np.random.default_rng(0)
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    for _ in range(250):
        drawn = [scene(generator) for _ in range(16)]
        optimizer.zero_grad()
        shown = torch.from_numpy(np.stack([picture for picture, _ in drawn]))
        loss = _loss(network, shown, [torch.from_numpy(corners) for _, corners in drawn])
        loss.backward()
        optimizer.step()
    return network.eval()


def pictures(count: int, seed: int) -> Iterator[np.ndarray]:
    generator = np.random.default_rng(seed)
    for _ in range(count):
        yield scene(generator)[0][None]


def mean_overlap(expected: list[dict[str, np.ndarray]], given: list[dict[str, np.ndarray]]) -> float:
    """Of the boxes that the float network is sure of (score above 0.5), the mean IoU with the artifact's."""
    found = []
    for wanted, got in zip(expected, given, strict=True):
        (scores, boxes), theirs = wanted.values(), list(got.values())[1]
        sure = scores[0, :, 1] > 0.5
        found.append(overlap(torch.from_numpy(boxes[0][sure]), torch.from_numpy(theirs[0][sure])))
    return float(torch.cat(found).mean())
