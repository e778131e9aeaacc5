"""Small networks, samples and schemes for the tests of calibration and quantization."""

from __future__ import annotations

import dataclasses
import hashlib
import platform
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

from edgekit.devices.agent.state import isa
from edgekit.graph import export, passes
from edgekit.types import OnnxModel, Precision, Sample, Scheme, Target, TorchModel

SCHEMES = {
    "ort": Scheme(activation="uint8", weight="int8", bias="int32", rules="onnxruntime-x86"),
    "openvino": Scheme(activation="uint8", weight="int8", bias="float32", rules="openvino"),
    "tensorrt": Scheme(
        activation="int8", activation_symmetric=True, weight="int8", bias="float32", rules="tensorrt"
    ),
    "tflite": Scheme(activation="int8", weight="int8", bias="int32", rules="tflite"),
    "tflite-int16": Scheme(
        activation="int16", activation_symmetric=True, weight="int8", bias="int32", rules="tflite-int16"
    ),
    "dynamic": Scheme(activation="uint8", weight="int8", quantizer="dynamic"),
    "int8-weights": Scheme(weight="int8", quantizer="weights"),
    "int4-weights": Scheme(weight="int4", quantizer="weights"),
    "float16-weights": Scheme(weight="float16", quantizer="weights"),
}
# Without VNNI, x86 kernels add UINT8 x INT8 products in 16 bits, which saturate: what is run on such a processor is
# quantized as edgekit quantizes for such a device.
WEIGHT_BITS = 8 if platform.machine() != "x86_64" or {"vnni"} & set(isa()) else 7
CALIBRATED = tuple(name for name, scheme in SCHEMES.items() if scheme.quantizer == "qdq")


def target(name: str, **changes: object) -> Target:
    scheme = dataclasses.replace(SCHEMES[name], **changes)  # type: ignore[arg-type]
    return Target(name=name, backend=name, precision=Precision.INT8, runs_on="cpu", file="m", scheme=scheme)


class Items:
    """Samples from a list of inputs."""

    labelled = False

    def __init__(self, inputs: Sequence[Mapping[str, np.ndarray]]) -> None:
        self.inputs = list(inputs)

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(b"".join(a.tobytes() for i in self.inputs for a in i.values())).hexdigest()

    def __len__(self) -> int:
        return len(self.inputs)

    def __iter__(self) -> Iterator[Sample]:
        return (Sample(inputs=i) for i in self.inputs)


def cbr(
    i: int, o: int, k: int = 3, *, stride: int = 1, groups: int = 1, act: nn.Module | None = None
) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(i, o, k, stride, k // 2, groups=groups, bias=False), nn.BatchNorm2d(o), act or nn.ReLU6()
    )


class Residual(nn.Module):
    """What vision networks are made of: depthwise, residuals, concat, pools, squeeze-excite, classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = cbr(3, 16, stride=2)
        self.depthwise = cbr(16, 16, groups=16)
        self.project = cbr(16, 16, 1, act=nn.Identity())
        self.left, self.right = cbr(16, 8, 1, act=nn.ReLU()), cbr(16, 24, 3, act=nn.ReLU())
        self.shortcut = nn.Conv2d(16, 32, 1)
        self.squeeze, self.excite = nn.Conv2d(32, 8, 1), nn.Conv2d(8, 32, 1)
        self.head = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x + self.project(self.depthwise(x))
        y = torch.cat([self.left(x), self.right(x)], 1) + self.shortcut(x)
        y = nn.functional.max_pool2d(nn.functional.relu(y), 2)
        gate = torch.sigmoid(
            self.excite(nn.functional.relu(self.squeeze(nn.functional.adaptive_avg_pool2d(y, 1))))
        )
        return self.head(nn.functional.adaptive_avg_pool2d(y * gate, 1).flatten(1))


class Attention(nn.Module):
    """A transformer block with its mask."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 64), nn.Linear(64, width)

    def forward(self, x: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        scores = self.query(x) @ self.key(x).transpose(1, 2) / 5.6
        scores = scores.masked_fill(keep[:, None, :] == 0, -torch.inf)
        x = self.norm(x + self.out(scores.softmax(-1) @ self.value(x)))
        return x + self.down(nn.functional.gelu(self.up(x)))


def exported(module: nn.Module, example: Mapping[str, torch.Tensor], folder: Path) -> OnnxModel:
    """The module in ONNX, as the line hands it to calibration."""
    model = TorchModel(module=module.eval(), example_inputs=example)
    return passes.optimize(export.export(model, folder / "export.onnx"), folder / "model.onnx")


def residual(folder: Path) -> tuple[OnnxModel, Items]:
    """The residual network with batch norm statistics of its own data."""
    torch.manual_seed(0)
    module = Residual()
    images = torch.randn(24, 3, 32, 32)
    with torch.no_grad():
        module.train()
        for _ in range(20):
            module(images)
    items = Items([{"x": i[None].numpy()} for i in images])
    return exported(module, {"x": images[:1]}, folder), items


def attention(folder: Path) -> tuple[OnnxModel, Items]:
    """The transformer block; every sample masks some tokens."""
    torch.manual_seed(0)
    tokens = torch.randn(16, 12, 32)
    keep = (torch.arange(12)[None, :] < torch.randint(6, 13, (16, 1))).long()
    items = Items(
        [{"x": t[None].numpy(), "keep": k[None].numpy()} for t, k in zip(tokens, keep, strict=True)]
    )
    return exported(Attention(), {"x": tokens[:1], "keep": keep[:1]}, folder), items


def operators(path: Path) -> Counter[str]:
    return Counter(n.op_type for n in onnx.load(path).graph.node)


def snr(reference: np.ndarray, got: np.ndarray) -> float:
    noise = ((reference.astype(np.float64) - got) ** 2).sum()
    return float(10 * np.log10((reference.astype(np.float64) ** 2).sum() / max(noise, 1e-30)))
