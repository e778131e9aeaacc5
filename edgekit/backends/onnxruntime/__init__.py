"""ONNX Runtime, CPU provider: fp32, fp16, int8 and dynamic int8 as ``model.onnx``; ``model.ort`` on request.

In comes an ONNX graph, quantized where the target has a scheme. Out go the file that the runtime loads and, from what
its profile reports, which operators really ran in the precision that was asked for.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util

from edgekit.backends.onnxruntime.lower import lower
from edgekit.backends.onnxruntime.placement import placement
from edgekit.core.plugins import BackendInfo
from edgekit.types import Availability

NAME = "onnxruntime"
DISTRIBUTIONS = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-openvino",
    "onnxruntime-directml",
    "onnxruntime-qnn",
)
"""Distributions that install the module ``onnxruntime``."""

INFO = BackendInfo(
    title="ONNX Runtime",
    requirement="edgekit-deploy[onnxruntime]",
    wheels=(("onnxruntime",),),
    packages=DISTRIBUTIONS,
    purl="pkg:maven/com.microsoft.onnxruntime/onnxruntime-android",
    doctor="edgekit.backends.onnxruntime.doctor",
    benchmark="edgekit.backends.onnxruntime.benchmark",
    form="edgekit.diff.onnx_form",
)

__all__ = ["DISTRIBUTIONS", "INFO", "NAME", "available", "lower", "placement"]


def available() -> Availability:
    """Whether the module ``onnxruntime`` can be found; it is not imported."""
    if importlib.util.find_spec("onnxruntime") is None:
        return Availability(
            installed=False,
            usable=False,
            why_not="onnxruntime is not installed",
            hint="pip install 'edgekit-deploy[onnxruntime]'",
        )
    for name in DISTRIBUTIONS:
        try:
            return Availability(installed=True, usable=True, version=importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            continue
    return Availability(installed=True, usable=True)
