"""edgekit takes a PyTorch model to a measured, verified, shippable artifact on an edge runtime.

Public names are loaded on first use, so that ``import edgekit`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from edgekit.core import versions

__version__ = versions.EDGEKIT

if TYPE_CHECKING:
    from edgekit.artifact.run import predict as predict
    from edgekit.pipeline.build import build as build
    from edgekit.types import TorchModel as TorchModel

_LAZY = {
    "build": "edgekit.pipeline.build",
    "predict": "edgekit.artifact.run",
    "Artifact": "edgekit.artifact.manifest",
    "Manifest": "edgekit.artifact.manifest",
    "EdgekitError": "edgekit.errors",
    "Measurement": "edgekit.types",
    "OnnxModel": "edgekit.types",
    "Parity": "edgekit.types",
    "Placement": "edgekit.types",
    "Precision": "edgekit.types",
    "Sample": "edgekit.types",
    "Scheme": "edgekit.types",
    "Target": "edgekit.types",
    "TensorSpec": "edgekit.types",
    "TorchModel": "edgekit.types",
}
__all__ = ["__version__", *_LAZY]


def __getattr__(name: str) -> Any:
    try:
        module = _LAZY[name]
    except KeyError:
        raise AttributeError(f"module 'edgekit' has no attribute {name!r}") from None
    return getattr(importlib.import_module(module), name)


def __dir__() -> list[str]:
    return sorted(__all__)
