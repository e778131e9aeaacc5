"""TensorRT: engines are built on the GPU that runs them; edgekit writes the ONNX and the recipe for it.

The graph is parsed here by TensorRT's own parser, or by TensorRT-RTX's where only that is installed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from edgekit.backends.nvidia import gpu_present
from edgekit.core import versions
from edgekit.core.plugins import BackendInfo
from edgekit.types import Availability, Json, Lowered, OnnxModel, Option, Placement, Target, TensorSpec

NAME = "tensorrt"
INFO = BackendInfo(
    title="TensorRT",
    requirement="edgekit-deploy[tensorrt]",
    packages=("tensorrt",),
    runner="nvidia",
    engines="edgekit.backends.nvidia.request",
    benchmark="edgekit.backends.nvidia.benchmark",
)


def available() -> Availability:
    """Installed always: the ONNX and its recipe need nothing of TensorRT. Usable: TensorRT and a GPU are here."""
    version = versions.installed("tensorrt")
    if not version:
        return Availability(
            installed=True,
            usable=False,
            why_not="tensorrt is not installed: writes the ONNX and the recipe, builds and runs no engine",
            hint="pip install 'edgekit-deploy[tensorrt]' --extra-index-url https://pypi.nvidia.com",
        )
    usable = gpu_present()
    return Availability(
        installed=True,
        usable=usable,
        version=version,
        why_not="" if usable else "no NVIDIA GPU",
        hint="" if usable else "build and run the artifact on the device, by its recipe",
    )


def check_options(target: Target, options: Mapping[str, Option]) -> None:
    """Sizes of axes that say nothing are a :class:`~edgekit.errors.ConfigError`."""
    from edgekit.backends.nvidia import asked

    asked.check_options(target, options)


def check(model: OnnxModel, target: Target, options: Mapping[str, Option]) -> None:
    """Sizes of axes that the model does not have are a :class:`~edgekit.errors.UnknownNameError`."""
    del target
    from edgekit.backends.nvidia.profiles import profiles

    profiles(model.inputs, str(options.get("axes", "")))


def extents(
    inputs: Sequence[TensorSpec], options: Mapping[str, Option]
) -> Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """The optimization profile's smallest and largest shapes."""
    from edgekit.backends.nvidia.profiles import profiles

    shapes = profiles(inputs, str(options.get("axes", "")))
    return {name: (low, high) for name, (low, _, high) in shapes.items()}


def lower(model: OnnxModel, target: Target, options: Mapping[str, Option], out: Path) -> Lowered:
    """Write ``model.onnx``, ``recipe.json`` (the exact command) and ``README.md`` into ``out``.

    Raises :class:`UnsupportedOperatorsError` with every node that the parser, or without one the rules,
    refuse.
    """
    from edgekit.backends.nvidia.artifact import lower_to_recipe

    return lower_to_recipe(model, target, options, out)


def placement(model: OnnxModel, target: Target, lowered: Lowered, raw: Mapping[str, Json]) -> Placement:
    """Share of the MACs in the asked-for precision, by the engine inspector; without a run, what the graph asks."""
    del lowered
    from edgekit.backends.nvidia.executed import executed

    return executed(model, target, raw)
