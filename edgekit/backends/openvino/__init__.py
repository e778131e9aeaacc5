"""OpenVINO: fp32, bf16, fp16 weights and int8 as ``model.xml`` with ``model.bin``.

In comes an ONNX graph (with Q/DQ where the target has a scheme). Out goes OpenVINO's IR, with the same bytes every
time, and a placement by the compiled model, which says what its plug-in executes in which precision.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path

from edgekit.core import versions
from edgekit.core.plugins import BackendInfo
from edgekit.types import Availability, Json, Lowered, OnnxModel, Option, Placement, Target

NAME = "openvino"
INFO = BackendInfo(
    title="OpenVINO",
    requirement="edgekit-deploy[openvino]",
    wheels=(("openvino",),),
    packages=("openvino", "openvino-telemetry", "nncf"),
    doctor="edgekit.backends.openvino.doctor",
    form="edgekit.diff.openvino_form",
)


def available() -> Availability:
    """Whether the distribution ``openvino`` is installed; it is not imported."""
    if importlib.util.find_spec("openvino") is None:
        return Availability(
            installed=False,
            usable=False,
            why_not="openvino is not installed",
            hint="pip install 'edgekit-deploy[openvino]'",
        )
    return Availability(installed=True, usable=True, version=versions.installed("openvino"))


def lower(model: OnnxModel, target: Target, options: Mapping[str, Option], out: Path) -> Lowered:
    """Write ``model.xml`` and ``model.bin`` into ``out``.

    Raises :class:`UnsupportedOperatorsError` with every node that the ONNX front end cannot convert.
    """
    from edgekit.backends.openvino import artifact

    return artifact.lower(model, target, options, out)


def placement(model: OnnxModel, target: Target, lowered: Lowered, raw: Mapping[str, Json]) -> Placement:
    """Share of the multiply-accumulates in the asked-for precision, by the compiled model."""
    del lowered
    from edgekit.backends.openvino import executed

    return executed.placement(model, target, raw)
