"""The files of both: the portable ONNX, and the recipe of an engine (TensorRT) or the engine itself (TensorRT-RTX)."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path

from edgekit.backends.base import kept_float32
from edgekit.backends.nvidia import asked, portable, refusals
from edgekit.backends.nvidia.call import Job
from edgekit.backends.nvidia.engine import RECORD, EngineKey, write_record
from edgekit.backends.nvidia.executed import Requested, requested
from edgekit.backends.nvidia.profiles import Profiles, compute_capabilities, profiles
from edgekit.backends.nvidia.recipe import MINIMUM, write_recipe
from edgekit.backends.nvidia.request import NEEDED_CAPABILITY, options_of
from edgekit.errors import UnsupportedNode, UnsupportedOperatorsError
from edgekit.graph import io
from edgekit.types import CHECKED, Json, Lowered, OnnxModel, Option, Precision, Target

_PORTABLE = "model.onnx"


def lower_to_recipe(model: OnnxModel, target: Target, options: Mapping[str, Option], out: Path) -> Lowered:
    """See :func:`edgekit.backends.nvidia.tensorrt.lower`."""
    onnx = portable.write_portable(model, target, out / target.file, options)
    shapes = profiles(onnx.model.inputs, str(options.get("axes", "")))
    parsed = _parsed(onnx, target, shapes)
    wanted = requested(onnx.model, target)
    recipe = write_recipe(target, shapes, options_of(options), kept_float32(options), out)
    return Lowered(
        files=(target.file, *(f.name for f in io.external_files(onnx.model.path)), *recipe),
        inputs=onnx.model.inputs,
        outputs=onnx.model.outputs,
        runtime=_runtime(target, options),
        minimum_runtime=MINIMUM,
        notes=(
            *onnx.notes,
            *_asked_note(wanted, target),
            parsed,
            "the engine is built on the device that will run it",
        ),
        details={"profiles": _listed(shapes), CHECKED: parsed, **wanted.details},
    )


def lower_to_engine(model: OnnxModel, target: Target, options: Mapping[str, Option], out: Path) -> Lowered:
    """See :func:`edgekit.backends.nvidia.tensorrt_rtx.lower`."""
    capabilities = compute_capabilities(options.get("compute_capabilities", ""))
    asked.refuse_lacking(capabilities, target)
    onnx = portable.write_portable(model, target, out / _PORTABLE, options)
    part = out / f".{target.file}.part"
    job = Job(
        module="tensorrt_rtx",
        onnx=onnx.model.path,
        engine=part,
        compute_capabilities=capabilities,
        profiles=profiles(onnx.model.inputs, str(options.get("axes", ""))),
    )
    try:
        taken = refusals.run_worker(job, target, onnx.modules)
        part.replace(out / target.file)
        key = EngineKey(
            graph_sha256=onnx.model.sha256,
            runtime="tensorrt_rtx",
            version=taken.version,
            compute_capabilities=tuple(f"{name[2:-1]}.{name[-1]}" for name in capabilities),
            flags={"profiles": _listed(job.profiles), "tf32": False},
        )
        write_record(out / target.file, key)
    finally:
        part.unlink(missing_ok=True)
    wanted = requested(onnx.model, target)
    return Lowered(
        files=(target.file, RECORD, _PORTABLE, *(f.name for f in io.external_files(onnx.model.path))),
        inputs=onnx.model.inputs,
        outputs=onnx.model.outputs,
        runtime=_runtime(target, options),
        minimum_runtime=taken.version,
        notes=(*onnx.notes, *_asked_note(wanted, target), *_notes(capabilities, job, target)),
        details={
            "layers": taken.layers,
            "profiles": _listed(job.profiles),
            CHECKED: f"built by tensorrt_rtx {taken.version}: {taken.layers} layers",
            **wanted.details,
        },
    )


def _asked_note(wanted: Requested, target: Target) -> tuple[str, ...]:
    if wanted.share is None:
        return ()
    return (f"the graph asks for {target.precision} in {wanted.share:.1%} of the MACs",)


def _runtime(target: Target, options: Mapping[str, Option]) -> dict[str, Option]:
    """What the runner is told."""
    graph: dict[str, Option] = {"cuda_graph": True} if options.get("cuda_graph") else {}
    return {**target.runtime, **graph}


def _parsed(onnx: portable.Portable, target: Target, shapes: Profiles) -> str:
    """Parse with what is installed; says by what."""
    for module in ("tensorrt", "tensorrt_rtx"):
        if importlib.util.find_spec(module) is not None:
            job = Job(module=module, onnx=onnx.model.path, profiles=shapes)
            taken = refusals.run_worker(job, target, onnx.modules)
            rest = (
                f" but for {_listed_nodes(taken.unchecked)}, which it has no plugin for: the device decides"
            )
            return f"parsed by {module} {taken.version}: {taken.layers} layers" + (
                rest if taken.unchecked else ""
            )
    problems = refusals.static_problems(onnx.model.path, onnx.modules)
    if problems:
        raise UnsupportedOperatorsError(target.name, problems)
    return "checked by rules only: neither tensorrt nor tensorrt_rtx is installed to parse it"


def _listed_nodes(nodes: Sequence[UnsupportedNode]) -> str:
    """``RoiAlign at head.pool (module head) and 3 more``."""
    first = [f"{n.op} at {n.node}" + (f" ({n.module_path})" if n.module_path else "") for n in nodes[:3]]
    return ", ".join(first) + (f" and {len(nodes) - 3} more" if len(nodes) > 3 else "")


def _notes(capabilities: tuple[str, ...], job: Job, target: Target) -> tuple[str, ...]:
    major, minor = NEEDED_CAPABILITY.get(target.precision, (8, 0))
    where = ", ".join(capabilities) or f"{major}.{minor} and later (the builder's default)"
    notes = [f"compute capabilities: {where}", "strongly typed network, TF32 off"]
    notes += [f"{name}: {' / '.join(map(str, shapes))}" for name, shapes in job.profiles.items()]
    if target.precision is Precision.INT8:
        notes.append(
            "NVIDIA's support matrix lists INT8 for weight-only products: measure on the GPU before use"
        )
    return tuple(notes)


def _listed(profiles: Profiles) -> Json:
    return {name: [list(shape) for shape in shapes] for name, shapes in profiles.items()}
