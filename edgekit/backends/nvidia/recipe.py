"""The build recipe: the exact ``trtexec`` call, as JSON for tools and as text for people."""

from __future__ import annotations

import json
from pathlib import Path

from edgekit.backends.nvidia.portable import Profiles
from edgekit.types import Precision, Target

MINIMUM = "10.12"
"""The first release whose ``--stronglyTyped`` takes every graph that edgekit writes; 11 has no other mode."""


def write_recipe(target: Target, shapes: Profiles, out: Path) -> tuple[str, ...]:
    """Write ``recipe.json`` and ``README.md``; returns their names."""
    argv = build_argv(target, shapes)
    recipe = {
        "schema": 1,
        "tool": "trtexec",
        "minimum_version": MINIMUM,
        "build": argv,
        "measure": ["trtexec", "--loadEngine=model.engine", "--useCudaGraph", "--noDataTransfers"],
        "run_on": "the GPU that will run the engine: engines fit one GPU model and one TensorRT version",
    }
    text = json.dumps(recipe, indent=2, sort_keys=True) + "\n"
    for name, content in (("recipe.json", text), ("README.md", _readme(argv, target))):
        part = out / f".{name}.part"
        part.write_text(content, encoding="utf-8")
        part.replace(out / name)
    return ("recipe.json", "README.md")


def build_argv(target: Target, shapes: Profiles) -> list[str]:
    """``trtexec`` arguments that build the engine. Precision is in the ONNX: no ``--fp16``, no ``--int8``."""
    argv = ["trtexec", f"--onnx={target.file}", "--saveEngine=model.engine", "--stronglyTyped"]
    if target.precision is Precision.FP32:
        argv.append("--noTF32")
    for flag, index in (("--minShapes", 0), ("--optShapes", 1), ("--maxShapes", 2)):
        if shapes:
            sizes = ",".join(f"{name}:{'x'.join(map(str, triple[index]))}" for name, triple in shapes.items())
            argv.append(f"{flag}={sizes}")
    return [*argv, "--profilingVerbosity=detailed", "--skipInference"]


def _readme(argv: list[str], target: Target) -> str:
    return (
        f"# {target.name}\n\n"
        "This artifact was not run: TensorRT builds its engine on the GPU that will run it.\n"
        "On the device, in this folder:\n\n"
        "    " + " ".join(argv) + "\n\n"
        f"TensorRT {MINIMUM} or newer. Precision is spelled in the ONNX (strongly typed network).\n"
    )
