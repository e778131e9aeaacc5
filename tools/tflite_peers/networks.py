"""The six networks, built the same way in every tool's own environment: same seed, same torch, same weights."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
ZOO = {
    "resnet18": "torchvision/resnet18",
    "mobilenet_v2": "torchvision/mobilenet_v2",
    "mobilenet_v3_large": "torchvision/mobilenet_v3_large",
    "efficientnet_b0": "torchvision/efficientnet_b0",
    "vit_tiny": "timm/vit_tiny_patch16_224",
}
NETWORKS = (*ZOO, "minilm")
_CALIBRATION = 16


def build(name: str) -> tuple[Any, dict[str, Any]]:
    """(module in evaluation mode, named example inputs of batch 1). Random weights with settled batch norms;
    MiniLM's are real."""
    import torch

    if name == "minilm":
        sys.path.insert(0, str(ROOT / "examples" / "minilm"))
        from model import encoder

        made = encoder()
        return made.module, dict(made.example_inputs)
    from zoo_models import registry, settle

    torch.manual_seed(0)
    architecture = registry()[ZOO[name]]
    module = architecture.build().eval()
    settle(architecture, module)
    return module, dict(architecture.inputs(module, 1))


def calibration(name: str) -> list[dict[str, Any]]:
    """Calibration inputs as arrays: sentences for MiniLM, normal noise for the rest, which has no real weights."""
    import numpy as np

    if name == "minilm":
        sys.path.insert(0, str(ROOT / "examples" / "minilm"))
        from data import calibration as sentences

        return list(sentences())[:_CALIBRATION]
    random = np.random.default_rng(1)
    return [
        {"image": random.standard_normal((1, 3, 224, 224)).astype(np.float32)} for _ in range(_CALIBRATION)
    ]
