"""How an engine is built of a recipe by one version of TensorRT: what its record keeps, and what a request asks."""

from __future__ import annotations

from typing import Literal

from edgekit.backends.nvidia.engine import release
from edgekit.backends.nvidia.recipe import Recipe
from edgekit.errors import UsageError
from edgekit.types import Json


def flags_of(recipe: Recipe, version: str) -> dict[str, Json]:
    """How the engine of ``recipe`` is built by TensorRT ``version``, as its record keeps it."""
    typing = typing_of(recipe, version)
    weak = allowed(recipe, typing)
    return {
        "typing": typing,
        "precisions": list(weak),
        "tf32": False,
        "float32": list(recipe.float32) if weak else [],
        "workspace": recipe.workspace_mib << 20,
        "profiles": {n: [list(s) for s in shapes] for n, shapes in recipe.profiles.items()},
        "dla": recipe.dla,
    }


def allowed(recipe: Recipe, typing: str) -> list[str]:
    """The precisions that a weakly typed network may choose among, beside float32."""
    precisions = {"int8": ["int8", "fp16"], "fp16": ["fp16"], "bf16": ["bf16"], "fp8": ["fp8", "fp16"]}
    return precisions.get(recipe.precision, []) if typing == "weak" else []


def typing_of(recipe: Recipe, version: str) -> Literal["strong", "weak"]:
    """Strong, as it was verified; weak where the version knows nothing else, or where what is not quantized gains.

    Weakly typed networks went with TensorRT 11. Until then an INT8 graph lets its other layers run in float16.
    """
    major = release(version)[0]
    if recipe.typing == "weak" and major >= 11:
        raise UsageError(
            f"TensorRT {version} has strongly typed networks only", hint="leave --set typing=weak out"
        )
    if recipe.typing == "strong" and major < 9:
        raise UsageError(
            f"TensorRT {version} has no strongly typed networks", hint="leave --set typing=strong out"
        )
    if recipe.typing != "auto":
        return recipe.typing
    if major < 9:
        return "weak"
    return "weak" if recipe.precision == "int8" and major < 11 else "strong"
