"""What refutes the record of an engine without a GPU: whoever alters ``engine.json`` can redo every hash in it.

No signature is checked here. A record that tells of a GPU with another's compute capability, of a version that is not
in the engine's own header, of another graph than the one beside it, or of flags that its recipe lacks, is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from edgekit.backends.nvidia.engine import EngineKey, read_key, release
from edgekit.backends.nvidia.flags import flags_of
from edgekit.backends.nvidia.recipe import MINIMUM, RECIPE, read_recipe
from edgekit.errors import EdgekitError, EngineMismatchError, SourceError, UsageError
from edgekit.types import Json, Target

_VERSION = re.compile(r"\d{1,4}(\.\d{1,6}){1,3}", re.ASCII)
_CAPABILITY = re.compile(r"[1-9]\d?\.\d", re.ASCII)

_GPUS = (
    (r"Xavier", "7.2"),
    (r"V100|TITAN V", "7.0"),
    (r"T4|Quadro RTX|TITAN RTX|RTX 20[678]0|GTX 16\d0", "7.5"),
    (r"A100|A800|A30", "8.0"),
    (r"A2|A10|A10G|A16|A40|RTX A\d000|RTX 30[5-9]0", "8.6"),
    (r"Orin", "8.7"),
    (r"L4|L20|L40|L40S|RTX 40[5-9]0|RTX \d000 Ada", "8.9"),
    (r"H20|H100|H200|H800|GH200", "9.0"),
    (r"B100|B200|GB200", "10.0"),
    (r"B300|GB300", "10.3"),
    (r"Thor", "10.1 11.0"),
    (r"RTX 50[5-9]0|RTX PRO \d000 Blackwell", "12.0"),
    (r"GB10", "12.1"),
)
"""Words in the names of GPUs, and their compute capability (NVIDIA's list, developer.nvidia.com/cuda-gpus). Thor's is
10.1 to CUDA 12 and 11.0 to 13."""

_RTX_MAGIC, _RTX_SIZE, _RTX_VERSION = b"vtrt", slice(16, 24), slice(24, 28)
"""How an engine of TensorRT for RTX 1.7 begins, and where it has its size and its version, a byte a number (seen in
1.7.1.116)."""


def recipe_contradictions(main: Path, target: Target, details: Mapping[str, Json]) -> tuple[str, ...]:
    """What of the recipe beside an artifact's main file, if there is one, is not its target's or its manifest's."""
    path = main.with_name(RECIPE)
    if not path.is_file():
        return ()
    try:
        recipe = read_recipe(path)
    except SourceError as error:
        return (error.message,)
    found = []
    if recipe.precision != str(target.precision):
        found.append(f"its recipe is for {recipe.precision}, and {target.name} is {target.precision}")
    profiles = {name: [list(s) for s in shapes] for name, shapes in recipe.profiles.items()}
    if "profiles" in details and profiles != details["profiles"]:
        found.append("its recipe has other sizes of axes than its manifest")
    if release(recipe.minimum_version) < release(MINIMUM):
        found.append(
            f"its recipe is for TensorRT {recipe.minimum_version}, and edgekit builds from {MINIMUM} on"
        )
    return tuple(found)


def contradictions(engine: Path, runtime: str, details: Mapping[str, Json]) -> tuple[str, ...]:
    """What of ``engine`` and its record cannot be, in words; ``details`` are the manifest's, if any."""
    try:
        key = read_key(engine)
    except EngineMismatchError as error:
        return (error.message,)
    found = [*_of_itself(key, runtime), *_of_the_file(key, engine)]
    return tuple(found or [*_of_the_graph(key, engine), *_of_the_flags(key, engine, details)])


def _of_itself(key: EngineKey, runtime: str) -> Iterator[str]:
    if key.runtime != runtime:
        yield f"its record is of an engine for {key.runtime[:40]}, and the artifact is for {runtime}"
    if not _VERSION.fullmatch(key.version):
        yield f"there is no version {key.version[:40]!r}"
    elif key.runtime == "tensorrt" and release(key.version) < release(MINIMUM):
        yield f"its record says TensorRT {key.version}, and edgekit builds with none before {MINIMUM}"
    for capability in key.compute_capabilities:
        if not _CAPABILITY.fullmatch(capability):
            yield f"there is no compute capability {capability[:40]!r}"
    if key.runtime == "tensorrt" and len(key.compute_capabilities) != 1:
        yield f"its record names {len(key.compute_capabilities)} compute capabilities, and a GPU has one"
    if key.gpu and (real := _capabilities_of(key.gpu)) and not real & set(key.compute_capabilities):
        yield (
            f"its record names the GPU {key.gpu[:80]} with compute capability "
            f"{', '.join(key.compute_capabilities)[:80]}, and that one has {' or '.join(sorted(real))}"
        )


def _capabilities_of(gpu: str) -> set[str]:
    """Empty for a GPU that is not in the list."""
    found = [c for words, c in _GPUS if re.search(rf"(?<![A-Za-z0-9])(?:{words})(?![A-Za-z0-9])", gpu)]
    return set(found[-1].split()) if found else set()


def _of_the_file(key: EngineKey, engine: Path) -> Iterator[str]:
    """What the engine's own header says; only that of TensorRT for RTX is known."""
    if key.runtime != "tensorrt_rtx" or not _VERSION.fullmatch(key.version):
        return
    with engine.open("rb") as file:
        head = file.read(_RTX_VERSION.stop)
    numbers = key.version.split(".")
    if head.startswith(_RTX_MAGIC):
        written = [str(n) for n in head[_RTX_VERSION]]
        known = [n for n in numbers if int(n) < 256]
        size, stated = engine.stat().st_size, int.from_bytes(head[_RTX_SIZE], "little")
        if len(head) < _RTX_VERSION.stop:
            yield f"the engine is cut short: it has {size} bytes"
        elif written[: len(known)] != known:
            yield f"its record says version {key.version}, and the engine itself {'.'.join(written)}"
        elif stated != size:
            yield f"the engine's own header states {stated:,} bytes, and it has {size:,}"
    elif release(key.version) == (1, 7):
        yield "it does not begin as an engine of TensorRT for RTX does"


def _of_the_graph(key: EngineKey, engine: Path) -> Iterator[str]:
    from edgekit.graph import io

    graph = engine.with_name("model.onnx")
    if graph.is_file() and (found := io.digest(graph)) != key.graph_sha256:
        yield f"its record is of another graph ({key.graph_sha256[:12]}) than the one beside it ({found[:12]})"


def _of_the_flags(key: EngineKey, engine: Path, details: Mapping[str, Json]) -> Iterator[str]:
    expected: dict[str, Json] = {}
    if (engine.with_name(RECIPE)).is_file() and key.runtime == "tensorrt":
        try:
            expected = flags_of(read_recipe(engine.with_name(RECIPE)), key.version)
        except UsageError as error:
            yield f"its recipe cannot be of its record's version: {error.message}"
        except EdgekitError as error:
            yield error.message
    elif "profiles" in details:
        expected = {"profiles": details["profiles"], "tf32": False}
    wrong = sorted(n for n in expected if n not in key.flags or key.flags[n] != expected[n])
    if wrong:
        yield f"its record says that it was built otherwise than its artifact: {', '.join(wrong)}"
