"""What quantization costs ResNet-20 on CIFAR-10, after training and trained: the table of docs/qat.md.

    python tools/bench_qat.py --data DATA --out OUT [--only ptq4,qat4] [--epochs 1.0] [--targets ort-int8] [--images N]

``DATA`` and the baseline are those of ``examples/cifar_prune_quantize``; ``OUT`` keeps the baseline, the images, and
each case's plan: a case that was run is not trained again. Accuracy in percent on ``--images`` test images spread over
the classes, in PyTorch and, where targets are named, in the artifact on its runtime.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples" / "cifar_prune_quantize"))

import numpy as np
import torch
from cifar import Objects, normalized, objects
from cifar_prune_quantize import EXAMPLE, baseline
from safetensors.torch import load_file

import edgekit
from edgekit.compress.plan import rebuilt, save
from edgekit.compress.run import run
from edgekit.compress.step import Context
from edgekit.compress.steps.qat import Qat
from edgekit.compress.training.settings import Training
from edgekit.graph.export import export
from edgekit.types import TorchModel

ENDS = "conv1=8,linear=8"


def cases(epochs: float) -> dict[str, Qat]:
    """Untrained, and trained: at four bits as the network was, with batch norms that learn on; at eight bits there is
    little to mend, and a small rate."""
    eight = Training(epochs=epochs, rate=0.001, optimizer="sgd", weight_decay=5e-4)
    four = Training(epochs=epochs, rate=0.02, optimizer="sgd", weight_decay=5e-4)
    return {
        "ptq8": Qat(),
        "ptq4": Qat(weights=4),
        "ptq-mixed": Qat(weights=4, layers=ENDS),
        "qat8": Qat(batch_norm="freeze", training=eight),
        "qat4": Qat(weights=4, batch_norm="train", training=four),
        "qat-mixed": Qat(weights=4, layers=ENDS, batch_norm="train", training=four),
    }


def main() -> None:
    """Run the cases that were asked for, one line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("bench_qat"))
    parser.add_argument("--only", default="")
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--targets", default="")
    parser.add_argument("--images", type=int, default=10_000)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    task = objects(options.data, options.out / "cifar10.npz", test=options.images)
    for name, step in cases(options.epochs).items():
        if not options.only or name in options.only.split(","):
            model = quantized(name, step, task, options)
            row = {
                "case": name,
                "epochs": step.training.epochs,
                "pytorch": round(100 * task.metric(model), 2),
            }
            row["onnx_bytes"] = size(model, options.out / f"{name}.onnx")
            row |= on_runtimes(
                model, task, options.out / name, list(filter(None, options.targets.split(",")))
            )
            print(json.dumps(row), flush=True)


def quantized(name: str, step: Qat, task: Objects, options: argparse.Namespace) -> torch.nn.Module:
    """The baseline after ``step``; from its plan where there is one."""
    model, _ = baseline(task, options.data, options.out, 2.0)
    plan = options.out / f"{name}-{step.training.epochs:g}"
    if (plan / "plan.json").is_file():
        tensors, weights = (load_file(plan / f"{part}.safetensors") for part in ("plan", "weights"))
        return rebuilt(model, (step,), tensors, weights)
    context = Context(task=task, example_inputs=EXAMPLE)
    model, report = run(model, (step,), context, work=options.out / "work", judged=False)
    save(plan, model, (step,), report, context)
    return model


def size(model: torch.nn.Module, file: Path) -> int:
    """Bytes of the exported Q/DQ file."""
    return export(TorchModel(module=model, example_inputs=EXAMPLE), file).path.stat().st_size


def on_runtimes(model: torch.nn.Module, task: Objects, out: Path, targets: list[str]) -> dict[str, object]:
    """Accuracy and size of each artifact."""
    if not targets:
        return {}

    def evaluation() -> Iterator[tuple[dict[str, np.ndarray], int]]:
        for x, y in zip(task.test_images, task.test_labels, strict=True):
            yield {"image": x[None].numpy()}, int(y)

    images = normalized(task.images[:: len(task.images) // 256])
    result = edgekit.build(
        model,
        EXAMPLE,
        targets=targets,
        calibration=[{"image": image[None].numpy()} for image in images],
        evaluation=list(evaluation()),
        out=out,
        options=edgekit.Options(speed_gate=False),
    )
    rows: dict[str, object] = {}
    for artifact in result.raise_for_failures().artifacts:
        rows[artifact.target] = round(100 * artifact.manifest.parity.metric, 2)
        rows[f"{artifact.target}_bytes"] = sum(f.size for f in artifact.manifest.files)
    return rows


if __name__ == "__main__":
    main()
