"""ONNX → OpenVINO IR, with the same bytes every time.

The ONNX front end names constants that it makes up from a counter of the process, and copies the ONNX
file's metadata into the IR: the graph is stripped before, and made-up names are replaced after.
"""

from __future__ import annotations

import functools
import importlib
import math
import re
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import onnx_ir as ir
from onnx_ir.passes.common import NameFixPass

from edgekit.backends.base import beyond_float16, kept_float32
from edgekit.backends.openvino.rewrite import keep_order, rewrite
from edgekit.errors import (
    BackendError,
    MissingExtraError,
    OpenAxesError,
    UnsupportedNode,
    UnsupportedOperatorsError,
)
from edgekit.graph import io
from edgekit.graph.weights import integer_share
from edgekit.types import Lowered, OnnxModel, Option, Precision, Target

if TYPE_CHECKING:
    import openvino as ov

MINIMUM_RUNTIME = "2023.3"
"""IR version 11 with the operator sets that the ONNX front end writes for the models edgekit makes."""


@functools.cache
def runtime() -> ModuleType:
    """The module ``openvino``, imported without its telemetry.

    The package writes a client id into the home directory when ``openvino_telemetry`` can be imported;
    when it cannot, it uses its own stub, which does nothing.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        return importlib.import_module("openvino")
    except ImportError as e:
        raise MissingExtraError("OpenVINO", "openvino") from e


def lower(model: OnnxModel, target: Target, options: Mapping[str, Option], out: Path) -> Lowered:
    """Write ``model.xml`` and ``model.bin`` into ``out``.

    Raises :class:`UnsupportedOperatorsError` with every node that the ONNX front end cannot convert, and
    :class:`OpenAxesError` where it may be able to once the shapes are fixed.
    """
    source = io.load(model.path)
    modules = {node.name: io.module_path(node) for node in source.graph}
    rewrite(source)
    _prepare(source)
    wide: Collection[str] = ()
    half = target.precision in (Precision.FP16, Precision.BF16)
    with tempfile.TemporaryDirectory(dir=out, prefix=".onnx-") as folder:
        plain = io.save(source, Path(folder) / "model.onnx")
        converted = _convert(plain.path, target, modules)
        keep_order(converted, runtime())
        _name(converted, {n.name for n in source.graph if n.name} | set(source.graph.initializers))
        if wide := kept_float32(options) if half else ():
            # An operation that writes one of the model's outputs is named after that.
            named = {n.name: [n.name, *(o.name for o in n.outputs)] for n in source.graph if n.name}
            names = {str(name) for node in wide for name in named.get(node, ())}
            converted = _precise(converted, names, Path(folder))
        _save(converted, out / target.file, compress_to_fp16=half)
    settings = dict(target.runtime)
    if "compute" in options:
        settings["inference_precision"] = options["compute"]
    notes = ["compiled with inference precision hint " + str(settings.get("inference_precision", "f32"))]
    if half:
        notes.append("weights are stored as float16")
        notes += beyond_float16(wide)
    return Lowered(
        files=(target.file, Path(target.file).with_suffix(".bin").name),
        inputs=model.inputs,
        outputs=model.outputs,
        runtime=settings,
        minimum_runtime=MINIMUM_RUNTIME,
        notes=tuple(notes),
        integer_weights=integer_share(_constants(out / target.file)),
    )


def _constants(path: Path) -> Iterator[tuple[int, str]]:
    """The number of values and the type of every constant in an IR, in the bodies of loops and branches too."""
    for layer in ElementTree.parse(path).iter("layer"):  # noqa: S314 - edgekit has just written it
        data = layer.find("data")
        if layer.get("type") == "Const" and data is not None:
            sizes = [int(d) for d in data.get("shape", "").replace(" ", "").split(",") if d]
            yield math.prod(sizes), data.get("element_type", "")


def _prepare(model: ir.Model) -> None:
    """Drop metadata; every node gets a name, by which it is found again in the runtime's graph."""
    io.strip_metadata(model, keep=())
    NameFixPass()(model)


def _convert(path: Path, target: Target, modules: Mapping[str | None, str]) -> ov.Model:
    try:
        return runtime().Core().read_model(path)
    except RuntimeError as e:
        missing = _unconverted(path, modules) or _refused(io.load(path), modules)
        if missing:
            raise UnsupportedOperatorsError(target.name, missing) from e
        is_open = any(v.shape is not None and not v.shape.is_static() for v in io.load(path).graph.inputs)
        raise (OpenAxesError if is_open else BackendError)(
            f"OpenVINO cannot convert the model: {_reasons(str(e))}",
            hint="build another backend's target, or report the model to edgekit",
        ) from e


_FAILED = re.compile(r"While validating ONNX node '<Node\(([^)]*)\): ([^>]*)>'")


def _reasons(log: str) -> str:
    """What the front end has against which node, of its log; the last line of a log in another form."""
    blocks = re.split(r"\n-- .* with a message:\n", log.partition("\nSummary:")[0])[1:]
    found = []
    for block in blocks:
        lines = [line.strip() for line in block.splitlines() if line.strip()]
        if (node := _FAILED.search(block)) is not None and lines:
            found.append(f"{node[1]} at {node[2]}: {lines[-1]}")
    return "; ".join(found) or log.strip().splitlines()[-1]


def _unconverted(path: Path, modules: Mapping[str | None, str]) -> list[UnsupportedNode]:
    """Nodes that the front end leaves as they are when it is asked to convert what it can; none if it cannot."""
    runtime()
    front_end = importlib.import_module("openvino.frontend").FrontEndManager().load_by_framework("onnx")
    try:
        partial = front_end.convert_partially(front_end.load(str(path)))
    except RuntimeError:  # the caller reports the first failure
        return []
    unconverted = {
        (op.get_friendly_name(), *(name for port in op.outputs() for name in port.get_names()))
        for op in partial.get_ordered_ops()
        if op.get_type_name() == "ONNXFrameworkNode"
    }
    names = {name for group in unconverted for name in group}
    return [
        UnsupportedNode(
            op=f"{node.domain}.{node.op_type}" if node.domain else node.op_type,
            node=node.name or "?",
            reason="OpenVINO's ONNX front end has no conversion for it",
            module_path=modules.get(node.name, ""),
        )
        for node in io.load(path).graph
        if node.name in names or any(v.name in names for v in node.outputs)
    ]


def _refused(model: ir.Model, modules: Mapping[str | None, str]) -> list[UnsupportedNode]:
    """Nodes that the front end does not read even where they are alone in a model."""
    found = []
    for node in model.graph:
        alone = _alone(node, model)
        if alone is None:
            continue
        try:
            runtime().Core().read_model(ir.to_proto(alone).SerializeToString())
        except RuntimeError:
            found.append(
                UnsupportedNode(
                    op=node.op_type,
                    node=node.name or "?",
                    reason=f"OpenVINO {runtime().__version__} cannot read it with these attributes and shapes",
                    module_path=modules.get(node.name, ""),
                )
            )
    return found


def _alone(node: ir.Node, model: ir.Model) -> ir.Model | None:
    """A model of one node with its constants; ``None`` where a type or rank is not known, or graphs are inside."""
    inside = any(
        a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()
    )
    values = [v for v in node.inputs if v is not None]
    if inside or any(v.dtype is None or v.shape is None for v in values if v.const_value is None):
        return None
    copies = {
        v: ir.Value(name=v.name, type=v.type, shape=v.shape, const_value=v.const_value)
        for v in dict.fromkeys(values)
    }
    single = ir.Node(
        node.domain,
        node.op_type,
        [None if v is None else copies[v] for v in node.inputs],
        attributes=list(node.attributes.values()),
        num_outputs=len(node.outputs),
    )
    for i, output in enumerate(single.outputs):
        output.name = f"output_{i}"
        output.type, output.shape = node.outputs[i].type, node.outputs[i].shape
    graph = ir.Graph(
        [v for v in copies.values() if v.const_value is None],
        list(single.outputs),
        nodes=[single],
        initializers=[v for v in copies.values() if v.const_value is not None],
        opset_imports=model.opset_imports,
        name="alone",
    )
    return ir.Model(graph, ir_version=model.ir_version)


def _name(model: ov.Model, known: set[str]) -> None:
    """Name every operation that the front end made up: after the ONNX node it leads to, its type and position.

    A Gemm becomes a MatMul without a name and an Add that has the Gemm's: the MatMul is found again as
    ``<gemm>/MatMul#<position>``.
    """
    known = known | {name for port in (*model.inputs, *model.outputs) for name in port.get_names()}
    ordered = model.get_ordered_ops()
    belongs: dict[str, str] = {}
    for op in reversed(ordered):
        name = op.get_friendly_name()
        if name in known:
            belongs[name] = name
        else:
            users = (
                i.get_node().get_friendly_name() for port in op.outputs() for i in port.get_target_inputs()
            )
            belongs[name] = min((belongs[u] for u in users if u in belongs), default="")
    for position, op in enumerate(ordered):
        name = op.get_friendly_name()
        if name not in known:
            op.set_friendly_name(f"{belongs[name]}/{op.get_type_name()}#{position}")


def _precise(model: ov.Model, names: Collection[str], folder: Path) -> ov.Model:
    """The model with the operations of the ONNX nodes ``names``, and their constants, marked to stay in float32.

    The mark is OpenVINO's own (``DisableFP16Compression``): neither are such constants stored as float16 nor are such
    operations computed in it. Python cannot set it, but the IR that is read back can have it.
    """
    path = folder / "precise.xml"
    runtime().save_model(model, path, compress_to_fp16=False)
    tree = ElementTree.parse(path)  # noqa: S314 - OpenVINO has just written it
    for layers, edges in zip(tree.iter("layers"), tree.iter("edges"), strict=True):
        by_id = {layer.get("id"): layer for layer in layers.findall("layer")}
        marked = {i for i, layer in by_id.items() if _belongs(layer.get("name", "")) & set(names)}
        for edge in edges.findall("edge"):
            source = by_id.get(edge.get("from-layer"))
            if edge.get("to-layer") in marked and source is not None and source.get("type") == "Const":
                marked.add(source.get("id"))
        for layer in (by_id[i] for i in marked):
            info = layer.find("rt_info")
            info = ElementTree.SubElement(layer, "rt_info") if info is None else info
            ElementTree.SubElement(info, "attribute", name="precise", version="0")
    tree.write(path)
    return runtime().Core().read_model(path)


def _belongs(name: str) -> set[str]:
    """The ONNX nodes that an operation may be named after: its own, or that which :func:`_name` put in front."""
    return {name, name.rpartition("/")[0]}


def _save(model: ov.Model, path: Path, *, compress_to_fp16: bool) -> None:
    """Weights first, then the description: whoever sees ``model.xml`` sees a complete model."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        part = Path(folder) / path.name
        runtime().save_model(model, part, compress_to_fp16=compress_to_fp16)
        for file in (part.with_suffix(".bin"), part):
            file.replace(path.with_name(file.name))
