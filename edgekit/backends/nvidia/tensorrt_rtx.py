"""TensorRT for RTX: an engine built ahead of time, without a GPU, with the portable ONNX beside it.

Running it needs an NVIDIA GPU; where there is none, the artifact is built and marked as not run.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path

from edgekit.backends.nvidia import gpu_present
from edgekit.backends.nvidia.tensorrt import check, extents, placement
from edgekit.core import versions
from edgekit.core.plugins import BackendInfo
from edgekit.errors import MissingExtraError
from edgekit.types import Availability, Lowered, OnnxModel, Option, Target

NAME = "tensorrt_rtx"

DISTRIBUTIONS = ("tensorrt-rtx-cu13", "tensorrt-rtx-cu12", "tensorrt-rtx")
"""Distributions that install the module ``tensorrt_rtx``."""

INFO = BackendInfo(
    title="TensorRT-RTX",
    requirement="edgekit-deploy[tensorrt-rtx]",
    packages=DISTRIBUTIONS,
    runner="nvidia",
    engines="edgekit.backends.nvidia.request",
)

__all__ = [
    "DISTRIBUTIONS",
    "INFO",
    "NAME",
    "available",
    "check",
    "check_options",
    "extents",
    "lower",
    "placement",
]


def available() -> Availability:
    """Whether the builder is installed, and whether a GPU is here to run its engines."""
    if importlib.util.find_spec("tensorrt_rtx") is None:
        return Availability(
            installed=False,
            usable=False,
            why_not="tensorrt_rtx is not installed",
            hint="pip install 'edgekit-deploy[tensorrt-rtx]'",
        )
    usable = gpu_present()
    return Availability(
        installed=True,
        usable=usable,
        version=versions.installed(*DISTRIBUTIONS),
        why_not="" if usable else "no NVIDIA GPU: engines can be built here, not run",
        hint=""
        if usable
        else "copy the artifact to a machine with an NVIDIA GPU and run edgekit verify there",
    )


def check_options(target: Target, options: Mapping[str, Option]) -> None:
    """Compute capabilities that there are not, or that lack the precision, and sizes of axes that say nothing.

    Raises :class:`~edgekit.errors.ConfigError` and :class:`~edgekit.errors.UnsupportedError`.
    """
    from edgekit.backends.nvidia import asked

    asked.check_options(target, options, builder=versions.installed(*DISTRIBUTIONS))


def lower(model: OnnxModel, target: Target, options: Mapping[str, Option], out: Path) -> Lowered:
    """Write ``model.engine`` and ``model.onnx`` into ``out``.

    Raises :class:`~edgekit.errors.UnsupportedOperatorsError` with every node that the parser refuses.
    """
    if importlib.util.find_spec("tensorrt_rtx") is None:
        raise MissingExtraError("TensorRT-RTX", "tensorrt-rtx")
    from edgekit.backends.nvidia.artifact import lower_to_engine

    return lower_to_engine(model, target, options, out)
