"""TensorRT: engines are built on the GPU that runs them; edgekit writes the ONNX and the recipe for it.

The graph is parsed here by TensorRT's own parser, or by TensorRT-RTX's where only that is installed.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgekit.backends.nvidia import portable
from edgekit.backends.nvidia.tensorrt.recipe import MINIMUM, write_recipe
from edgekit.backends.nvidia.typed import executed, spelled
from edgekit.core.plugins import BackendInfo
from edgekit.errors import UnsupportedOperatorsError
from edgekit.graph import io
from edgekit.types import Availability, Lowered, OnnxModel, Option, Placement, Target

NAME = "tensorrt"
INFO = BackendInfo(
    title="TensorRT",
    requirement="edgekit-deploy[tensorrt]",
    packages=("tensorrt",),
    benchmark="edgekit.backends.nvidia.benchmark",
)


def available() -> Availability:
    """Installed always: the ONNX and its recipe need nothing of TensorRT. Usable: TensorRT and a GPU are here."""
    try:
        version = importlib.metadata.version("tensorrt")
    except importlib.metadata.PackageNotFoundError:
        return Availability(
            installed=True,
            usable=False,
            why_not="tensorrt is not installed: writes the ONNX and the recipe, builds and runs no engine",
            hint="pip install 'edgekit-deploy[tensorrt]' --extra-index-url https://pypi.nvidia.com",
        )
    usable = portable.gpu_present()
    return Availability(
        installed=True,
        usable=usable,
        version=version,
        why_not="" if usable else "no NVIDIA GPU",
        hint="" if usable else "build and run the artifact on the device, by its recipe",
    )


def lower(model: OnnxModel, target: Target, options: Mapping[str, Option], out: Path) -> Lowered:
    """Write ``model.onnx``, ``recipe.json`` (the exact command) and ``README.md`` into ``out``.

    Raises :class:`UnsupportedOperatorsError` with every node that the parser, or without one the rules,
    refuse.
    """
    onnx = portable.write_portable(model, target, out / target.file)
    shapes = portable.profiles(onnx.model.inputs, str(options.get("axes", "")))
    checked = _check(onnx, target, shapes)
    recipe = write_recipe(target, shapes, out)
    return Lowered(
        files=(target.file, *(f.name for f in io.external_files(onnx.model.path)), *recipe),
        inputs=onnx.model.inputs,
        outputs=onnx.model.outputs,
        runtime=dict(target.runtime),
        minimum_runtime=MINIMUM,
        notes=(
            *onnx.notes,
            *spelled(model, target).notes[:1],
            checked,
            "the engine is built on the device, by recipe.json",
        ),
        details={"profiles": {name: [list(s) for s in triple] for name, triple in shapes.items()}},
    )


def placement(
    model: OnnxModel,
    target: Target,
    lowered: Lowered,  # noqa: ARG001  (part of the protocol)
    raw: Mapping[str, Any],
) -> Placement:
    """Share of the MACs in the asked-for precision, by the engine inspector; without a run, what the graph asks."""
    return executed(model, target, raw)


def _check(onnx: portable.Portable, target: Target, shapes: Mapping[str, tuple[tuple[int, ...], ...]]) -> str:
    """Parse with what is installed; says by what."""
    for module in ("tensorrt", "tensorrt_rtx"):
        if importlib.util.find_spec(module) is not None:
            job = portable.Job(module=module, onnx=onnx.model.path, profiles=shapes)
            answer = portable.run_worker(job, target, onnx.modules)
            return f"parsed by {module} {answer['version']}: {answer['layers']} layers"
    problems = portable.static_problems(onnx.model.path, onnx.modules)
    if problems:
        raise UnsupportedOperatorsError(target.name, problems)
    return "checked by rules only: neither tensorrt nor tensorrt_rtx is installed to parse it"
