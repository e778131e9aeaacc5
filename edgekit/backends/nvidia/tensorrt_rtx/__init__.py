"""TensorRT for RTX: an engine built ahead of time, without a GPU, with the portable ONNX beside it.

Running it needs an NVIDIA GPU; where there is none, the artifact is built and marked as not run.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgekit.backends.nvidia import portable
from edgekit.backends.nvidia.typed import executed, spelled
from edgekit.core.plugins import BackendInfo
from edgekit.errors import MissingExtraError
from edgekit.graph import io
from edgekit.types import Availability, Lowered, OnnxModel, Option, Placement, Precision, Target

NAME = "tensorrt_rtx"

DISTRIBUTIONS = ("tensorrt-rtx-cu13", "tensorrt-rtx-cu12", "tensorrt-rtx")
"""Distributions that install the module ``tensorrt_rtx``."""

INFO = BackendInfo(
    title="TensorRT-RTX",
    requirement="edgekit-deploy[tensorrt-rtx]",
    packages=DISTRIBUTIONS,
)

_PORTABLE = "model.onnx"


def available() -> Availability:
    """Whether the builder is installed, and whether a GPU is here to run its engines."""
    if importlib.util.find_spec("tensorrt_rtx") is None:
        return Availability(
            installed=False,
            usable=False,
            why_not="tensorrt_rtx is not installed",
            hint="pip install 'edgekit-deploy[tensorrt-rtx]'",
        )
    version = next(filter(None, map(_version, DISTRIBUTIONS)), "")
    if not portable.gpu_present():
        return Availability(
            installed=True,
            usable=False,
            version=version,
            why_not="no NVIDIA GPU: engines can be built here, not run",
            hint="copy the artifact to a machine with an NVIDIA GPU and run edgekit verify there",
        )
    return Availability(installed=True, usable=True, version=version)


def lower(model: OnnxModel, target: Target, options: Mapping[str, Option], out: Path) -> Lowered:
    """Write ``model.engine`` and ``model.onnx`` into ``out``.

    Raises :class:`~edgekit.errors.UnsupportedOperatorsError` with every node that the parser refuses.
    """
    if importlib.util.find_spec("tensorrt_rtx") is None:
        raise MissingExtraError("TensorRT-RTX", "tensorrt-rtx")
    wanted = portable.compute_capabilities(options.get("compute_capabilities", ""))
    onnx = portable.write_portable(model, target, out / _PORTABLE)
    part = out / f".{target.file}.part"
    job = portable.Job(
        module="tensorrt_rtx",
        onnx=onnx.model.path,
        engine=part,
        compute_capabilities=wanted,
        profiles=portable.profiles(onnx.model.inputs, str(options.get("axes", ""))),
    )
    try:
        answer = portable.run_worker(job, target, onnx.modules)
        part.replace(out / target.file)
    finally:
        part.unlink(missing_ok=True)
    return Lowered(
        files=(target.file, _PORTABLE, *(f.name for f in io.external_files(onnx.model.path))),
        inputs=onnx.model.inputs,
        outputs=onnx.model.outputs,
        runtime=dict(target.runtime),
        minimum_runtime=str(answer["version"]),
        notes=(*onnx.notes, *spelled(model, target).notes[:1], *_notes(wanted, job, target)),
        details={
            "layers": answer["layers"],
            "profiles": {k: list(map(list, v)) for k, v in job.profiles.items()},
        },
    )


def placement(
    model: OnnxModel,
    target: Target,
    lowered: Lowered,  # noqa: ARG001  (part of the protocol)
    raw: Mapping[str, Any],
) -> Placement:
    """Share of the MACs in the asked-for precision, by the engine inspector; without a run, what the graph asks."""
    return executed(model, target, raw)


def _notes(wanted: tuple[str, ...], job: portable.Job, target: Target) -> tuple[str, ...]:
    where = ", ".join(wanted) or "8.0 and later (the builder's default)"
    notes = [f"compute capabilities: {where}", "strongly typed network, TF32 off"]
    notes += [f"{name}: {' / '.join(map(str, shapes))}" for name, shapes in job.profiles.items()]
    if target.precision is Precision.INT8:
        notes.append(
            "NVIDIA's support matrix lists INT8 for weight-only products: measure on the GPU before use"
        )
    return tuple(notes)


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""
