"""The build recipe: what the engine is to be, as JSON for edgekit, and the exact ``trtexec`` call for people."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from edgekit.core import files
from edgekit.errors import SourceError
from edgekit.types import Json, Target

if TYPE_CHECKING:
    from edgekit.backends.nvidia.profiles import Profiles

RECIPE = "recipe.json"
MINIMUM = "8.5"
"""The oldest TensorRT that edgekit builds for; the graph's spelling follows the version."""
STRONG = "10.12"
"""From which release on the command of the recipe takes every graph that edgekit writes, as it is."""

_HAND = {"onnx": "model.onnx", "engine": "model.engine", "layers": "layers.json", "cache": "timing.cache"}


Size = Annotated[int, msgspec.Meta(ge=1, le=1 << 31)]


class Recipe(msgspec.Struct, frozen=True):
    """``recipe.json`` as far as a build needs it. ``float32``: nodes whose activations leave float16's range;
    ``minimum_version``: from which release on the command in it takes the graph as it is."""

    precision: Literal["fp32", "fp16", "bf16", "fp8", "int8"]
    profiles: dict[str, tuple[tuple[Size, ...], tuple[Size, ...], tuple[Size, ...]]] = {}
    typing: Literal["auto", "strong", "weak"] = "auto"
    workspace_mib: Annotated[int, msgspec.Meta(ge=0, le=1 << 20)] = 0
    dla: Annotated[int, msgspec.Meta(ge=-1, le=7)] = -1
    minutes: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 60
    float32: tuple[str, ...] = ()
    schema: Literal[2] = 2
    minimum_version: Annotated[str, msgspec.Meta(pattern=r"^\d{1,4}(\.\d{1,6}){1,3}$")] = STRONG


def read_recipe(path: Path) -> Recipe:
    """Raises :class:`SourceError` for one that is missing or damaged."""
    try:
        return msgspec.json.decode(files.read(path, most=1 << 20), type=Recipe)
    except (OSError, msgspec.MsgspecError, RecursionError) as error:
        raise SourceError(
            f"{path} does not say how to build the engine: {str(error)[:200]}",
            hint="build the artifact again",
        ) from error


def write_recipe(
    target: Target, shapes: Profiles, options: Mapping[str, Json], float32: Collection[str], out: Path
) -> tuple[str, ...]:
    """Write ``recipe.json`` and ``README.md``; returns their names."""
    plan = {
        "precision": str(target.precision),
        "profiles": {name: [list(shape) for shape in triple] for name, triple in shapes.items()},
        "float32": sorted(float32),
        **options,
    }
    recipe = Recipe(**plan)  # type: ignore[arg-type]  # the same names
    argv = ["trtexec", *by_hand(recipe)]
    document = {
        "schema": recipe.schema,
        **plan,
        "tool": "trtexec",
        "minimum_version": recipe.minimum_version,
        "build": argv,
        "measure": ["trtexec", "--loadEngine=model.engine", "--useCudaGraph", "--noDataTransfers"],
        "run_on": "the GPU that will run the engine: engines fit one GPU model and one TensorRT version",
    }
    text = json.dumps(document, indent=2, sort_keys=True) + "\n"
    for name, content in ((RECIPE, text), ("README.md", _readme(argv, target))):
        part = out / f".{name}.part"
        part.write_text(content, encoding="utf-8")
        part.replace(out / name)
    return (RECIPE, "README.md")


def by_hand(recipe: Recipe) -> list[str]:
    """The arguments for somebody who calls ``trtexec`` of a recent release."""
    argv = build_argv(recipe, "strong", (), (10, 12))
    argv = [a for a in argv if "{cache}" not in a and "{workspace}" not in a and "{layers}" not in a]
    for name, file in _HAND.items():
        argv = [argument.replace(f"{{{name}}}", file) for argument in argv]
    return argv


def build_argv(recipe: Recipe, typing: str, weak: Collection[str], release: tuple[int, int]) -> list[str]:
    """``trtexec`` arguments that build the engine; {onnx}, {engine}, {layers}, {cache} and {workspace} stand for what
    is known where it runs.

    In a strongly typed network the precision is in the ONNX: no ``--fp16``, no ``--int8``.
    """
    argv = ["--onnx={onnx}", "--saveEngine={engine}"]
    argv += ["--stronglyTyped"] if typing == "strong" else [f"--{name}" for name in weak]
    if weak and recipe.float32:
        argv += ["--precisionConstraints=obey"]
        argv += ["--layerPrecisions=" + ",".join(f"{name}:fp32" for name in recipe.float32)]
    argv.append("--noTF32")
    for flag, index in (("--minShapes", 0), ("--optShapes", 1), ("--maxShapes", 2)):
        if recipe.profiles:
            sizes = ",".join(f"{n}:{'x'.join(map(str, t[index]))}" for n, t in recipe.profiles.items())
            argv.append(f"{flag}={sizes}")
    if recipe.dla >= 0:
        argv += [f"--useDLACore={recipe.dla}", "--allowGPUFallback"]
    argv += ["--memPoolSize=workspace:{workspace}", "--timingCacheFile={cache}"]
    argv += ["--profilingVerbosity=detailed", "--exportLayerInfo={layers}"]
    return [*argv, "--skipInference" if release >= (8, 6) else "--buildOnly"]


def _readme(argv: list[str], target: Target) -> str:
    return (
        f"# {target.name}\n\n"
        "This artifact was not run: TensorRT builds its engine on the GPU that will run it.\n"
        "edgekit does that over SSH, for the TensorRT that is there:\n\n"
        "    edgekit verify THIS_FOLDER --device NAME\n\n"
        "By hand, on the device, in this folder:\n\n"
        "    " + " ".join(argv) + "\n\n"
        f"TensorRT {STRONG} or newer. Precision is spelled in the ONNX (strongly typed network).\n"
    )
