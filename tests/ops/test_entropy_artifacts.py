"""Real artifacts through .ekz: bit for bit, and smaller than general coders make them."""

from __future__ import annotations

import lzma
from pathlib import Path

import pytest

from edgekit import entropy

HAN = "squeezenet/compressed_SqueezeNet.net"


def packed(source: Path, folder: Path) -> int:
    report = entropy.pack(source, folder / "x.ekz")
    assert entropy.unpack(folder / "x.ekz", folder / "back").path.read_bytes() == source.read_bytes()
    return report.packed


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "mlperf_tiny/kws_ref_model.tflite",
        "mlperf_tiny/kws_ref_model_float32.tflite",
        "mlperf_tiny/pretrainedResnet_quant.tflite",
        "mlperf_tiny/vww_96_int8.tflite",
        "resnet_cifar/resnet20.safetensors",
    ],
)
def test_smaller_than_xz_and_zstd(data: Path, tmp_path: Path, name: str) -> None:
    zstandard = pytest.importorskip("zstandard")
    plain = (data / name).read_bytes()
    peers = len(lzma.compress(plain, preset=9 | lzma.PRESET_EXTREME)), len(zstandard.compress(plain, 22))
    assert packed(data / name, tmp_path) < min(peers)


@pytest.mark.data
@pytest.mark.slow
def test_deep_compression_artifact(data: Path, tmp_path: Path) -> None:
    assert packed(data / HAN, tmp_path) <= 545_000
