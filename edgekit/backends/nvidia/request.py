"""What is asked of a device that builds an engine: from the artifact's recipe, for the TensorRT that is there.

Implements :class:`edgekit.backends.base.EngineBuilder`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from edgekit.backends.base import EngineHost, EngineOrder
from edgekit.backends.nvidia import engine as engines
from edgekit.backends.nvidia.engine import EngineKey, release
from edgekit.backends.nvidia.flags import allowed, flags_of, typing_of
from edgekit.backends.nvidia.recipe import RECIPE, Recipe, build_argv, read_recipe
from edgekit.errors import UnsupportedError
from edgekit.types import Json, Option, Target

GRAPH = "model.onnx"
"""What engines are made of, in the artifacts of both."""


def needs_engine(main: Path) -> bool:
    """Whether the artifact's main file is what an engine is built from."""
    return main.suffix == ".onnx"


def is_engine(main: Path) -> bool:
    """Whether it is one."""
    return main.suffix == ".engine"


def order(main: Path, host: EngineHost, out: Path) -> EngineOrder:
    """What to build of the artifact with the main file ``main`` on ``host``; what has to be written goes to ``out``.

    Raises :class:`UnsupportedError` where that TensorRT or GPU cannot compute in the precision, and
    :class:`SourceError` for a recipe that is damaged.
    """
    import msgspec

    from edgekit.backends.nvidia import dialect, newer
    from edgekit.graph import io

    recipe = read_recipe(main.parent / RECIPE)
    refuse(recipe, host)
    typing = typing_of(recipe, host.version)
    onnx, notes = dialect.spell(main, host.version, out / "model.onnx", f"tensorrt-{recipe.precision}")
    weak = allowed(recipe, typing)
    notes += (f"{typing}ly typed network" + (f" ({', '.join(weak)} allowed)" if weak else ""),)
    flags = flags_of(recipe, host.version)
    key = EngineKey(
        graph_sha256=io.digest(main),
        runtime="tensorrt",
        version=host.version,
        gpu=host.gpu,
        compute_capabilities=(host.compute_capability,),
        driver=host.driver,
        flags=flags,
    )
    kept = recipe.float32 if onnx == main else newer.bodies(onnx, recipe.float32)
    argv: Json = list(
        build_argv(msgspec.structs.replace(recipe, float32=kept), typing, weak, release(host.version))
    )
    spec: dict[str, Json] = {"via": "", **flags, "trtexec": argv, "float32": list(kept) if weak else []}
    return EngineOrder(
        onnx=onnx, spec=spec, key=key.digest, record=key, notes=notes, seconds=60.0 * recipe.minutes
    )


def contradictions(engine: Path, runtime: str, details: Mapping[str, Json]) -> tuple[str, ...]:
    """What of ``engine`` and its record cannot be, as far as can be told without a GPU."""
    from edgekit.backends.nvidia import offline

    return offline.contradictions(engine, runtime, details)


def recipe_contradictions(main: Path, target: Target, details: Mapping[str, Json]) -> tuple[str, ...]:
    """What of the recipe beside ``main`` is not its target's or its manifest's, in words."""
    from edgekit.backends.nvidia import offline

    return offline.recipe_contradictions(main, target, details)


def write_record(folder_engine: Path, order: EngineOrder) -> None:
    """Put beside a new engine what it was built from and for."""
    assert isinstance(order.record, EngineKey)
    engines.write_record(folder_engine, order.record)


def check(engine: Path, runtime: str, host: EngineHost, *, where: str) -> None:
    """Raise :class:`~edgekit.errors.EngineMismatchError` for an engine that is not for ``host``, or not of the graph
    beside it."""
    from edgekit.graph import io

    graph = engine.with_name("model.onnx")
    wanted = EngineKey(
        graph_sha256=io.digest(graph) if graph.is_file() else "",
        runtime=runtime,
        version=host.version,
        gpu=host.gpu,
        compute_capabilities=(host.compute_capability,),
        driver=host.driver,
    )
    engines.refuse_mismatch(engine, wanted, where=where)


NEEDED_CAPABILITY: Mapping[str, tuple[int, int]] = {"bf16": (8, 0), "fp8": (8, 9)}
"""The compute capability from which on a GPU computes in a precision, where that is not any that TensorRT knows."""

_NEEDED_RELEASE: Mapping[str, tuple[int, int]] = {"bf16": (9, 0), "fp8": (10, 0)}


def refuse(recipe: Recipe, host: EngineHost) -> None:
    """What the device cannot compute in, or does not have."""
    capability = tuple(int(n) for n in host.compute_capability.split("."))
    needed, since = NEEDED_CAPABILITY.get(recipe.precision), _NEEDED_RELEASE.get(recipe.precision)
    if needed and since and (capability < needed or release(host.version) < since):
        raise UnsupportedError(
            f"{recipe.precision} needs compute capability {needed[0]}.{needed[1]} and TensorRT "
            f"{since[0]}.{since[1]}: {host.gpu} has {host.compute_capability} and TensorRT {host.version}",
            hint="build tensorrt-fp16 or tensorrt-int8 for it",
        )
    if recipe.dla >= max(0, host.dla_cores):
        raise UnsupportedError(
            f"there is no DLA core {recipe.dla} on {host.gpu}: it has {host.dla_cores}",
            hint="leave --set dla out, or name a core that is there (from 0)",
        )


def files_read(main: Path) -> tuple[str, ...]:
    """The files beside an engine that its runner reads."""
    return (engines.RECORD,) if is_engine(main) else ()


def options_of(options: Mapping[str, Option]) -> dict[str, Json]:
    """The target's options that a recipe keeps."""
    return {
        "typing": str(options.get("typing", "auto")),
        "workspace_mib": int(options.get("workspace_mib", 0)),
        "dla": int(options.get("dla", -1)),
        "minutes": int(options.get("minutes", 60)),
    }
