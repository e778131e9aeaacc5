"""Which targets can be built from a file, and why the others cannot. Nothing is built, and nothing of it runs.

A backend that can say what it refuses is asked with the graph as it stands. A build rewrites the graph first, so that
what is refused here may be taken there: such a target is ``UNCHECKED``, and the reason says what stood in its way.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from edgekit.artifact.inspect.inspection import Inspection, Reach, Takes
from edgekit.core import config, contained, plugins, targets
from edgekit.core.files import temporary
from edgekit.errors import EdgekitError, MissingExtraError, UnsupportedOperatorsError, first_line
from edgekit.load.spec import parse
from edgekit.types import TEXT_GENERATION, Checks, OnnxModel, Permit, SourceSpec, Target

_MOST_CHECKED = 256 << 20
"""Bytes of a graph that backends are asked about: it is read for each of them."""
_MOST_NODES = 20_000
"""Of such a graph: a backend takes a second for 6,000, and there are several targets."""
_MOST_NAMED = 3

_NO_SOURCE: Mapping[str, str] = {
    "TFLite": "a .tflite is what targets make, no source: build from the model that it was made from",
    "OpenVINO IR": "OpenVINO's IR is what targets make, no source: build from the model that it was made from",
    "TensorRT engine": "an engine is compiled code: build from the model that it was made from",
}
"""By format: why no target takes it."""
_BY_TRANSFORMERS = "if transformers knows the architecture, which the build finds out"


def of(inspection: Inspection) -> tuple[Reach, ...]:
    """Every registered target, in the catalogue's order."""
    rows = targets.known().values()
    if inspection.format in _NO_SOURCE:
        return tuple(_no(t, _NO_SOURCE[inspection.format]) for t in rows)
    suffix = inspection.path.suffix.lower()
    if suffix == ".ekz":
        return tuple(
            _no(t, "packed: edgekit unpack it, and build from the model that it was made from") for t in rows
        )
    try:
        source = parse(str(inspection.path))
    except EdgekitError as error:
        return tuple(_no(t, error.message) for t in rows)
    if source.kind == "onnx":
        return _of_graph(source, inspection)
    return tuple(_of_source(t, source) for t in rows)


def _of_source(target: Target, source: SourceSpec) -> Reach:
    is_language = target.task == TEXT_GENERATION
    if source.kind == "gguf":
        reason = _BY_TRANSFORMERS if is_language else f"as one forward without a cache, {_BY_TRANSFORMERS}"
        return Reach(target=target.name, takes=Takes.UNCHECKED, reason=reason)
    if is_language:
        return _no(target, "it is for language models with their tokenizer: from hf:DIR or a .gguf file")
    return Reach(
        target=target.name,
        takes=Takes.UNCHECKED,
        reason="what its operators become is known once the build has exported them",
    )


def _of_graph(source: SourceSpec, inspection: Inspection) -> tuple[Reach, ...]:
    from edgekit.load import onnx_file

    rows = targets.known().values()
    try:
        model = onnx_file.load(source, Permit())
    except EdgekitError as error:
        return tuple(_no(t, error.message.replace(f"{source.path}: ", "")) for t in rows)
    with temporary("inspect") as folder:
        nodes = sum(inspection.operators.values())
        small = inspection.size <= _MOST_CHECKED and nodes <= _MOST_NODES
        fixed = _with_sizes(model, Path(folder)) if small else None
        return tuple(_of_onnx(t, model, fixed, inspection) for t in rows)


def _of_onnx(target: Target, model: OnnxModel, fixed: OnnxModel | None, inspection: Inspection) -> Reach:
    if target.task == TEXT_GENERATION:
        return _no(target, "it is for language models with their tokenizer: from hf:DIR or a .gguf file")
    if inspection.custom:
        return _no(target, f"no runtime has {', '.join(inspection.custom[:_MOST_NAMED])}")
    contained.beat()
    backend = plugins.backend(target.backend)
    if not isinstance(backend, Checks):
        return Reach(
            target=target.name,
            takes=Takes.UNCHECKED,
            reason="nothing speaks against it; the build asks its runtime",
        )
    if fixed is None:
        return Reach(
            target=target.name,
            takes=Takes.UNCHECKED,
            reason="it is too large to be looked through here: the build does",
        )
    try:
        backend.check(fixed if target.fixed_shapes else model, target, config.target_options(target, {}))
    except MissingExtraError as error:
        return Reach(target=target.name, takes=Takes.UNCHECKED, reason=f"{error.message}: {error.hint}")
    except UnsupportedOperatorsError as error:
        return Reach(target=target.name, takes=Takes.UNCHECKED, reason=_refused(error))
    except EdgekitError as error:
        return _no(target, error.message)
    # In a build ONNX Runtime has loaded the graph before: of one that it refuses a compiler raises anything.
    except Exception as error:  # noqa: BLE001
        reason = f"the graph as it stands cannot be looked through: {first_line(error)[:200]}"
        return Reach(target=target.name, takes=Takes.UNCHECKED, reason=reason)
    return Reach(target=target.name, takes=Takes.YES, reason=_condition(target, inspection))


def _condition(target: Target, inspection: Inspection) -> str:
    open_axes = any(not spec.is_static for spec in inspection.inputs)
    return "with its dynamic axes fixed to the example's sizes" if target.fixed_shapes and open_axes else ""


def _refused(error: UnsupportedOperatorsError) -> str:
    named = "; ".join(f"{n.op} ({n.reason})" for n in error.nodes[:_MOST_NAMED])
    more = f" and {len(error.nodes) - _MOST_NAMED} more" if len(error.nodes) > _MOST_NAMED else ""
    return f"as the graph stands it lacks {named}{more}; a build rewrites it first"


def _with_sizes(model: OnnxModel, folder: Path) -> OnnxModel:
    """The same graph with every dynamic axis of its inputs set to 1."""
    import onnx_ir as ir
    from onnx_ir.passes import common

    from edgekit.graph import io

    if all(spec.is_static for spec in model.inputs):
        return model
    loaded = io.load(model.path)
    io.name_axes(loaded)
    sizes = {d.value: 1 for v in loaded.graph.inputs for d in v.shape or () if isinstance(d, ir.SymbolicDim)}
    for value in (*loaded.graph.inputs, *loaded.graph.outputs):
        if value.shape is not None:
            dims = [d if isinstance(d, int) else sizes.get(d.value) for d in value.shape]
            value.shape = ir.Shape(dims)
    for node in ir.traversal.RecursiveGraphIterator(loaded.graph):
        for output in node.outputs:
            if not output.is_graph_output():
                output.shape = None
    inferred = common.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(loaded).model
    return io.save(inferred, folder / "model.onnx")


def _no(target: Target, reason: str) -> Reach:
    return Reach(target=target.name, takes=Takes.NO, reason=reason)
