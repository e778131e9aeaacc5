"""Models of every kind that apps ship, small and with random weights: images by a processor's file, token ids, two
inputs of different kinds, integer inputs and outputs, a recurrent network over audio features."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import package_support as support
import torch
from torch import nn

import edgekit
from edgekit.artifact.manifest import Artifact
from edgekit.preprocess.postprocessing import Postprocessing
from edgekit.preprocess.readers import from_huggingface
from edgekit.quantize.calibrate.codes import CODES

PROCESSOR = {
    "image_processor_type": "ConvNextImageProcessor",
    "crop_pct": 0.875,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "resample": 3,
    "rescale_factor": 1 / 255,
    "size": {"shortest_edge": 32},
}
"""A Hugging Face image processor's file, as transformers writes it."""


class Fire(nn.Module):
    """SqueezeNet's block: squeeze by 1 × 1, expand by 1 × 1 and 3 × 3 side by side."""

    def __init__(self, inside: int, squeezed: int, outside: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inside, squeezed, 1)
        self.one = nn.Conv2d(squeezed, outside, 1)
        self.three = nn.Conv2d(squeezed, outside, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.squeeze(x))
        return torch.cat([torch.relu(self.one(x)), torch.relu(self.three(x))], 1)


class Squeeze(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2)
        self.fire = nn.Sequential(Fire(16, 8, 16), nn.MaxPool2d(3, 2, ceil_mode=True), Fire(32, 8, 16))
        self.head = nn.Conv2d(32, 12, 1)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        x = self.head(self.fire(torch.relu(self.stem(pixel_values))))
        return torch.softmax(4 * x.mean((2, 3)), -1)


class Logits(Squeeze):
    """The same without the softmax, which the package has to add."""

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return 40 * self.head(self.fire(torch.relu(self.stem(pixel_values)))).mean((2, 3))


class Detect(nn.Module):
    """Centre, size and the logits of three classes for each cell, candidates last: ``[1, 7, cells]``."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.head = nn.Conv2d(16, 7, 3, stride=2, padding=1)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        x = self.head(torch.relu(self.stem(pixel_values))).flatten(2)
        return torch.cat([x[:, :4].sigmoid() * 28, 3 * x[:, 4:]], 1)


class Text(nn.Module):
    """Token ids and their mask to an embedding of unit length: one attention layer."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(101, 32)
        self.places = nn.Parameter(torch.randn(1, 12, 32) * 0.3)
        self.query, self.key, self.value = (nn.Linear(32, 32) for _ in range(3))
        self.norm = nn.LayerNorm(32)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        x = self.words(input_ids) + self.places
        q, k, v = (f(x).view(-1, 12, 4, 8).transpose(1, 2) for f in (self.query, self.key, self.value))
        hidden = (1.0 - attention_mask[:, None, None, :].float()) * -1e4
        mixed = torch.softmax(q @ k.transpose(2, 3) / 8**0.5 + hidden, -1) @ v
        x = self.norm(x + mixed.transpose(1, 2).reshape(-1, 12, 32))
        mask = attention_mask[:, :, None].float()
        mean = (x * mask).sum(1) / mask.sum(1).clamp(min=1)
        return mean / mean.norm(dim=-1, keepdim=True)


class Two(nn.Module):
    """An image and the state of a vehicle, to a steering command and a feature; names out of order on purpose."""

    def __init__(self) -> None:
        super().__init__()
        self.see = nn.Conv2d(1, 6, 3, stride=2)
        self.feel = nn.Linear(5, 6)
        self.steer = nn.Linear(12, 2)

    def forward(self, zebra: torch.Tensor, alpha: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen = torch.relu(self.see(zebra)).mean((2, 3))
        joined = torch.cat([seen, torch.relu(self.feel(alpha))], -1)
        return torch.tanh(self.steer(joined)), joined


class Listen(nn.Module):
    """Keywords from frames of audio features."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(13, 24, batch_first=True)
        self.head = nn.Linear(24, 5)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(features)[0][:, -1])


class Segment(nn.Module):
    """A class for every pixel: the output is an image too, and its channels are the inputs' number."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1))

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        return self.layers(picture)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of model and how it is built."""

    model: type[nn.Module]
    targets: tuple[str, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    limits: dict[str, Any] = field(default_factory=dict)
    labels: int = 0
    boxes: bool = False


KINDS = {
    "squeeze": Kind(model=Squeeze, targets=("ort-int8", "tflite-int8")),
    "squeeze_folded": Kind(
        model=Squeeze, targets=("ort-fp32", "tflite-int8"), settings={"fold_preprocessing": True}
    ),
    "squeeze_int8_io": Kind(
        model=Squeeze,
        targets=("tflite-int8",),
        settings={"io_dtype": "int8", "io_layout": "nhwc"},
        # Shares of a softmax in steps of 1/256: the least of its twelve classes varies by a few of them.
        limits={"slices": 0.6},
    ),
    "logits": Kind(model=Logits, targets=("ort-fp32", "tflite-fp32", "tflite-int8"), labels=12),
    "detect": Kind(model=Detect, targets=("ort-fp32", "tflite-fp32"), labels=3, boxes=True),
    # Every axis is 3 long at some place where a moved layout could go unnoticed by its shape.
    "segment": Kind(model=Segment, targets=("tflite-int8",), settings={"io_layout": "nhwc"}),
    "text": Kind(model=Text, targets=("ort-fp32", "ort-int8-dynamic", "tflite-fp32")),
    "two": Kind(model=Two, targets=("ort-fp32", "tflite-fp32")),
    "listen": Kind(model=Listen, targets=("ort-fp32", "tflite-fp32")),
}


IMAGES = (Squeeze, Logits, Detect)


def package_options(name: str, artifact: Artifact, folder: Path) -> dict[str, Any]:
    """What the package of a kind is told besides: labels, and how its outputs become boxes."""
    kind, options = KINDS[name], {}
    if kind.labels:
        options["labels"] = folder / "labels.txt"
        options["labels"].write_text("".join(f"thing {i}\n" for i in range(kind.labels)))
    if kind.boxes:
        output = artifact.manifest.outputs[0].name
        options["postprocess"] = Postprocessing(
            kind="boxes", output=output, boxes=output, box_format="cxcywh", columns=True, activation="sigmoid",
            size=(28.0, 28.0), min_score=0.3, max_overlap=0.5,
        )  # fmt: skip
    return options


def samples(model: type[nn.Module], processor: Path) -> Iterator[dict[str, np.ndarray]]:
    """Calibration inputs of the right kind."""
    generator = np.random.default_rng(1)
    contract = from_huggingface(processor)
    for image in support.images(24)[0]:
        if model in IMAGES:
            large = image.repeat(3, axis=0).repeat(3, axis=1)
            yield {"pixel_values": contract.apply(large)}
        elif model is Segment:
            yield {"picture": image[None, :3, :3].transpose(0, 3, 1, 2).astype(np.float32) / 255}
        elif model is Text:
            length = int(generator.integers(3, 13))
            ids, mask = np.zeros((1, 12), np.int64), np.zeros((1, 12), np.int64)
            ids[0, :length], mask[0, :length] = generator.integers(1, 101, length), 1
            yield {"input_ids": ids, "attention_mask": mask}
        elif model is Two:
            seen = image[None, None, :, :, 0].astype(np.float32) / 255
            yield {"zebra": seen, "alpha": generator.normal(size=(1, 5)).astype(np.float32)}
        else:
            yield {"features": generator.normal(size=(1, 30, 13)).astype(np.float32).cumsum(1) / 5}


def build(name: str, folder: Path, targets: tuple[str, ...] = ()) -> Artifact:
    """An artifact of one kind."""
    kind = KINDS[name]
    folder.mkdir(parents=True)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    torch.manual_seed(7)
    fed = list(samples(kind.model, folder))
    image = kind.model in IMAGES
    result = edgekit.build(
        kind.model().eval(),
        {k: torch.from_numpy(v) for k, v in fed[0].items()},
        targets=targets or kind.targets[:1],
        calibration=fed,
        out=folder / "build",
        options=edgekit.Options(
            set=kind.settings,
            limit=kind.limits,
            speed_gate=False,
            accept_data=CODES,
            preprocessing={"huggingface": str(folder)} if image else {},
        ),
    )
    return result.raise_for_failures().artifacts[0]
