"""SqueezeNet 1.0 with the weights that "Deep Compression" published, and pictures to try it on.

EDGEKIT_DATA names the folder with ``squeezenet/squeezenet1_0.safetensors`` (Han's 675,763-byte file, decoded) and
``imagenet1k_samples/imagenet1000_256.tar``: 1,000 pictures, one a class, the class first in the file's name.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

MEAN = np.array((104, 117, 123), np.float32)
"""Of blue, green and red, from 0 to 255: Caffe's preprocessing."""
SIDE = 227


class Fire(nn.Module):
    """A 1 × 1 convolution to few channels, then 1 × 1 and 3 × 3 to many, side by side."""

    def __init__(self, into: int, few: int, many: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(into, few, 1)
        self.expand1x1 = nn.Conv2d(few, many, 1)
        self.expand3x3 = nn.Conv2d(few, many, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[n, into, h, w]`` to ``[n, 2 · many, h, w]``."""
        x = functional.relu(self.squeeze(x))
        return torch.cat([functional.relu(self.expand1x1(x)), functional.relu(self.expand3x3(x))], 1)


class SqueezeNet(nn.Module):
    """1,248,424 parameters; Iandola et al. 2016, version 1.0."""

    def __init__(self) -> None:
        super().__init__()
        pool = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.features = nn.Sequential(
            nn.Conv2d(3, 96, 7, 2), nn.ReLU(), pool,
            Fire(96, 16, 64), Fire(128, 16, 64), Fire(128, 32, 128), pool,
            Fire(256, 32, 128), Fire(256, 48, 192), Fire(384, 48, 192), Fire(384, 64, 256), pool,
            Fire(512, 64, 256),
        )  # fmt: skip
        self.classifier = nn.Sequential(nn.Identity(), nn.Conv2d(512, 1000, 1), nn.ReLU())

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Scores ``[n, 1000]`` of ``[n, 3, 227, 227]``."""
        return self.classifier(self.features(image)).mean((2, 3))


def net() -> tuple[nn.Module, tuple[torch.Tensor]]:
    """The net with its weights, and an example."""
    model = SqueezeNet()
    model.load_state_dict(load_file(_data() / "squeezenet" / "squeezenet1_0.safetensors"))
    return model.eval(), (torch.zeros(1, 3, SIDE, SIDE),)


def calibration() -> Iterator[dict[str, np.ndarray]]:
    """The 500 pictures of the even classes, without labels."""
    for label, image in _pictures():
        if label % 2 == 0:
            yield {"image": image}


def evaluation() -> Iterator[tuple[dict[str, np.ndarray], int]]:
    """All 1,000 pictures."""
    for label, image in _pictures():
        yield {"image": image}, label


def unseen() -> Iterator[tuple[dict[str, np.ndarray], int]]:
    """The 500 pictures of the odd classes: those that calibration() does not show."""
    for label, image in _pictures():
        if label % 2:
            yield {"image": image}, label


def _pictures() -> Iterator[tuple[int, np.ndarray]]:
    """Class and ``[1, 3, 227, 227]``: the middle of the picture, blue first."""
    with tarfile.open(_data() / "imagenet1k_samples" / "imagenet1000_256.tar") as tar:
        for member in sorted(tar.getmembers(), key=lambda m: m.name):
            file = tar.extractfile(member)
            if file is None:
                continue
            pixels = np.asarray(Image.open(io.BytesIO(file.read())).convert("RGB"), np.float32)
            top, left = ((size - SIDE) // 2 for size in pixels.shape[:2])
            middle = pixels[top : top + SIDE, left : left + SIDE, ::-1] - MEAN
            yield (
                int(Path(member.name).name.split("_")[0]),
                np.ascontiguousarray(middle.transpose(2, 0, 1)[None]),
            )


def _data() -> Path:
    return Path(os.environ.get("EDGEKIT_DATA", "../shared/data"))
