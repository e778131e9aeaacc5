"""OpenVINO's IR, ``.xml`` with ``.bin`` beside it: layers, constants and what quantizes them, read without OpenVINO.

The XML is of anybody: a document type, by which it could expand or name other files, is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias
from xml.etree import ElementTree

from edgekit.artifact.inspect.inspection import (
    Inspection,
    Scales,
    StoredWeight,
    Tally,
    most_common,
    open_axes,
    times_read,
    uncounted,
)
from edgekit.core.foreign import translated
from edgekit.errors import SourceError
from edgekit.types import TensorSpec

_MOST_TEXT = 1 << 30
_MOST_DEPTH = 16
_MOST_SIZE = 1 << 40
_TYPES = {
    "f32": "float32", "f64": "float64", "f16": "float16", "bf16": "bfloat16", "i8": "int8", "u8": "uint8",
    "i16": "int16", "u16": "uint16", "i32": "int32", "u32": "uint32", "i64": "int64", "u64": "uint64", "i4": "int4",
    "u4": "uint4", "i2": "int2", "u2": "uint2", "u1": "uint1", "boolean": "bool", "nf4": "nf4",
    "f4e2m1": "float4_e2m1fn",
    "f8e4m3": "float8_e4m3fn", "f8e5m2": "float8_e5m2", "f8e8m0": "float8_e8m0fnu", "string": "string",
}  # fmt: skip
_PRECISIONS = {"FP32": "float32", "FP64": "float64", "FP16": "float16", "BF16": "bfloat16", "BOOL": "bool"}
_FLOATS = frozenset({"float32", "float64", "float16", "bfloat16"})
_WIDE = frozenset({"int32", "uint32", "int64", "uint64", "bool", "uint1", "string"})
"""Types of shapes, indices and masks."""
_CARRIERS = frozenset({"Convert", "Reshape", "Transpose", "Squeeze", "Unsqueeze"})
_OPTIONS: Mapping[str, frozenset[int]] = {
    "ShapeOf": frozenset({0}),
    "FakeQuantize": frozenset({1, 2, 3, 4}),
    "FakeConvert": frozenset({1, 2}),
    "Interpolate": frozenset({1, 2, 3}),
    "Pad": frozenset({1, 2, 3}),
    "OneHot": frozenset({1, 2, 3}),
    "Range": frozenset({0, 1, 2}),
    "NonMaxSuppression": frozenset({2, 3, 4, 5}),
    "BatchNormInference": frozenset({3, 4}),  # mean and variance
}
_NOT_COUNTED = frozenset({"Const", "Parameter", "Result"})


def read(path: Path) -> Inspection:
    """Raises :class:`SourceError` for a damaged file, and where the weights are missing or cut short."""
    with _readable(path):
        root, scopes = _opened(path)
        size = _weight_bytes(path, path.with_suffix(".bin"), scopes)
        return _inspection(path, path.stat().st_size + size, root, scopes)


def scopes(path: Path) -> list[Scope]:
    """The model's graph and those within it. Raises :class:`SourceError` for a damaged file."""
    with _readable(path):
        return _opened(path)[1]


def _readable(path: Path) -> AbstractContextManager[None]:
    return translated(
        f"{path} is not an OpenVINO model", hint="build or copy it again, the .xml with its .bin"
    )


def _opened(path: Path) -> tuple[ElementTree.Element, list[Scope]]:
    if path.stat().st_size > _MOST_TEXT:
        raise SourceError(
            f"{path} is larger than any model's text", hint="name the .xml of an OpenVINO model"
        )
    root = _parsed(path.read_bytes())
    return root, list(_scopes(root, 0))


def _parsed(data: bytes) -> ElementTree.Element:
    text = data.decode("utf-8")
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise ValueError("it has a document type, which no model needs")
    root = ElementTree.fromstring(text)  # noqa: S314 - no document type: nothing expands, nothing else is read
    if root.tag != "net":
        raise ValueError(f"its first element is <{root.tag[:40]}>, not <net>")
    return root


def _weight_bytes(path: Path, weights: Path, scopes: Sequence[Scope]) -> int:
    """Bytes of the ``.bin``; raises where constants lie outside it."""
    needed = max((layer.end for scope in scopes for layer in scope.layers.values()), default=0)
    if not weights.is_file():
        if not needed:
            return 0
        raise SourceError(
            f"{path} has weights, and there is no {weights.name} beside it", hint="copy both files"
        )
    if not weights.resolve().is_relative_to(path.parent.resolve()):
        raise SourceError(
            f"{weights} is a link that leaves the folder", hint="replace the link by the file itself"
        )
    size = weights.stat().st_size
    if needed > size:
        raise SourceError(
            f"{weights} is cut short: it has {size:,} bytes, and the model reads {needed:,}",
            hint="copy it again",
        )
    return size


@dataclass(kw_only=True)
class Layer:
    """One operation; shapes are those of its ports, ``None`` where a rank is not known and -1 for a dynamic axis.
    ``source_outputs`` says which output of each of ``sources`` it reads."""

    number: str
    name: str
    op: str
    data: Mapping[str, str]
    inputs: list[_Shape]
    outputs: list[_Shape]
    precisions: list[str]
    names: list[str]
    in_ports: list[str]
    out_ports: list[str] = field(default_factory=list)
    source_outputs: list[int] = field(default_factory=list)
    sources: list[Layer | None] = field(default_factory=list)
    readers: list[tuple[Layer, int]] = field(default_factory=list)

    @property
    def end(self) -> int:
        """Where a constant ends in the ``.bin``."""
        return int(self.data.get("offset", 0)) + self.size if self.op == "Const" else 0

    @property
    def size(self) -> int:
        """Bytes of a constant."""
        size = int(self.data.get("size", 0))
        if size < 0 or int(self.data.get("offset", 0)) < 0:
            raise ValueError(f"the constant {self.name[:80]!r} has a negative size")
        return size

    @property
    def dtype(self) -> str:
        """The type in which a constant is stored."""
        kind = self.data.get("element_type", "")
        return _TYPES.get(kind, kind)


_Shape: TypeAlias = tuple[int, ...]


@dataclass(kw_only=True)
class Scope:
    """One graph: the model's, or the body of a loop or a branch. ``layers`` by their number."""

    layers: dict[str, Layer]


def _scopes(element: ElementTree.Element, depth: int) -> Iterator[Scope]:
    """The graph of a ``<net>`` or ``<body>``, and those within its layers."""
    if depth > _MOST_DEPTH:
        raise ValueError("its bodies are nested deeper than any model's")
    layers = element.find("layers")
    if layers is None:
        raise ValueError("it has no layers")
    found = {}
    for item in layers.iterfind("layer"):
        layer = _layer(item)
        found[layer.number] = layer
    _connect(found, element.find("edges"))
    yield Scope(layers=found)
    for item in layers.iterfind("layer"):
        for tag in ("body", "then_body", "else_body"):
            for body in item.iterfind(tag):
                yield from _scopes(body, depth + 1)


def _layer(item: ElementTree.Element) -> Layer:
    data, ins, outs = item.find("data"), item.find("input"), item.find("output")
    in_ports = [] if ins is None else ins.findall("port")
    out_ports = [] if outs is None else outs.findall("port")
    return Layer(
        number=item.attrib["id"],
        name=item.attrib.get("name", ""),
        op=item.attrib["type"],
        data={} if data is None else data.attrib,
        inputs=[_dims(port) for port in in_ports],
        outputs=[_dims(port) for port in out_ports],
        precisions=[port.attrib.get("precision", "") for port in out_ports],
        names=[port.attrib.get("names", "") for port in out_ports],
        in_ports=[port.attrib.get("id", "") for port in in_ports],
        out_ports=[port.attrib.get("id", "") for port in out_ports],
    )


def _dims(port: ElementTree.Element) -> _Shape:
    return tuple(_size(dim.text or "") for dim in port.iterfind("dim"))


def _size(text: str) -> int:
    """A size; -1 for a dynamic axis (``?``, ``-1``, ``1..8``)."""
    size = int(text) if text.strip().lstrip("-").isdecimal() else -1
    if size > _MOST_SIZE:
        raise ValueError(f"an axis has the size {size}")
    return max(-1, size)


def _connect(layers: Mapping[str, Layer], edges: ElementTree.Element | None) -> None:
    for layer in layers.values():
        layer.sources = [None] * len(layer.in_ports)
        layer.source_outputs = [0] * len(layer.in_ports)
    for edge in () if edges is None else edges.iterfind("edge"):
        source, target = layers[edge.attrib["from-layer"]], layers[edge.attrib["to-layer"]]
        slot = target.in_ports.index(edge.attrib["to-port"])
        target.sources[slot] = source
        if (port := edge.attrib.get("from-port", "")) in source.out_ports:
            target.source_outputs[slot] = source.out_ports.index(port)
        source.readers.append((target, slot))


def _inspection(path: Path, size: int, root: ElementTree.Element, scopes: Sequence[Scope]) -> Inspection:
    main = list(scopes[0].layers.values())
    everything = [layer for scope in scopes for layer in scope.layers.values()]
    tally = Tally()
    seen: set[tuple[str, str]] = set()
    for layer in everything:
        place = (layer.data.get("offset", ""), layer.data.get("size", ""))
        if layer.op == "Const" and place not in seen:  # constants of one content lie in one place
            seen.add(place)
            tally.weights[layer.dtype] += layer.size
            weight = _weight(layer)
            if weight is not None:
                tally.add(weight)
    counted = [count for layer in everything for count in multiplied(layer)]
    inputs = tuple(_input(layer) for layer in main if layer.op == "Parameter")
    return Inspection(
        path=path,
        format="OpenVINO IR",
        size=size,
        inputs=inputs,
        outputs=tuple(_output(layer) for layer in main if layer.op == "Result"),
        operators=most_common(layer.op for layer in everything if layer.op not in _NOT_COUNTED),
        weights=dict(tally.weights.most_common()),
        macs=sum(count or 0 for count in counted),
        facts={"ir_version": root.attrib.get("version", ""), "name": root.attrib.get("name", "")},
        parameters=tally.parameters,
        layers=tuple(tally.layers),
        notes=(*open_axes(inputs), *uncounted(counted)),
    )


def _input(layer: Layer) -> TensorSpec:
    sizes = [_size(d) for d in layer.data.get("shape", "").split(",") if d.strip()]
    return _spec(own_name(layer) or layer.name, layer.dtype, sizes)


def _output(layer: Layer) -> TensorSpec:
    source = layer.sources[0] if layer.sources else None
    name = (own_name(source) or source.name) if source is not None else layer.name
    precision = source.precisions[0] if source is not None and source.precisions else ""
    return _spec(name, numpy_name(precision), layer.inputs[0] if layer.inputs else ())


def own_name(layer: Layer) -> str:
    """The first name of a layer's first output; empty where it has none."""
    return layer.names[0].split(",")[0] if layer.names else ""


def _spec(name: str, dtype: str, sizes: Sequence[int]) -> TensorSpec:
    shape = tuple(d if d >= 0 else f"{name}_axis{axis}" for axis, d in enumerate(sizes))
    return TensorSpec(name=name or "?", dtype=dtype, shape=shape)


def numpy_name(precision: str) -> str:
    """numpy's name of a port's precision."""
    return _PRECISIONS.get(precision, _TYPES.get(precision.lower(), precision.lower()))


# --- weights -----------------------------------------------------------------------------------------------------


def _weight(const: Layer) -> StoredWeight | None:
    """What is known of a constant that is a parameter; ``None`` for any other."""
    shape = tuple(_size(d) for d in const.data.get("shape", "").split(",") if d.strip())
    if not shape or min(shape) < 0 or const.dtype in _WIDE:
        return None
    readers = _readers(const)
    if not readers:
        return None
    layer, slot, (scaled, scale) = readers[0]
    scales, block = (None, 0) if const.dtype in _FLOATS else _granularity(scaled, scale)
    return StoredWeight(
        name=const.name,
        layer=layer.name,
        op=layer.op,
        dtype=const.dtype,
        shape=_whole(shape, scale) if shape == scaled else shape,
        count=times_read(shape, len(readers)),
        size=const.size,
        scales=scales,
        block=block,
        input=_input_type(layer, slot),
    )


def _granularity(shape: _Shape, scale: _Shape) -> tuple[Scales, int]:
    if math.prod(scale) <= 1:
        return Scales.TENSOR, 0
    axis = _blocked(shape, scale)
    return (Scales.CHANNEL, 0) if axis is None else (Scales.BLOCK, shape[axis])


def _blocked(shape: _Shape, scale: _Shape) -> int | None:
    """The axis that a block lies along, where a matrix was cut into some: it has three axes then, and scales differ
    along the two others."""
    if len(shape) != 3 or len(scale) != 3:
        return None
    along = [i for i in range(3) if scale[i] == 1 != shape[i]]
    return along[0] if len(along) == 1 and along[0] > 0 else None


def _whole(shape: _Shape, scale: _Shape) -> _Shape:
    """The matrix's shape where its rows lie in blocks."""
    axis = _blocked(shape, scale)
    return shape if axis is None else (*shape[: axis - 1], shape[axis - 1] * shape[axis], *shape[axis + 1 :])


_Scaled: TypeAlias = tuple[_Shape, _Shape]


def _readers(const: Layer) -> list[tuple[Layer, int, _Scaled]]:
    """The operations that compute with a constant, which input it is there, and the shapes of what it was and of the
    scales where it was multiplied with these; none where it is itself a scale or a zero point, or nothing reads it."""
    found: list[tuple[Layer, int, _Scaled]] = []
    pending: list[tuple[Layer, _Scaled]] = [(const, ((), ()))]
    seen = {const.number}
    while pending:
        current, scale = pending.pop()
        for layer, slot in current.readers:
            if slot in _OPTIONS.get(layer.op, ()) or (slot > 0 and layer.op in _CARRIERS):
                continue
            dequantizes = _dequantizes(layer)
            if dequantizes and slot == 1:
                return []
            if not dequantizes and layer.op not in _CARRIERS and layer.op != "FakeQuantize":
                found.append((layer, slot, scale))
            elif layer.number not in seen:
                seen.add(layer.number)
                product = dequantizes and layer.op == "Multiply"
                pending.append((layer, (layer.inputs[0], layer.inputs[1]) if product else scale))
    return found


def _dequantizes(layer: Layer) -> bool:
    """Whether a product or difference takes integers of a constant, widened, and a scale or zero point of them."""
    if layer.op not in ("Multiply", "Subtract") or len(layer.sources) != 2 or len(layer.inputs) != 2:
        return False
    values, other = (_origin(source) for source in layer.sources)
    return values is not None and other is not None and values.dtype not in _FLOATS


def _origin(layer: Layer | None) -> Layer | None:
    """The constant that a value comes from through nothing but carriers and dequantization."""
    for _ in range(_MOST_DEPTH):
        if layer is None or layer.op == "Const":
            return layer
        if layer.op not in (*_CARRIERS, "Multiply", "Subtract") or not layer.sources:
            return None
        layer = layer.sources[0]
    return None


def _input_type(layer: Layer, slot: int) -> str:
    """The type of a layer's other input: integers where it was just rounded to their grid."""
    other = 1 if slot == 0 else 0
    source = layer.sources[other] if other < len(layer.sources) else None
    first = source
    for _ in range(_MOST_DEPTH):
        if source is None:
            break
        if source.op == "FakeQuantize":
            return f"int{max(1, (int(source.data.get('levels', 256)) - 1).bit_length())}"
        if source.op == "Convert" and source.precisions and numpy_name(source.precisions[0]) not in _FLOATS:
            return numpy_name(source.precisions[0])
        if source.op not in (*_CARRIERS, "Multiply", "Subtract") or not source.sources:
            break
        source = source.sources[0]
    return numpy_name(first.precisions[0]) if first is not None and first.precisions else ""


# --- rules: (input shapes, output shapes, attributes) -> multiply-accumulates ----------------------------------------

_Shapes: TypeAlias = Sequence[_Shape]
_Rule: TypeAlias = Callable[[_Shapes, _Shapes, Mapping[str, str]], int]


def multiplied(layer: Layer) -> Iterator[int | None]:
    """The multiply-accumulates of an operation that has some; ``None`` where shapes do not tell."""
    rule = _MACS.get(layer.op)
    if rule is None:
        return
    inputs, outputs = (
        [tuple(max(1, abs(d)) if d else 0 for d in s) for s in side] for side in (layer.inputs, layer.outputs)
    )
    try:
        yield rule(inputs, outputs, layer.data)
    except IndexError:  # a rank that is not known
        yield None


def _matmul(i: _Shapes, o: _Shapes, a: Mapping[str, str]) -> int:
    transposed = a.get("transpose_a") == "true" and len(i[0]) > 1
    return math.prod(o[0]) * (i[0][-2] if transposed else i[0][-1])


def _sequence(i: _Shapes, matrices: tuple[int, int]) -> int:
    """X (batch, time, features) against W and R, every step."""
    return math.prod(i[0][:-1]) * sum(math.prod(i[slot]) for slot in matrices)


def _attention(i: _Shapes, o: _Shapes, _: Mapping[str, str]) -> int:
    """Scores and weighted sum: every query and output element meets every key."""
    return (math.prod(i[0]) + math.prod(o[0])) * i[1][-2]


_MACS: Mapping[str, _Rule] = {
    "Convolution": lambda i, o, _: math.prod(o[0]) * math.prod(i[1][1:]),
    "GroupConvolution": lambda i, o, _: math.prod(o[0]) * math.prod(i[1][2:]),
    "ConvolutionBackpropData": lambda i, _o, _: math.prod(i[0]) * math.prod(i[1][1:]),
    "GroupConvolutionBackpropData": lambda i, _o, _: math.prod(i[0]) * math.prod(i[1][2:]),
    "DeformableConvolution": lambda i, o, _: math.prod(o[0]) * math.prod(i[2][1:]),
    "MatMul": _matmul,
    "LSTMSequence": lambda i, _o, _: _sequence(i, (4, 5)),
    "GRUSequence": lambda i, _o, _: _sequence(i, (3, 4)),
    "RNNSequence": lambda i, _o, _: _sequence(i, (3, 4)),
    "LSTMCell": lambda i, _o, _: _sequence(i, (3, 4)),
    "GRUCell": lambda i, _o, _: _sequence(i, (2, 3)),
    "RNNCell": lambda i, _o, _: _sequence(i, (2, 3)),
    "ScaledDotProductAttention": _attention,
}
"""By operation, as :data:`edgekit.graph.macs.RULES` are of ONNX's."""
