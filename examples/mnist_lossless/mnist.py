"""MNIST from its four files, and the task of recognising the digits, with small random shifts."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional


def read(folder: Path, part: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(images float32 [n, 1, 28, 28] from 0 to 1, labels int64 [n]) of ``train`` or ``t10k``."""
    pixels = np.frombuffer(
        gzip.decompress((folder / f"{part}-images-idx3-ubyte.gz").read_bytes())[16:], np.uint8
    )
    labels = np.frombuffer(
        gzip.decompress((folder / f"{part}-labels-idx1-ubyte.gz").read_bytes())[8:], np.uint8
    )
    images = torch.from_numpy(pixels.reshape(-1, 1, 28, 28).copy()).float() / 255
    return images, torch.from_numpy(labels.astype(np.int64))


@dataclass(frozen=True, kw_only=True)
class Digits:
    """An :class:`edgekit.compress.training.task.Task`. A ``teacher``'s logits are learnt beside the labels."""

    images: torch.Tensor
    labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor
    batch: int = 256
    shift: int = 1
    smoothing: float = 0.0

    @property
    def fingerprint(self) -> str:
        """Data and loss in one line."""
        return f"mnist-{len(self.images)}-{self.batch}-{self.shift}-{self.smoothing}"

    @property
    def metric_name(self) -> str:
        """What :meth:`metric` gives."""
        return "accuracy"

    def steps(self) -> int:
        """Batches of an epoch."""
        return len(self.images) // self.batch

    def batches(self, epoch: int, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Every image once; each batch moved by up to ``shift`` pixels in each direction."""
        random = torch.Generator().manual_seed(seed * 1009 + epoch)
        order = torch.randperm(len(self.images), generator=random)
        for i in range(self.steps()):
            pick = order[i * self.batch : (i + 1) * self.batch]
            images = functional.pad(self.images[pick], (self.shift,) * 4)
            x, y = torch.randint(0, 2 * self.shift + 1, (2,), generator=random).tolist()
            yield images[:, :, y : y + 28, x : x + 28], self.labels[pick]

    def loss(self, model: torch.nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """Cross entropy."""
        images, labels = batch
        return functional.cross_entropy(model(images), labels, label_smoothing=self.smoothing)

    def metric(self, model: torch.nn.Module) -> float:
        """Accuracy on the test images."""
        with torch.no_grad():
            right = sum(
                int((model(self.test_images[i : i + 1000]).argmax(1) == self.test_labels[i : i + 1000]).sum())
                for i in range(0, len(self.test_images), 1000)
            )
        return right / len(self.test_images)


def digits(folder: Path, *, train: int = 60_000, test: int = 10_000) -> Digits:
    """The task on the first ``train`` and ``test`` images."""
    images, labels = read(folder, "train")
    test_images, test_labels = read(folder, "t10k")
    return Digits(
        images=images[:train],
        labels=labels[:train],
        test_images=test_images[:test],
        test_labels=test_labels[:test],
    )


def lenet_300_100() -> torch.nn.Module:
    """Two hidden layers; 266,610 parameters."""
    return torch.nn.Sequential(
        torch.nn.Flatten(),
        torch.nn.Linear(784, 300),
        torch.nn.ReLU(),
        torch.nn.Linear(300, 100),
        torch.nn.ReLU(),
        torch.nn.Linear(100, 10),
    )


def lenet_5() -> torch.nn.Module:
    """Caffe's LeNet-5: 20 and 50 filters, 500 hidden units; 431,080 parameters."""
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 20, 5),
        torch.nn.MaxPool2d(2),
        torch.nn.Conv2d(20, 50, 5),
        torch.nn.MaxPool2d(2),
        torch.nn.Flatten(),
        torch.nn.Linear(800, 500),
        torch.nn.ReLU(),
        torch.nn.Linear(500, 10),
    )
