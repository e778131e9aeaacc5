"""Spectral front ends stay float, networks that merely end in a logarithm do not."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from quantize_support import Items, exported, snr, target

from edgekit.graph import io
from edgekit.quantize.calibrate.collect import calibrate
from edgekit.quantize.driver import quantize
from edgekit.quantize.float_model import FloatModel
from edgekit.quantize.options import Cause, QuantizeOptions, QuantizeReport
from edgekit.types import OnnxModel

SIZE, BANDS = 64, 12


class Front(torch.nn.Module):
    """A transform as a convolution, energies, a filter bank; ``ending`` makes features of them."""

    def __init__(self, ending: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        angles = torch.arange(SIZE // 2)[:, None] * torch.arange(SIZE) * 2 * math.pi / SIZE
        window = torch.hann_window(SIZE)
        transform = torch.cat([angles.cos() * window, angles.sin() * window])
        self.register_buffer("transform", transform[:, None])
        seeded = torch.Generator().manual_seed(0)  # whatever ran before
        self.register_buffer("bands", torch.rand(SIZE // 2, BANDS, generator=seeded) ** 4)
        self.ending = ending

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        real, imaginary = torch.conv1d(x, self.transform, stride=SIZE // 2).split(SIZE // 2, dim=1)
        return self.ending((real**2 + imaginary**2).transpose(1, 2) @ self.bands).transpose(1, 2)


def decibels(energy: torch.Tensor) -> torch.Tensor:
    loudness = 10 * torch.log10(energy.clamp(min=1e-8))
    loudness = torch.maximum(loudness, loudness.amax((1, 2), keepdim=True) - 80)
    return (loudness - loudness.mean((1, 2), keepdim=True)) / (loudness.std((1, 2), keepdim=True) + 1e-5)


def per_channel_energy(energy: torch.Tensor) -> torch.Tensor:
    """After Wang et al. 2017 (arXiv 1607.05666), with an average over time in place of the recursion."""
    smooth = torch.nn.functional.avg_pool1d(energy.transpose(1, 2), 5, 1, 2).transpose(1, 2)
    return (energy / (1e-6 + smooth) ** 0.98 + 2) ** 0.5 - 2**0.5


ENDINGS = {
    "log": lambda energy: torch.log(energy + 1e-6),
    "decibels": decibels,
    "per-channel energy": per_channel_energy,
}


def network(front: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(0)
    body = [torch.nn.Conv1d(BANDS, 16, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv1d(16, 16, 3, padding=1)]
    return torch.nn.Sequential(
        front, *body, torch.nn.ReLU(), torch.nn.AdaptiveAvgPool1d(1), torch.nn.Flatten()
    )


def sounds(*, quiet: float) -> Items:
    """Tones under noise; the quietest are so many times as quiet as the loudest."""
    rng = np.random.default_rng(2)
    time = np.arange(640)
    rows = []
    for level in np.geomspace(quiet, 1.0, 12):
        tone = np.sin(time * rng.uniform(0.05, 2) + rng.uniform(0, 6))
        rows.append((level * (tone + rng.normal(0, 0.05, 640))).astype(np.float32)[None, None])
    return Items([{"x": row} for row in rows])


def quantized(
    module: torch.nn.Module, items: Items, scheme: str, folder: Path
) -> tuple[OnnxModel, OnnxModel, QuantizeReport]:
    name = next(iter(inspect.signature(module.forward).parameters))
    model = exported(module, {name: torch.from_numpy(items.inputs[-1]["x"])}, folder)
    items = Items([{model.inputs[0].name: i["x"]} for i in items.inputs])
    calibration = calibrate(model, items, out=folder / "calibration")
    made, report = quantize(
        FloatModel(model, calibration), target(scheme), QuantizeOptions(), folder / "quantized.onnx"
    )
    return model, made, report


def outputs(model: OnnxModel, items: Items) -> np.ndarray:
    session = io.session(model.path, optimized=False)
    return np.concatenate([session.run(None, {model.inputs[0].name: i["x"]})[0] for i in items.inputs])


@pytest.mark.parametrize("scheme", ["ort", "openvino", "tflite"])
@pytest.mark.parametrize("ending", ENDINGS)
def test_energies_stay_float_and_layers_do_not(ending: str, scheme: str, tmp_path: Path) -> None:
    items = sounds(quiet=1e-3)
    model, made, report = quantized(network(Front(ENDINGS[ending])), items, scheme, tmp_path)
    layers = [n for n in report.nodes if n.op in ("Conv", "MatMul")]
    assert [n.cause for n in layers] == [Cause.FRONT, Cause.FRONT, None, None]
    assert all(n.quantized for n in layers[2:])
    assert report.of(Cause.FRONT) == pytest.approx(1 - report.share)
    assert report.kept_out("int8") == report.of(Cause.FRONT)
    assert any("front end" in note for note in report.notes)
    assert snr(outputs(model, items), outputs(made, items)) > 30  # in integers: 3 to 21 dB


@pytest.mark.parametrize("scheme", ["dynamic", "int8-weights"])
def test_without_ranges_too(scheme: str, tmp_path: Path) -> None:
    items = sounds(quiet=1e-3)
    model, made, report = quantized(network(Front(ENDINGS["log"])), items, scheme, tmp_path)
    assert [n.cause for n in report.nodes if n.op == "MatMul"] == [Cause.FRONT]
    assert snr(outputs(model, items), outputs(made, items)) > 30


class Learned(torch.nn.Module):
    """Layers with a Relu, and the logarithm of a square at their end."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Conv1d(1, 8, 5, 2), torch.nn.Conv1d(8, 8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.log(self.second(torch.relu(self.first(x))) ** 2 + 1e-3).mean(-1)


def test_a_network_that_ends_in_a_logarithm_is_none(tmp_path: Path) -> None:
    _, _, report = quantized(Learned(), sounds(quiet=1e-3), "tflite", tmp_path)
    assert not report.of(Cause.FRONT)
    assert report.share == 1.0


def test_energies_of_one_size_are_no_reason(tmp_path: Path) -> None:
    """Sixteen bits, or sums over everything, hold what lies within a decade."""

    def levels(energy: torch.Tensor) -> torch.Tensor:
        return torch.log(energy.sum(1, keepdim=True).expand(-1, 20, -1) + 1e-6)

    _, _, report = quantized(network(Front(levels)), sounds(quiet=0.9), "ort", tmp_path)
    assert not report.of(Cause.FRONT)
