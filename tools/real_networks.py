"""Networks with real weights and real inputs, for tools that measure what quantization costs.

The data sets are not part of the project: ``EDGEKIT_DATA`` names their folder.
"""

from __future__ import annotations

import hashlib
import io
import os
import sys
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from edgekit.types import Sample, TorchModel

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("EDGEKIT_DATA") or ROOT.parent / "shared" / "data")

Inputs = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Network:
    """``model`` with inputs to calibrate on and others to evaluate on.

    ``score`` gives the figure to compare, in percent, from (outputs, float32 outputs) over the evaluation
    inputs; ``figure`` says what it is and ``target`` what has to be reached.
    """

    name: str
    model: TorchModel
    calibration: Sequence[Inputs]
    evaluation: Sequence[Inputs]
    figure: str
    target: float
    score: Callable[[np.ndarray, np.ndarray], float]


class Items:
    """Samples in memory."""

    labelled = False

    def __init__(self, inputs: Sequence[Inputs]) -> None:
        self.inputs = inputs
        self.fingerprint = hashlib.sha256(
            b"".join(a.tobytes() for i in inputs for a in i.values())
        ).hexdigest()

    def __len__(self) -> int:
        return len(self.inputs)

    def __iter__(self) -> Iterator[Sample]:
        return (Sample(inputs=i) for i in self.inputs)


def agreement(outputs: np.ndarray, reference: np.ndarray) -> float:
    """How often the best class is that of the float32 model, in percent."""
    return float((outputs.argmax(1) == reference.argmax(1)).mean() * 100)


# --- SqueezeNet 1.0 on ImageNet ---------------------------------------------------------------------------


class Fire(nn.Module):
    def __init__(self, inputs: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeeze, 1)
        self.expand1x1 = nn.Conv2d(squeeze, expand, 1)
        self.expand3x3 = nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.squeeze(x))
        return torch.cat([torch.relu(self.expand1x1(x)), torch.relu(self.expand3x3(x))], 1)


class SqueezeNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()

        def pool() -> nn.Module:
            return nn.MaxPool2d(3, 2, ceil_mode=True)

        self.features = nn.Sequential(
            nn.Conv2d(3, 96, 7, 2), nn.ReLU(), pool(), Fire(96, 16, 64), Fire(128, 16, 64), Fire(128, 32, 128), pool(),
            Fire(256, 32, 128), Fire(256, 48, 192), Fire(384, 48, 192), Fire(384, 64, 256), pool(), Fire(512, 64, 256),
        )  # fmt: skip
        self.classifier = nn.Sequential(
            nn.Dropout(), nn.Conv2d(512, 1000, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x)).flatten(1)


def imagenet(size: int) -> list[tuple[np.ndarray, int]]:
    """RGB ``[size, size, 3]`` centre crops and their classes, in an order that mixes the classes."""
    images = []
    with tarfile.open(DATA / "imagenet1k_samples" / "imagenet1000_256.tar") as archive:
        for member in archive.getmembers():
            file = archive.extractfile(member)
            if file is None:
                continue
            image = Image.open(io.BytesIO(file.read())).convert("RGB")
            left, top = (image.width - size) // 2, (image.height - size) // 2
            cropped = image.crop((left, top, left + size, top + size))
            images.append((np.asarray(cropped), int(Path(member.name).name[:4])))
    order = np.random.default_rng(0).permutation(len(images))
    return [images[i] for i in order]


def squeezenet() -> Network:
    model = SqueezeNet()
    model.load_state_dict(load_file(DATA / "squeezenet" / "squeezenet1_0.safetensors"))
    mean = np.array([104, 117, 123], np.float32)
    inputs = [
        {"x": np.ascontiguousarray((i[:, :, ::-1] - mean).transpose(2, 0, 1)[None], np.float32)}
        for i, _ in imagenet(227)
    ]
    return Network(
        name="SqueezeNet 1.0", model=_torch(model, inputs[0]), calibration=inputs[:128], evaluation=inputs[256:756],
        figure="top-1 agreement", target=93.0, score=agreement,
    )  # fmt: skip


# --- ResNet-20 on CIFAR-10 --------------------------------------------------------------------------------


class BasicBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.grows = outputs - inputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        if self.grows:  # option A: subsample and pad with zero channels
            x = nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.grows // 2, self.grows // 2))
        return torch.relu(x + y)


class ResNet20(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        widths = ((16, 16), (16, 32), (32, 64))
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(BasicBlock(i, o, 1 + (i != o)), BasicBlock(o, o, 1), BasicBlock(o, o, 1))
            for i, o in widths
        )
        self.linear = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        return self.linear(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


def resnet20() -> Network:
    model = ResNet20()
    state = load_file(DATA / "resnet_cifar" / "resnet20.safetensors")
    model.load_state_dict({k.removeprefix("module."): v for k, v in state.items()})
    rows = [
        np.asarray(Image.open(DATA / "cifar10" / f"cifar10_batch_{i}.png").convert("RGB")) for i in range(2)
    ]
    pixels = np.concatenate(rows).reshape(-1, 32, 32, 3).transpose(0, 3, 1, 2).astype(np.float32) / 255
    mean, std = (
        np.array(v, np.float32)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    inputs = [{"x": i[None]} for i in ((pixels - mean) / std).astype(np.float32)]
    return Network(
        name="ResNet-20", model=_torch(model, inputs[0]), calibration=inputs[:256], evaluation=inputs[1000:],
        figure="top-1 agreement", target=98.5, score=agreement,
    )  # fmt: skip


# --- MobileNetV1 0.25 (visual wake words) -----------------------------------------------------------------


class Lite(nn.Module):
    """A chain of TFLite convolutions, each with a bias and SAME padding, as PyTorch."""

    def __init__(self, steps: list[tuple[str, list[np.ndarray], int]]) -> None:
        super().__init__()
        self.pads: list[tuple[int, int]] = []
        layers = []
        for kind, (weight, bias), stride in steps:
            order = (0, 3, 1, 2) if kind == "CONV_2D" else (3, 0, 1, 2)
            w = torch.from_numpy(weight.transpose(order).copy())
            groups = 1 if kind == "CONV_2D" else w.shape[0]
            conv = nn.Conv2d(w.shape[1] * groups, w.shape[0], w.shape[2], stride, groups=groups)
            conv.weight.data, conv.bias.data = w, torch.from_numpy(bias.copy())
            total = w.shape[2] - stride if w.shape[2] > 1 else 0
            self.pads.append((total // 2, total - total // 2))
            layers.append(conv)
        self.layers = nn.ModuleList(layers)
        self.head = nn.Linear(layers[-1].out_channels, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for (before, after), layer in zip(self.pads, self.layers, strict=True):
            if before or after:
                x = nn.functional.pad(x, (before, after, before, after))
            x = torch.relu(layer(x))
        return self.head(x.mean((2, 3)))


def visual_wake_words() -> Network:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    lite = Interpreter(
        str(DATA / "mlperf_tiny" / "vww_96_float.tflite"),
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    lite.allocate_tensors()
    shapes = {t["index"]: t["shape"] for t in lite.get_tensor_details()}
    steps = []
    for op in lite._get_ops_details():
        source, *weights = (i for i in op["inputs"] if i >= 0)
        if "CONV" in op["op_name"]:
            arrays = [lite.get_tensor(i) for i in weights]
            steps.append((op["op_name"], arrays, int(shapes[source][1] // shapes[op["outputs"][0]][1])))
        if op["op_name"] == "FULLY_CONNECTED":
            head = [lite.get_tensor(i) for i in weights]
    model = Lite(steps)
    model.head.weight.data, model.head.bias.data = (torch.from_numpy(a.copy()) for a in head)
    images = [np.asarray(Image.fromarray(i).resize((96, 96)), np.float32) / 255 for i, _ in imagenet(256)]
    inputs = [{"x": np.ascontiguousarray(i.transpose(2, 0, 1)[None])} for i in images]
    lite.set_tensor(lite.get_input_details()[0]["index"], images[0][None])
    lite.invoke()
    expected = lite.get_tensor(lite.get_output_details()[0]["index"])
    with torch.no_grad():
        got = model(torch.from_numpy(inputs[0]["x"])).softmax(1).numpy()
    np.testing.assert_allclose(got, expected, atol=1e-4)
    return Network(
        name="MobileNetV1 0.25", model=_torch(model, inputs[0]), calibration=inputs[:200], evaluation=inputs[200:],
        figure="top-1 agreement", target=98.5, score=agreement,
    )  # fmt: skip


# --- MiniLM on SST-2 --------------------------------------------------------------------------------------


def minilm() -> Network:
    """The example's encoder; a logistic regression on its float32 embeddings classifies SST-2's sentences."""
    sys.path.insert(0, str(ROOT / "examples" / "minilm"))
    from minilm_tokens import tokenize
    from model import encoder  # type: ignore[import-not-found]
    from sklearn.linear_model import LogisticRegression

    def read(name: str, count: int) -> tuple[list[Inputs], np.ndarray]:
        lines = (DATA / "sst2" / name).read_text(encoding="utf-8").splitlines()[:count]
        pairs = [line.rsplit("\t", 1) for line in lines]
        return [tokenize(text) for text, _ in pairs], np.array([int(label) for _, label in pairs])

    train, train_labels = read("train.tsv", 1200)
    evaluation, labels = read("dev.tsv", 500)
    model = encoder()
    with torch.no_grad():
        known = [model.module(**{k: torch.from_numpy(v) for k, v in i.items()}).numpy() for i in train]
    classifier = LogisticRegression(max_iter=1000, C=10).fit(np.concatenate(known), train_labels)

    def score(outputs: np.ndarray, reference: np.ndarray) -> float:
        return float(classifier.score(outputs, labels) - classifier.score(reference, labels)) * 100

    return Network(
        name="MiniLM-L6", model=model, calibration=train[:100], evaluation=evaluation,
        figure="SST-2 accuracy change", target=-0.5, score=score,
    )  # fmt: skip


def _torch(module: nn.Module, example: Inputs) -> TorchModel:
    inputs: dict[str, Any] = {k: torch.from_numpy(v) for k, v in example.items()}
    return TorchModel(module=module.eval(), example_inputs=inputs)


NETWORKS: dict[str, Callable[[], Network]] = {
    "squeezenet": squeezenet, "resnet20": resnet20, "mobilenet": visual_wake_words, "minilm": minilm,
}  # fmt: skip
