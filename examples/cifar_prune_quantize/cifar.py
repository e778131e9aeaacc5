"""CIFAR-10 from a tar.xz of JPEGs by class, and the task of naming what is on them."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def read(archive: Path, cache: Path) -> dict[str, np.ndarray]:
    """``{train,test}_{images,labels}``: uint8 [n, 3, 32, 32] and int64 [n], in the order of the file names.

    Decoded once; kept in ``cache``, an npz file.
    """
    if not cache.is_file():
        found: dict[str, list[tuple[str, int, np.ndarray]]] = {"train": [], "test": []}
        with tarfile.open(archive) as tar:
            for member in tar:
                part, name = member.name.split("/")[-3::2] if member.name.count("/") >= 2 else ("", "")
                file = tar.extractfile(member) if name.endswith(".jpg") else None
                if file is not None:
                    label = CLASSES.index(member.name.split("/")[-2])
                    pixels = np.asarray(Image.open(io.BytesIO(file.read())).convert("RGB"), np.uint8)
                    found[part].append((member.name, label, pixels.transpose(2, 0, 1)))
        arrays = {}
        for part, rows in found.items():
            rows.sort(key=lambda row: row[0])
            arrays[f"{part}_images"] = np.stack([row[2] for row in rows])
            arrays[f"{part}_labels"] = np.array([row[1] for row in rows], np.int64)
        cache.parent.mkdir(parents=True, exist_ok=True)
        temporary = cache.with_suffix(".part.npz")
        np.savez(temporary, **arrays)
        temporary.replace(cache)
    with np.load(cache) as stored:
        return {name: stored[name] for name in stored}


def normalized(images: np.ndarray) -> torch.Tensor:
    """uint8 [n, 3, 32, 32] to what the net takes."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
    return (torch.from_numpy(images).float() / 255 - mean) / std


@dataclass(frozen=True, kw_only=True)
class Objects:
    """A training task: images moved by up to ``reach`` pixels, half of them flipped."""

    images: np.ndarray
    labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor
    batch: int = 128
    reach: int = 4

    @property
    def fingerprint(self) -> str:
        """Data and loss in one line."""
        return f"cifar10-jpeg-{len(self.images)}-{len(self.test_images)}-{self.batch}-{self.reach}"

    @property
    def metric_name(self) -> str:
        """What :meth:`metric` gives."""
        return "accuracy"

    def steps(self) -> int:
        """Batches of an epoch."""
        return len(self.images) // self.batch

    def batches(self, epoch: int, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Every image once."""
        reach = self.reach
        random = np.random.default_rng((seed, epoch))
        order = random.permutation(len(self.images))
        for i in range(self.steps()):
            pick = order[i * self.batch : (i + 1) * self.batch]
            padded = np.pad(self.images[pick], ((0, 0), (0, 0), (reach, reach), (reach, reach)))
            moved = np.empty_like(self.images[pick])
            for n, (y, x, flip) in enumerate(
                random.integers(0, (2 * reach + 1, 2 * reach + 1, 2), (len(pick), 3))
            ):
                crop = padded[n, :, y : y + 32, x : x + 32]
                moved[n] = crop[:, :, ::-1] if flip else crop
            yield normalized(moved), self.labels[pick]

    def loss(self, model: torch.nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """Cross entropy."""
        images, labels = batch
        return functional.cross_entropy(model(images), labels)

    def metric(self, model: torch.nn.Module) -> float:
        """Accuracy on the test images."""
        device = next(model.parameters()).device
        with torch.no_grad():
            right = sum(
                int((model(x.to(device)).argmax(1).cpu() == y).sum())
                for x, y in zip(self.test_images.split(500), self.test_labels.split(500), strict=True)
            )
        return right / len(self.test_labels)


def objects(data: Path, cache: Path, *, train: int = 50_000, test: int = 10_000) -> Objects:
    """The task on ``train`` and ``test`` images, spread over the classes."""
    arrays = read(data / "cifar10" / "cifar10_jpeg.tar.xz", cache)
    picked = {}
    for part, count in (("train", train), ("test", test)):
        images, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
        pick = np.linspace(0, len(labels) - 1, min(count, len(labels))).round().astype(int)
        picked[part] = images[pick], torch.from_numpy(labels[pick])
    return Objects(
        images=picked["train"][0],
        labels=picked["train"][1],
        test_images=normalized(picked["test"][0]),
        test_labels=picked["test"][1],
    )
