"""A small CNN that reads handwritten digits (8 × 8 pixels, 16 grey levels).

``digits()`` is what edgekit is pointed at: ``edgekit build examples/digits/model.py:digits …``. The
first call trains the network in a few seconds; the weights are then kept in the user's cache folder
under a name made of this file's contents and torch's version, so that a change to either trains again.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

import torch
from digits_split import split
from safetensors.torch import load_file, save_file
from torch import nn

from edgekit.types import TorchModel

SEED = 7
EPOCHS = 24
BATCH = 64


class DigitsNet(nn.Module):
    """Convolution, depthwise-separable block, pooling, classifier: what most vision networks are made of.

    Takes ``image`` float32 ``[N, 1, 8, 8]`` in 0 to 1 (ink is 1), returns logits ``[N, 10]``.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Sequential(_conv(1, width, 3), _conv(width, width, 3))
        self.depthwise = _conv(width, width, 3, stride=2, groups=width)
        self.pointwise = _conv(width, 2 * width, 1)
        self.tail = _conv(2 * width, 2 * width, 3)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(2 * width, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits of the ten digits."""
        features = self.pointwise(self.depthwise(self.stem(image)))
        features = features + self.tail(features)
        return self.classifier(self.pool(features).flatten(1))


def digits() -> TorchModel:
    """The trained network, with one held-out digit as its example input."""
    model = DigitsNet()
    model.load_state_dict(_weights())
    images, _ = split()[1]
    return TorchModel(
        module=model.eval(),
        example_inputs={"image": torch.from_numpy(images[:1].copy())},
        task="image-classification",
        dynamic_axes={"image": {0: "batch"}},
        labels=tuple(str(digit) for digit in range(10)),
        preprocessing={
            "resize": [8, 8],
            "color": "gray",
            "mean": [0.0],
            "std": [1.0],
            "scale": 1 / 16,
            "layout": "NCHW",
        },
    )


def train() -> dict[str, torch.Tensor]:
    """Train from scratch: same weights, bit for bit, on every run of the same machine and torch."""
    (images, labels), _ = split()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the order of a sum must not depend on how many cores are free
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(SEED)
            return _fit(DigitsNet(), torch.from_numpy(images), torch.from_numpy(labels))
    finally:
        torch.set_num_threads(threads)


def _fit(model: DigitsNet, images: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    steps = EPOCHS * (len(images) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=6e-3, total_steps=steps)
    loss_of = nn.CrossEntropyLoss(label_smoothing=0.05)
    model.train()
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(images)).split(BATCH):
            if len(rows) < BATCH:
                continue
            loss = loss_of(model(_shifted(images[rows])), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return {name: tensor.detach().clone() for name, tensor in model.eval().state_dict().items()}


def _shifted(images: torch.Tensor) -> torch.Tensor:
    """The batch, moved by up to one pixel: people do not write in the middle of the box."""
    dy, dx = torch.randint(0, 3, (2,)).tolist()
    return nn.functional.pad(images, (1, 1, 1, 1))[..., dy : dy + 8, dx : dx + 8]


def _conv(inputs: int, outputs: int, size: int, *, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride=stride, padding=size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


def _weights() -> dict[str, torch.Tensor]:
    path = _cache_path()
    if path is not None and path.is_file():
        return load_file(path)
    weights = train()
    if path is not None:
        _write(path, weights)
    return weights


def _cache_path() -> Path | None:
    root = os.environ.get("XDG_CACHE_HOME") or (os.environ.get("HOME") and str(Path.home() / ".cache"))
    if not root:
        return None
    key = hashlib.sha256(Path(__file__).read_bytes() + torch.__version__.encode()).hexdigest()[:16]
    return Path(root) / "edgekit" / "examples" / f"digits-{key}.safetensors"


def _write(path: Path, weights: dict[str, torch.Tensor]) -> None:
    """Keep the weights for the next run; a cache folder that cannot be written only costs the training."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            part = Path(folder) / path.name
            save_file(weights, part)
            part.replace(path)
    except OSError:
        return
