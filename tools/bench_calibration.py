"""What calibration costs beside inference alone: MobileNetV2 at 224, the same images, taken in turns.

    python tools/bench_calibration.py [--images 256] [--rounds 5] [--memory] [--json FILE]

One round runs every image through ONNX Runtime once, then calibrates on them. The images are in memory, both
sides leave the number of threads to ONNX Runtime. The ratio is that of the best rounds, of
wall time; CPU time of the process (all threads) stands beside it. Budget: 2. With ``--memory`` the peak resident
memory of calibrating 16 to 1,024 samples follows, each in a process of its own that draws its samples one by one.
The images are those of ``EDGEKIT_DATA`` where they are, else noise; the weights are random, scaled to keep the
activations' variance. Exits with 1 where a budget does not hold.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np

from edgekit.graph import io
from edgekit.quantize.calibrate.collect import calibrate
from edgekit.types import Sample

if TYPE_CHECKING:
    from edgekit.types import TorchModel

Array = np.ndarray

_RATIO = 2.0
_GROWTH = 1.1  # of peak memory, from the fewest to the most samples
_SAMPLES = (16, 64, 256, 1024)
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


@dataclasses.dataclass(frozen=True)
class Images:
    """``count`` samples, made when they are asked for unless they are given."""

    count: int
    given: tuple[Array, ...] = ()
    labelled = False

    @property
    def fingerprint(self) -> str:
        """These samples are not cached."""
        return f"bench {self.count}"

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Sample]:
        for i in range(self.count):
            yield Sample(inputs={"x": self.given[i] if self.given else noise(i)})


def noise(seed: int) -> Array:
    """One image-sized array."""
    return np.random.default_rng(seed).standard_normal((1, 3, 224, 224), np.float32)


def export(path: Path) -> None:
    """MobileNetV2 as optimized ONNX."""
    from edgekit.graph import export, passes

    passes.optimize(export.export(mobilenet(), path.with_name("export.onnx")), path)


def mobilenet() -> TorchModel:
    """MobileNetV2 (Sandler et al., 2018) with random weights."""
    import torch
    from torch import nn

    from edgekit.types import TorchModel

    def conv(i: int, o: int, k: int, stride: int = 1, groups: int = 1, *, act: bool = True) -> nn.Sequential:
        layers = [
            nn.Conv2d(i, o, k, stride, k // 2, groups=groups, bias=False),
            nn.BatchNorm2d(o, momentum=None),
        ]
        return nn.Sequential(*layers, nn.ReLU6() if act else nn.Identity())

    class Inverted(nn.Module):
        def __init__(self, i: int, o: int, stride: int, ratio: int) -> None:
            super().__init__()
            wide = i * ratio
            first = [conv(i, wide, 1)] if ratio > 1 else []
            self.body = nn.Sequential(*first, conv(wide, wide, 3, stride, wide), conv(wide, o, 1, act=False))
            self.adds = stride == 1 and i == o

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.body(x) if self.adds else self.body(x)

    class MobileNetV2(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layers, width = [conv(3, 32, 3, 2)], 32
            for ratio, out, repeats, stride in _STAGES:
                for r in range(repeats):
                    layers.append(Inverted(width, out, stride if r == 0 else 1, ratio))
                    width = out
            self.features = nn.Sequential(*layers, conv(width, 1280, 1))
            self.classifier = nn.Linear(1280, 1000)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.classifier(self.features(x).mean((2, 3)))

    torch.manual_seed(0)
    model = MobileNetV2()
    with torch.no_grad():  # batch statistics of its own, so that no layer dies or explodes
        for _ in range(3):
            model.train()(torch.randn(8, 3, 224, 224))
    return TorchModel(module=model.eval(), example_inputs={"x": torch.randn(1, 3, 224, 224)})


def images(count: int) -> tuple[Array, ...]:
    """Normalised ImageNet samples where the data set is, else noise."""
    from real_networks import DATA, imagenet

    if not (DATA / "imagenet1k_samples").is_dir():
        return tuple(noise(i) for i in range(count))
    pixels = [image for image, _ in imagenet(224)][:count]
    mean, std = np.float32((0.485, 0.456, 0.406)), np.float32((0.229, 0.224, 0.225))
    arrays = [((p / np.float32(255) - mean) / std).transpose(2, 0, 1)[None] for p in pixels]
    return tuple(np.ascontiguousarray(a, np.float32) for a in arrays)


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def rounds(model: Path, given: tuple[Array, ...], count: int) -> dict[str, list[tuple[float, float]]]:
    """Inference alone and calibration in turns, ``count`` times after a warm-up."""
    described = io.describe(model)
    session = io.session(model)
    samples = Images(len(given), given)

    def infer() -> None:
        for array in given:
            session.run(None, {"x": array})

    def measure() -> None:
        calibrate(described, samples, out=model.with_name("calibration"))

    session.run(None, {"x": given[0]})
    calibrate(described, Images(4, given[:4]), out=model.with_name("calibration"))
    taken: dict[str, list[tuple[float, float]]] = {"inference": [], "calibration": []}
    for i in range(count):
        taken["inference"].append(timed(infer))
        taken["calibration"].append(timed(measure))
        both = " ".join(f"{k} {v[-1][0]:.2f} s (CPU {v[-1][1]:.2f})" for k, v in taken.items())
        print(f"round {i + 1}: {both}", file=sys.stderr, flush=True)
    return taken


def peak_memory(model: Path, count: int) -> int:
    """Peak resident bytes of a process that calibrates on ``count`` samples."""
    argv = [sys.executable, __file__, "--child", str(model), "--images", str(count)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def child(model: Path, count: int) -> None:
    """Calibrate, then tell this process's own peak."""
    calibrate(io.describe(model), Images(count), out=model.with_name(f"calibration-{count}"))
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    print(next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")))


def main() -> int:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        child(options.child, options.images)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model.onnx"
        export(model)
        taken = rounds(model, images(options.images), options.rounds)
        peaks = {n: peak_memory(model, n) for n in _SAMPLES} if options.memory else {}
    walls, cpus = ({k: [t[i] for t in v] for k, v in taken.items()} for i in (0, 1))
    ratio = min(walls["calibration"]) / min(walls["inference"])
    middle = statistics.median(c / i for c, i in zip(walls["calibration"], walls["inference"], strict=True))
    work = min(cpus["calibration"]) / min(cpus["inference"])
    print(
        f"{options.images} images: calibration takes {ratio:.2f} times inference alone "
        f"(median {middle:.2f}, CPU {work:.2f})"
    )
    for count, peak in peaks.items():
        print(f"{count:5} samples: peak {peak / 2**20:.0f} MiB")
    if options.json:
        options.json.write_text(json.dumps({"seconds": taken, "peaks": peaks}, indent=1) + "\n")
    flat = not peaks or max(peaks.values()) <= _GROWTH * peaks[_SAMPLES[0]]
    return 0 if ratio <= _RATIO and flat else 1


if __name__ == "__main__":
    sys.exit(main())
