"""ONNX Runtime, CPU provider: fp32, fp16, int8 and dynamic int8 as ``model.onnx``; ``model.ort`` on request.

In comes an ONNX graph (with Q/DQ where the target has a scheme). Out goes the same graph, checked against the
runtime's own table of kernels and written in the oldest form that it allows, and a placement by the profiler.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path

from edgekit.core import versions
from edgekit.core.plugins import BackendInfo
from edgekit.types import Availability, Json, Lowered, OnnxModel, Option, Placement, Target

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
    counts_own_files=True,
    doctor="edgekit.backends.onnxruntime.doctor",
    benchmark="edgekit.backends.onnxruntime.benchmark",
    form="edgekit.diff.onnx_form",
)


def available() -> Availability:
    """Whether the module ``onnxruntime`` can be found; it is not imported."""
    if importlib.util.find_spec("onnxruntime") is None:
        return Availability(
            installed=False,
            usable=False,
            why_not="onnxruntime is not installed",
            hint="pip install 'edgekit-deploy[onnxruntime]'",
        )
    return Availability(installed=True, usable=True, version=versions.installed(*DISTRIBUTIONS))


def lower(model: OnnxModel, target: Target, options: Mapping[str, Option], out: Path) -> Lowered:
    """Write ``model.onnx`` (and, with ``ort_format``, ``model.ort``) into ``out``.

    Raises :class:`UnsupportedOperatorsError` with every node for which the installed runtime has no kernel.
    """
    from edgekit.backends.onnxruntime import artifact

    return artifact.lower(model, target, options, out)


def placement(model: OnnxModel, target: Target, lowered: Lowered, raw: Mapping[str, Json]) -> Placement:
    """Share of the multiply-accumulates in the asked-for precision, by the runtime's profiler."""
    from edgekit.backends.onnxruntime import executed

    return executed.placement(model, target, lowered, raw)
