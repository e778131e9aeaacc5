"""ONNX files on disk: read and written safely, described, run.

Models are untrusted: external data may not leave the model's folder, whatever the file says.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx_ir.passes import common

from edgekit.core.literal import literal
from edgekit.errors import SourceError, UntrustedSourceError
from edgekit.graph.stated import check_tensors, stated_bytes
from edgekit.types import OnnxModel, TensorSpec, sha256_file

if TYPE_CHECKING:
    import onnxruntime

    from edgekit.types import Array

SCOPES = "pkg.torch.onnx.name_scopes"
"""Node metadata: the module path as torch's exporter writes it, a list literal whose last item is the node."""

LAYOUT = "edgekit.layout"
"""Metadata of a graph input: its layout, where the source states one (``"NHWC"``)."""

# It warns of broken graphs as it reads them, names quoted as they are; what is broken is an error here.
logging.getLogger("onnx_ir").setLevel(logging.ERROR)

_COMMON_IR_VERSION = 10
"""Model-local functions and 4-bit integers are in it, and every runtime of the last two years reads it."""

_INLINE_LIMIT = 1_500_000_000  # protobuf ends at 2 GiB; leave room for the graph itself and for passes


def load(path: Path) -> ir.Model:
    """Read a model; weights in external data stay on disk until used.

    Raises :class:`SourceError` for what is not ONNX and :class:`UntrustedSourceError` for external data
    outside the model's folder.
    """
    proto = read_proto(path)
    try:
        _densify(proto.graph)
        model = ir.from_proto(proto)
        ir.external_data.set_base_dir(model.graph, path.resolve().parent)
    except (ir.serde.SerdeError, ValueError, LookupError, TypeError) as error:
        raise SourceError(f"{path} is not a valid ONNX model: {error}", hint="export it again") from error
    return model


def read_proto(path: Path) -> onnx.ModelProto:
    """Parse a model's protobuf without its external data, whose locations are checked."""
    if not path.is_file():  # a pipe would be waited for
        raise SourceError(f"there is no file {path}", hint="check the path")
    try:
        proto = onnx.load(str(path), load_external_data=False)
    except (DecodeError, ValueError, OSError, RecursionError) as error:
        raise SourceError(f"{path} is not an ONNX file: {error}", hint="export it again") from error
    if not proto.HasField("graph"):
        raise SourceError(f"{path} is not an ONNX file: it holds no graph", hint="export it again")
    check_tensors(_tensors(proto), str(path))
    check_external_data(proto, path.resolve().parent)
    return proto


def _densify(graph: onnx.GraphProto) -> None:
    """Sparse initializers as plain ones, in place: few readers know the others, and some drop them in silence."""
    for sparse in graph.sparse_initializer:
        values, indices = (onnx.numpy_helper.to_array(t) for t in (sparse.values, sparse.indices))
        if min(sparse.dims, default=0) < 0 or math.prod(sparse.dims) * values.itemsize > _INLINE_LIMIT:
            raise ValueError(f"the sparse tensor {sparse.values.name!r} has the shape {list(sparse.dims)}")
        whole = np.zeros(math.prod(sparse.dims), values.dtype)
        if indices.ndim == 2:  # one row of coordinates a value
            indices = np.ravel_multi_index(tuple(indices.T), tuple(sparse.dims))
        whole[indices] = values
        graph.initializer.append(onnx.numpy_helper.from_array(whole.reshape(sparse.dims), sparse.values.name))
    del graph.sparse_initializer[:]


def check_external_data(proto: onnx.ModelProto, folder: Path) -> None:
    """Refuse external data that is absolute, leaves ``folder`` (by symlink too), or is not all there."""
    for tensor in _tensors(proto):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        entries = {e.key: e.value for e in tensor.external_data}
        path = _inside(entries.get("location", ""), folder, tensor.name)
        try:
            offset, length = int(entries.get("offset", 0)), int(entries.get("length", -1))
        except ValueError as error:
            raise SourceError(
                f"the external data of {tensor.name!r} is malformed", hint="export it again"
            ) from error
        if offset < 0 or offset + max(length, stated_bytes(tensor)) > path.stat().st_size:
            raise SourceError(
                f"the external data of {tensor.name!r} is cut short: {path.name} has {path.stat().st_size} bytes",
                hint="copy the model together with all of its data files",
            )


def _inside(location: str, folder: Path, name: str) -> Path:
    relative = Path(location)
    if (
        not location
        or relative.is_absolute()
        or ".." in relative.parts
        or "\\" in location
        or "\0" in location
    ):
        raise UntrustedSourceError(
            f"the external data of {name!r} is at {location!r}, outside the model's folder",
            hint="save the model again with its data beside it and relative locations",
        )
    path = folder / relative
    try:
        inside, present = path.resolve().is_relative_to(folder.resolve()), path.is_file()
    except (OSError, RuntimeError):  # a name that no file can have, a link to itself
        inside, present = True, False
    if not inside:
        raise UntrustedSourceError(
            f"the external data of {name!r}, {location!r}, is a link that leaves the model's folder",
            hint="replace the link by the file itself",
        )
    if not present:
        raise SourceError(
            f"the external data of {name!r} is missing: {str(path)[:200]}",
            hint="copy the model together with its data files",
        )
    return path


def constants(path: Path) -> Iterator[tuple[int, str]]:
    """The number of values and the type (numpy's name) of every constant in a model, in nested graphs too."""
    for tensor in _tensors(read_proto(path)):
        name = onnx.TensorProto.DataType.Name(tensor.data_type).lower()
        yield math.prod(tensor.dims), {"float": "float32", "double": "float64"}.get(name, name)


def external_files(path: Path) -> tuple[Path, ...]:
    """The data files of a model, in the order of their names."""
    folder = path.resolve().parent
    names = {
        e.value
        for t in _tensors(read_proto(path))
        if t.data_location == onnx.TensorProto.EXTERNAL
        for e in t.external_data
        if e.key == "location"
    }
    return tuple(folder / n for n in sorted(names))


def _tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    graphs = [proto.graph]
    nodes = [n for f in proto.functions for n in f.node]
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield from (sparse.values, sparse.indices)
            nodes.extend(graph.node)
            continue
        for attribute in nodes.pop().attribute:
            yield from (attribute.t,) if attribute.HasField("t") else ()
            yield from attribute.tensors
            own = (attribute.sparse_tensor,) if attribute.HasField("sparse_tensor") else ()
            for sparse in (*own, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
            graphs.extend(attribute.graphs)
            if attribute.HasField("g"):
                graphs.append(attribute.g)


def save(model: ir.Model, path: Path) -> OnnxModel:
    """Write a model under a temporary name, then rename; the same model gives the same bytes.

    Weights go into ``<name>.data`` beside it only where protobuf's 2 GiB limit needs it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = sum(
        v.const_value.nbytes for g in model.graphs() for v in g.initializers.values() if v.const_value
    )
    external = weights > _INLINE_LIMIT
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        temporary = Path(folder) / path.name
        try:
            if not external:
                ir.external_data.load_to_model(model)
            ir.save(model, temporary, external_data=f"{path.name}.data" if external else None)
        except ir.serde.SerdeError as error:  # names that are no text, sizes that no integer holds
            raise SourceError(f"the model cannot be written: {error}", hint="export it again") from error
        for file in sorted(Path(folder).iterdir(), key=lambda f: f == temporary):
            file.replace(path.parent / file.name)
    return _described(model, path, digest(path) if external else sha256_file(path))


def describe(path: Path) -> OnnxModel:
    """What a model file is: content hash (external data included), opset, inputs and outputs."""
    try:
        return _described(load(path), path, digest(path))
    except SourceError as error:
        raise error.about(str(path))  # noqa: B904 - the same error


def _described(model: ir.Model, path: Path, sha256: str) -> OnnxModel:
    inputs = [v for v in model.graph.inputs if v.name not in model.graph.initializers]
    return OnnxModel(
        path=path,
        sha256=sha256,
        opset=model.opset_imports.get("", model.opset_imports.get("ai.onnx", 0)),
        inputs=tuple(spec(v) for v in inputs),
        outputs=tuple(spec(v) for v in model.graph.outputs),
    )


def digest(path: Path) -> str:
    """sha256 of a model file, over its external data too where it has any."""
    files = external_files(path)
    own = sha256_file(path)
    if not files:
        return own
    return hashlib.sha256(
        "\n".join([own, *(f"{f.name} {sha256_file(f)}" for f in files)]).encode()
    ).hexdigest()


def spec(value: ir.Value) -> TensorSpec:
    """Name, numpy dtype and shape of a graph input or output; unnamed dynamic axes get a name."""
    if not isinstance(value.type, ir.TensorType) or value.shape is None:
        raise SourceError(
            f"{value.name!r} has no tensor type and shape in the model",
            hint="edgekit takes models whose inputs and outputs are tensors of known rank",
        )
    shape = tuple(_dim(d, f"{value.name}_axis{i}") for i, d in enumerate(value.shape))
    layout = value.metadata_props.get(LAYOUT, "")
    try:
        return TensorSpec(
            name=value.name or "", dtype=value.type.dtype.numpy().name, shape=shape, layout=layout
        )
    except (TypeError, ValueError) as error:  # a type that is none, or no name
        raise SourceError(f"{value.name!r} is no tensor: {error}", hint="export it again") from error


NO_NAMES = frozenset({"?", "-1", "*", "None"})
"""What exporters call every axis that they have no name for: two axes that are called so need not have one size."""


def _dim(size: int | ir.SymbolicDim, nameless: str) -> int | str:
    """A size, or the name of a dynamic axis; PaddlePaddle's exporters write -1 for one, or a question mark."""
    if isinstance(size, int):
        return size if size >= 0 else nameless
    return size.value if size.value and size.value not in NO_NAMES else nameless


def lower_ir_version(model: ir.Model) -> None:
    """Say of which version the file at least has to be, in place: exporters write the newest, which runtimes refuse
    whatever is in it."""
    versions = [onnx.helper.make_opsetid(domain, version) for domain, version in model.opset_imports.items()]
    least = onnx.helper.find_min_ir_version_for(versions, ignore_unknown=True)
    model.ir_version = min(model.ir_version or least, max(least, _COMMON_IR_VERSION))


def name_axes(model: ir.Model) -> None:
    """Give dynamic axes of inputs and outputs a name where they have none, in place; a negative size is none, and so
    is a question mark.

    Such sizes inside are forgotten: whoever needs them infers the shapes anew.
    """
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.shape is not None:
            dims = [_dim(d, f"{value.name}_axis{i}") for i, d in enumerate(value.shape)]
            value.shape = ir.Shape(dims)
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        for value in node.outputs:
            shape = value.shape
            if shape is not None and any(d < 0 if isinstance(d, int) else d.value in NO_NAMES for d in shape):
                value.shape = None


def correct_ranks(model: ir.Model) -> None:
    """Declare outputs with the rank that the graph gives them, in place, where the file says another: runtimes pass
    over that, and whoever reads the manifest would not."""
    bare = model.clone()
    for value in bare.graph.outputs:
        value.shape = None
    inferred = common.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(bare).model
    for value, found in zip(model.graph.outputs, inferred.graph.outputs, strict=True):
        if value.shape is not None and found.shape is not None and len(value.shape) != len(found.shape):
            dims = [d if isinstance(d, int) else f"{value.name}_axis{i}" for i, d in enumerate(found.shape)]
            value.shape = ir.Shape(dims)


def module_path(node: ir.Node | onnx.NodeProto) -> str:
    """The PyTorch module that a node came from (``"layer1.0.conv1"``); empty where it is not known."""
    properties = node.metadata_props
    text = (
        properties.get(SCOPES, "")
        if isinstance(properties, Mapping)
        else next((p.value for p in properties if p.key == SCOPES), "")
    )
    return _innermost(text) if text else ""


@functools.lru_cache(maxsize=4096)  # a model's nodes are asked once for every candidate of their quantization
def _innermost(text: str) -> str:
    try:
        scopes = literal(text)
    except (
        ValueError,
        SyntaxError,
        MemoryError,
        RecursionError,
    ):  # a text from anybody, nested as deep as they like
        return ""
    named = [s for s in scopes[:-1] if isinstance(s, str) and s] if isinstance(scopes, list) else []
    return named[-1] if named and named[-1].isprintable() else ""


def strip_metadata(model: ir.Model, *, keep: Iterable[str] = (SCOPES,)) -> None:
    """Drop exporters' notes (stack traces, source paths) from a model, in place, but for the keys kept."""
    keys = set(keep)
    model.metadata_props.clear()
    model.doc_string = None
    for graph in model.graphs():
        graph.doc_string = None
        graph.metadata_props.clear()
        for value in (*graph.inputs, *graph.initializers.values()):
            _strip(value, {LAYOUT})
        for node in graph:
            _strip(node, keys)
            for value in node.outputs:
                _strip(value, set())


def _strip(item: ir.Node | ir.Value, keys: set[str]) -> None:
    item.doc_string = None
    for key in set(item.metadata_props) - keys:
        del item.metadata_props[key]


def session(
    path: Path,
    *,
    changed: bytes | None = None,
    optimized: bool = True,
    fused: bool = True,
    threads: int = 0,
) -> onnxruntime.InferenceSession:
    """An ONNX Runtime session on the CPU, without telemetry.

    Args:
        path: the model's file.
        changed: what to run in its place, a serialized model that reads the file's external data.
        optimized: whether the runtime may rewrite the graph.
        fused: whether it may compute Q/DQ on integers, whose sums saturate on x86 without VNNI.
        threads: of one inference; 0 for the runtime's own choice, 1 where inferences run side by side.

    Raises :class:`SourceError` for a model that the runtime does not load.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # failures come back as exceptions
    options.intra_op_num_threads = threads
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if not fused:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    if changed is not None:
        folder = str(path.resolve().parent)
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
    model = str(path) if changed is None else changed
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except runtime_errors() as error:
        raise SourceError(
            f"ONNX Runtime does not load {path.name}: {error}", hint="check the model with onnx.checker"
        ) from error


@functools.cache
def runtime_errors() -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises: its own classes have no base of their own."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    own = (kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception))
    return (*own, RuntimeError, ValueError, TypeError)


def run(session: onnxruntime.InferenceSession, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """One inference; inputs that the graph does not have are left out. Raises :func:`runtime_errors`."""
    accepted = {i.name for i in session.get_inputs()}
    names = [o.name for o in session.get_outputs()]
    results = session.run(names, {k: v for k, v in inputs.items() if k in accepted})
    return dict(zip(names, results, strict=True))
