"""``.pt2``: the JSON of a program that ``torch.export.save`` wrote. PyTorch is not asked, no pickle in it is read."""

from __future__ import annotations

import math
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import msgspec

from edgekit.artifact.inspect.inspection import (
    Inspection,
    Scales,
    StoredWeight,
    Tally,
    most_common,
    open_axes,
    uncounted,
)
from edgekit.core.files import DAMAGED_ZIP
from edgekit.errors import SourceError
from edgekit.types import Json, TensorSpec

_MOST_DOCUMENT = 512 << 20
_MOST_DEPTH = 16
_TYPES = {
    1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 6: "float16", 7: "float32", 8: "float64", 12: "bool",
    13: "bfloat16", 28: "uint16", 29: "float8_e4m3fn", 30: "float8_e5m2", 34: "uint32", 35: "uint64",
}  # fmt: skip
"""torch._export.serde.schema.ScalarType."""
_BYTES = {
    "uint8": 1,
    "int8": 1,
    "bool": 1,
    "int16": 2,
    "uint16": 2,
    "float16": 2,
    "bfloat16": 2,
    "int64": 8,
    "uint64": 8,
    "float64": 8,
}
_SYMBOL = re.compile(r"Symbol\('(\w{1,80})'(?:, \w+=(?:True|False))*\)")
_MODEL = re.compile(r"(^|.*/)models/[^/]+\.json")


class _Name(msgspec.Struct):
    name: str


class _Expression(msgspec.Struct):
    expr_str: str = ""


class _Size(msgspec.Struct):
    as_int: int | None = None
    as_expr: _Expression | None = None


class _Meta(msgspec.Struct):
    dtype: int
    sizes: list[_Size]


class _Argument(msgspec.Struct):
    name: str
    arg: dict[str, msgspec.Raw]


class _Node(msgspec.Struct):
    target: str
    inputs: list[_Argument]
    outputs: list[dict[str, msgspec.Raw]]


class _Graph(msgspec.Struct):
    nodes: list[_Node]
    tensor_values: dict[str, _Meta]


class _Inner(msgspec.Struct):
    graph: _Graph


class _Spec(msgspec.Struct):
    arg: msgspec.Raw = msgspec.Raw(b"null")
    parameter_name: str = ""
    buffer_name: str = ""
    tensor_constant_name: str = ""


class _Signature(msgspec.Struct):
    input_specs: list[dict[str, _Spec]]
    output_specs: list[dict[str, _Spec]]


class _Module(msgspec.Struct):
    graph: _Graph
    signature: _Signature


class _Program(msgspec.Struct):
    graph_module: _Module
    opset_version: dict[str, int] = {}
    torch_version: str = ""


class _Payload(msgspec.Struct):
    path_name: str = ""
    use_pickle: bool = False


class _Payloads(msgspec.Struct):
    config: dict[str, _Payload]


def read(path: Path) -> Inspection:
    """Raises :class:`SourceError` for what is no archive of a program, or damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            return _inspection(path, archive)
    except (*DAMAGED_ZIP, msgspec.MsgspecError, RecursionError) as error:
        raise SourceError(
            f"{path} is not a .pt2 archive, or damaged: {str(error)[:200]}",
            hint="save it with torch.export.save",
        ) from error


def _inspection(path: Path, archive: zipfile.ZipFile) -> Inspection:
    names = archive.namelist()
    models = [name for name in names if _MODEL.fullmatch(name)]
    compiled = [n for n in names if "data/aotinductor/" in n or n.lower().endswith((".so", ".dll", ".pyd"))]
    if not models:
        what = (
            "compiled code and no exported program"
            if compiled
            else "no program that is JSON: torch before 2.8 pickled it"
        )
        raise SourceError(
            f"{path} holds {what}", hint="save it again with torch.export.save and torch 2.8 or newer"
        )
    program = msgspec.json.decode(_document(archive, models[0]), type=_Program)
    reader = _Reader(program, _payloads(archive, names))
    counted = list(_macs(program.graph_module.graph, 0))
    inputs = tuple(reader.tensors("input_specs", "user_input"))
    notes = (*open_axes(inputs), *uncounted(counted))
    if compiled:
        notes += (
            f"it holds compiled code ({compiled[0]}): loading it would run that, so that a build asks for --trust",
        )
    if reader.pickled:
        notes += (f"pickled, so that a build asks for --trust: {', '.join(reader.pickled[:5])}",)
    facts: dict[str, Json] = {"torch": program.torch_version, "opset": dict(program.opset_version)}
    return Inspection(
        path=path,
        format="PyTorch exported program",
        size=path.stat().st_size,
        inputs=inputs,
        outputs=tuple(reader.tensors("output_specs", "user_output")),
        operators=most_common(_operator(n.target) for n in _nodes(program.graph_module.graph, 0)),
        weights=dict(reader.tally.weights.most_common()),
        macs=sum(count or 0 for count in counted),
        facts={**facts, "buffers": reader.buffers} if reader.buffers else facts,
        parameters=reader.tally.parameters,
        layers=tuple(reader.tally.layers),
        notes=notes,
    )


def _document(archive: zipfile.ZipFile, name: str) -> bytes:
    if archive.getinfo(name).file_size > _MOST_DOCUMENT:
        raise ValueError(f"{name} is larger than {_MOST_DOCUMENT >> 20} MB")
    return archive.read(name)


def _payloads(archive: zipfile.ZipFile, names: Sequence[str]) -> dict[str, _Payload]:
    """Where each weight and constant lies; raises ``ValueError`` for one that is not in the archive."""
    found: dict[str, _Payload] = {}
    present = set(names)
    for name in names:
        if not name.endswith(("_weights_config.json", "_constants_config.json")):
            continue
        folder = name.rpartition("/")[0]
        entries = msgspec.json.decode(_document(archive, name), type=_Payloads).config
        for key, payload in entries.items():
            if payload.path_name and f"{folder}/{payload.path_name}" not in present:
                raise ValueError(f"the weight {key[:80]!r} is not in it")
        found |= entries
    return found


def _nodes(graph: _Graph, depth: int) -> Iterator[_Node]:
    for _, node in _scoped(graph, depth):
        yield node


def _scoped(graph: _Graph, depth: int) -> Iterator[tuple[_Graph, _Node]]:
    """Nodes with the graph that has their tensors, those within branches and loops too."""
    if depth > _MOST_DEPTH:
        raise ValueError("its graphs are nested deeper than any program's")
    for node in graph.nodes:
        yield graph, node
        for argument in node.inputs:
            if "as_graph" in argument.arg:
                inner = msgspec.json.decode(argument.arg["as_graph"], type=_Inner)
                yield from _scoped(inner.graph, depth + 1)


def _operator(target: str) -> str:
    """``torch.ops.aten.conv2d.default`` → ``aten.conv2d``."""
    parts = target.removeprefix("torch.ops.").split(".")
    return ".".join(parts[:2])


class _Reader:
    """Weights and tensors of a program."""

    def __init__(self, program: _Program, payloads: Mapping[str, _Payload]) -> None:
        self._module = program.graph_module
        self._readers = self._weight_readers()
        self.tally, self.buffers = Tally(), 0
        self.pickled: list[str] = sorted(key for key, payload in payloads.items() if payload.use_pickle)
        seen: set[str] = set()
        for spec in self._module.signature.input_specs:
            for kind, found in spec.items():
                name = found.parameter_name or found.buffer_name or found.tensor_constant_name
                place = payloads[name].path_name if name in payloads else ""
                if kind == "user_input" or (place and place in seen):
                    continue
                seen.add(place)
                self._add(kind, name, found)

    def _add(self, kind: str, name: str, spec: _Spec) -> None:
        tensor = _named(spec.arg)
        meta = self._module.graph.tensor_values.get(tensor)
        if meta is None:
            return
        shape = tuple(size.as_int or 0 for size in meta.sizes)
        if any(d < 0 for d in shape):
            raise ValueError(f"{name[:80]!r} has the shape {list(shape)}")
        dtype = _TYPES.get(meta.dtype, f"type {meta.dtype}")
        count = math.prod(shape)
        size = count * _BYTES.get(dtype, 4)
        self.tally.weights[dtype] += size
        op, input_type, scales = self._readers.get(tensor, ("", "", None))
        if kind != "parameter" and scales is None:
            self.buffers += count
            return
        self.tally.add(
            StoredWeight(
                name=name, layer=name.rpartition(".")[0], op=op, dtype=dtype, shape=shape, count=count, size=size,
                scales=scales if dtype in ("int8", "uint8", "int16") else None, input=input_type,
            )
        )  # fmt: skip

    def _weight_readers(self) -> dict[str, tuple[str, str, Scales | None]]:
        """By tensor: the first operator that reads it, its first input's type, and what shares a scale if that is a
        dequantization."""
        found: dict[str, tuple[str, str, Scales | None]] = {}
        for graph, node in _scoped(self._module.graph, 0):
            tensors = [name for argument in node.inputs for name in _tensors(argument.arg)]
            for name in tensors:
                first = graph.tensor_values.get(tensors[0])
                kind = _TYPES.get(first.dtype, "") if first is not None and tensors[0] != name else ""
                scales = None
                if "dequantize" in node.target and name == tensors[0]:
                    scales = Scales.CHANNEL if "per_channel" in node.target else Scales.TENSOR
                found.setdefault(name, (_operator(node.target), kind, scales))
        return found

    def tensors(self, side: str, kind: str) -> Iterator[TensorSpec]:
        """What the program takes, or gives."""
        specs: list[dict[str, _Spec]] = getattr(self._module.signature, side)
        for spec in specs:
            if kind in spec and (name := _named(spec[kind].arg)):
                meta = self._module.graph.tensor_values.get(name)
                if meta is not None:
                    dims = [_dim(size, f"{name}_axis{axis}") for axis, size in enumerate(meta.sizes)]
                    yield TensorSpec(name=name, dtype=_TYPES.get(meta.dtype, "?"), shape=tuple(dims))


def _named(raw: msgspec.Raw) -> str:
    """The tensor that an argument names; empty where it names none."""
    try:
        argument = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
        return msgspec.json.decode(argument["as_tensor"], type=_Name).name
    except (KeyError, msgspec.ValidationError):
        pass
    try:  # a parameter's has no kind
        return msgspec.json.decode(raw, type=_Name).name
    except msgspec.ValidationError:
        return ""


def _tensors(argument: Mapping[str, msgspec.Raw]) -> list[str]:
    if "as_tensor" in argument:
        return [msgspec.json.decode(argument["as_tensor"], type=_Name).name]
    if "as_tensors" in argument:
        return [one.name for one in msgspec.json.decode(argument["as_tensors"], type=list[_Name])]
    return []


def _dim(size: _Size, nameless: str) -> int | str:
    if size.as_int is not None:
        return size.as_int
    symbol = _SYMBOL.fullmatch(size.as_expr.expr_str) if size.as_expr is not None else None
    return symbol[1] if symbol else nameless


# --- rules: (tensor shapes by argument, shape of the output, the arguments) -> multiply-accumulates ------------------

_Shape: TypeAlias = tuple[int, ...]
_Shapes: TypeAlias = Mapping[str, _Shape]
_Rule: TypeAlias = Callable[[_Shapes, _Shape, Mapping[str, Mapping[str, msgspec.Raw]]], int]


def _macs(graph: _Graph, depth: int) -> Iterator[int | None]:
    for owner, node in _scoped(graph, depth):
        rule = _MACS.get(_operator(node.target))
        if rule is None:
            continue
        try:
            shapes = {a.name: _sizes(owner, name) for a in node.inputs for name in _tensors(a.arg)[:1]}
            output = _sizes(owner, _tensors(node.outputs[0])[0])
            arguments = {a.name: a.arg for a in node.inputs}
            more = {
                f"{a.name}.{i}": _sizes(owner, name)
                for a in node.inputs
                for i, name in enumerate(_tensors(a.arg) if "as_tensors" in a.arg else ())
            }
            yield rule({**shapes, **more}, output, arguments)
        except (KeyError, IndexError):  # a size that is an expression, an argument that is not there
            yield None


def _sizes(graph: _Graph, name: str) -> _Shape:
    """Dynamic axes count as 1. Raises ``KeyError`` where a size is computed."""
    sizes = []
    for size in graph.tensor_values[name].sizes:
        if size.as_int is None and (size.as_expr is None or not _SYMBOL.fullmatch(size.as_expr.expr_str)):
            raise KeyError(name)
        sizes.append(1 if size.as_int is None else size.as_int)
    return tuple(sizes)


def _conv(s: _Shapes, o: _Shape, a: Mapping[str, Mapping[str, msgspec.Raw]]) -> int:
    """Every output element is a dot product over one filter; a transposed one spreads every input element."""
    transposed = bytes(a.get("transposed", {}).get("as_bool", b"")) == b"true"
    return math.prod(s["input"] if transposed else o) * math.prod(s["weight"][1:])


def _transposed(s: _Shapes, _o: _Shape, _a: Mapping[str, Mapping[str, msgspec.Raw]]) -> int:
    return math.prod(s["input"]) * math.prod(s["weight"][1:])


def _product(first: str) -> _Rule:
    return lambda s, o, _: math.prod(o) * s[first][-1]


def _recurrent(s: _Shapes, _o: _Shape, _a: Mapping[str, Mapping[str, msgspec.Raw]]) -> int:
    """X (time and batch, features) against all matrices, every step."""
    matrices = [shape for name, shape in s.items() if name.startswith("params.") and len(shape) == 2]
    return math.prod(s["input"][:-1]) * sum(map(math.prod, matrices))


_MACS: Mapping[str, _Rule] = {
    **{f"aten.conv{n}d": _conv for n in (1, 2, 3)},
    **{f"aten.conv_transpose{n}d": _transposed for n in (1, 2, 3)},
    "aten.convolution": _conv,
    "aten.linear": lambda s, o, _: math.prod(o) * s["weight"][-1],
    "aten.mm": _product("self"),
    "aten.bmm": _product("self"),
    "aten.matmul": _product("self"),
    "aten.addmm": _product("mat1"),
    "aten.baddbmm": _product("batch1"),
    "aten.scaled_dot_product_attention": lambda s, o, _: (
        (math.prod(s["query"]) + math.prod(o)) * s["key"][-2]
    ),
    "aten.lstm": _recurrent,
    "aten.gru": _recurrent,
    "aten.rnn_tanh": _recurrent,
    "aten.rnn_relu": _recurrent,
}
"""By operator, as :data:`edgekit.graph.macs.RULES` are of ONNX's."""
