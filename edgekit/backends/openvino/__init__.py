"""OpenVINO: fp32, bf16, fp16 weights and int8 as ``model.xml`` with ``model.bin``.

In comes an ONNX graph, quantized where the target has a scheme. Out go the two files of the IR, the same bytes every
time, and which operators the compiled model really executes in the precision that was asked for.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util

from edgekit.backends.openvino.lower import lower
from edgekit.backends.openvino.placement import placement
from edgekit.core.plugins import BackendInfo
from edgekit.types import Availability

NAME = "openvino"
INFO = BackendInfo(
    title="OpenVINO",
    requirement="edgekit-deploy[openvino]",
    wheels=(("openvino",),),
    packages=("openvino", "openvino-telemetry", "nncf"),
    doctor="edgekit.backends.openvino.doctor",
    form="edgekit.diff.openvino_form",
)

__all__ = ["INFO", "NAME", "available", "lower", "placement"]


def available() -> Availability:
    """Whether the distribution ``openvino`` is installed; it is not imported."""
    if importlib.util.find_spec("openvino") is None:
        return Availability(
            installed=False,
            usable=False,
            why_not="openvino is not installed",
            hint="pip install 'edgekit-deploy[openvino]'",
        )
    try:
        version = importlib.metadata.version("openvino")
    except importlib.metadata.PackageNotFoundError:
        version = ""
    return Availability(installed=True, usable=True, version=version)
