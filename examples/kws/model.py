"""A depthwise-separable CNN for spoken digits: DS-CNN of Zhang et al., "Hello Edge" (2017), small size.

``edgekit build examples/kws/model.py:digits …``. The first call trains (some minutes on one core); the weights
are then kept in the user's cache folder under a name made of this example's files and torch's version.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import speech
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from edgekit.compress.training.settings import Training
from edgekit.compress.training.train import fit
from edgekit.types import TorchModel

TRAINING = Training(epochs=15.0, rate=3e-3, optimizer="adamw", weight_decay=0.01, warmup=0.05)
SEED = 1
BATCH = 32


def _conv(into: int, out: int, kernel: tuple[int, int], *, stride: int = 1, groups: int = 1) -> nn.Sequential:
    padding = (kernel[0] // 2, kernel[1] // 2)
    conv = nn.Conv2d(into, out, kernel, stride, padding, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out), nn.ReLU())


class DsCnn(nn.Module):
    """``features`` float32 ``[N, 1, 64, 40]`` → ``scores`` float32 ``[N, 10]``; 24,000 parameters."""

    def __init__(self, width: int = 64, blocks: int = 4) -> None:
        super().__init__()
        layers = [_conv(1, width, (9, 5), stride=2)]
        for _ in range(blocks):
            layers += [_conv(width, width, (3, 3), groups=width), _conv(width, width, (1, 1))]
        self.body = nn.Sequential(*layers)
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(width, 10)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """The scores of the ten digits."""
        return self.head(self.dropout(self.body(features).mean((2, 3))))


@dataclass(frozen=True, kw_only=True)
class Digits:
    """An :class:`edgekit.compress.training.task.Task`; the metric is the accuracy on the development set."""

    train: speech.Clips
    dev: speech.Clips

    @property
    def fingerprint(self) -> str:
        """Data and loss in one line."""
        return f"fsdd-{len(self.train)}-{len(self.dev)}-{BATCH}"

    @property
    def metric_name(self) -> str:
        """What :meth:`metric` gives."""
        return "accuracy"

    def steps(self) -> int:
        """Batches of an epoch."""
        return len(self.train) // BATCH

    def batches(self, epoch: int, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Every clip once, anywhere in the window, up to 6 dB louder or softer, under noise of -80 to -50 dB;
        a band of frequencies and one of times blotted out (SpecAugment, Park et al. 2019)."""
        random = np.random.default_rng((seed, epoch))
        order = random.permutation(len(self.train))
        for rows in order[: self.steps() * BATCH].reshape(-1, BATCH):
            waves = np.stack([speech.placed(self.train.waves[r], random.random()) for r in rows])
            waves *= 10 ** (random.uniform(-6, 6, (BATCH, 1)) / 20)
            waves += random.standard_normal(waves.shape) * 10 ** (random.uniform(-80, -50, (BATCH, 1)) / 20)
            features = speech.log_mel(waves.astype(np.float32))
            for one in features:
                time, band = random.integers(speech.FRAMES - 8), random.integers(speech.BANDS - 5)
                one[0, time : time + random.integers(8)] = -2
                one[0, :, band : band + random.integers(5)] = -2
            yield torch.from_numpy(features), torch.from_numpy(self.train.labels[rows])

    def loss(self, model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """Cross entropy with smoothed labels."""
        features, labels = batch
        return nn.functional.cross_entropy(model(features), labels, label_smoothing=0.05)

    def metric(self, model: nn.Module) -> float:
        """Accuracy."""
        device = next(model.parameters()).device
        features = speech.log_mel(np.stack([speech.placed(w) for w in self.dev.waves]))
        with torch.no_grad():
            found = model(torch.from_numpy(features).to(device)).argmax(1).cpu().numpy()
        return float(np.mean(found == self.dev.labels))


def digits() -> TorchModel:
    """The trained network with one clip of the test set as its example inputs."""
    torch.manual_seed(SEED)
    model = DsCnn()
    path = _cache_path()
    if path.is_file():
        model.load_state_dict(load_file(path))
    else:
        train(model, TRAINING)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        save_file(model.state_dict(), part)
        part.replace(path)
    return TorchModel(
        module=model.eval(),
        example_inputs={"features": torch.from_numpy(speech.features("test")[:1])},
        task="classification",
        labels=tuple(map(str, range(10))),
    )


def train(model: DsCnn, training: Training) -> float:
    """Train in place; the accuracy on the development set."""
    task = Digits(train=speech.read("train"), dev=speech.read("dev"))
    with torch.enable_grad():
        fit(model, task, training, seed=SEED)
    return task.metric(model)


def _cache_path() -> Path:
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    files = Path(__file__).read_bytes() + Path(speech.__file__).read_bytes() + torch.__version__.encode()
    return root / "edgekit" / "examples" / f"kws-{hashlib.sha256(files).hexdigest()[:16]}.safetensors"
