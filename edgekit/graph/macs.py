"""Multiply-accumulates of an ONNX graph, node by node, and which executed kernel does them.

Counted are the operators that dominate a network's arithmetic: convolutions, matrix products, einsum,
recurrent layers, attention, and their quantized and fused forms. A node inside ``If``, ``Loop`` or ``Scan``
counts once. Dynamic axes take the sizes given, else 1.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias, cast

import onnx

from edgekit.graph import io, ops
from edgekit.graph.ops import Trait
from edgekit.types import Fallback, Target

Shape: TypeAlias = tuple[int, ...]

_CARRIERS = ops.named(Trait.CARRIES) - {"Dropout"}  # which no kernel has that carries integers
"""Operators that runtimes carry integers through."""


@dataclass(frozen=True, kw_only=True)
class MacNode:
    """One node that multiplies and accumulates.

    ``macs`` is ``None`` where a shape is unknown. ``aliases`` are the names under which a runtime may
    report the kernel that runs it, nearest first: its own, its outputs', and those of the nodes that only
    it feeds (an activation or a quantizer that a runtime fuses into it). ``quantized`` tells whether its
    first two inputs come from DequantizeLinear, directly or through operators that compute nothing;
    ``weight`` is how its second input is stored: ``"integer"``, ``"float"``, or empty: not a constant.
    ``nested``: it is inside ``If``, ``Loop`` or ``Scan``, and perhaps did not run at all.
    """

    name: str
    op: str
    macs: int | None
    module_path: str
    aliases: tuple[str, ...]
    quantized: bool
    weight: str = ""
    nested: bool = False

    @property
    def label(self) -> str:
        """The node's name with its module path, for people."""
        return f"{self.name} ({self.module_path})" if self.module_path else self.name


def count_macs(path: Path, sizes: Mapping[str, int] | None = None) -> tuple[MacNode, ...]:
    """Every node of the ONNX file that multiplies and accumulates, in graph order.

    ``sizes`` gives dynamic axes by name; an axis that is not in it counts as 1. External data is not read.
    """
    proto = io.read_proto(path)
    shapes = static_shapes(proto, sizes or {})
    scopes = enumerate(_graphs(proto.graph))  # the first is the main graph
    return tuple(n for i, scope in scopes for n in _mac_nodes(scope, shapes, nested=i > 0))


def static_shapes(proto: onnx.ModelProto, sizes: Mapping[str, int]) -> dict[str, Shape]:
    """The shapes of all values whose dimensions are known once the dynamic axes have ``sizes``.

    Changes ``proto``: large constants lose their data (inference reads only small ones).
    """
    for scope in _graphs(proto.graph):
        for tensor in scope.initializer:
            if math.prod(tensor.dims) > 256:
                tensor.ClearField("raw_data")
                tensor.ClearField("float_data")
        for info in (*scope.input, *scope.output, *scope.value_info):
            _substitute(info, sizes, default=1 if info in proto.graph.input else None)
    with contextlib.suppress(onnx.shape_inference.InferenceError):  # then what is written must do
        proto = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    shapes: dict[str, Shape] = {}
    for scope in _graphs(proto.graph):
        shapes |= {tensor.name: tuple(tensor.dims) for tensor in scope.initializer}
        for info in (*scope.input, *scope.output, *scope.value_info):
            dims = info.type.tensor_type.shape.dim
            if info.type.tensor_type.HasField("shape") and all(d.HasField("dim_value") for d in dims):
                shapes[info.name] = tuple(d.dim_value for d in dims)
    return shapes


def axis_sizes(path: Path, executed: Mapping[str, Shape]) -> dict[str, int]:
    """Sizes of dynamic axes by name, from the shapes that values had when the model ran.

    ``executed`` maps names of values or nodes to the shape of the (first) output; shapes that contradict
    the graph (another layout) are passed over.
    """
    proto = io.read_proto(path)
    written = {v.name: v for v in (*proto.graph.value_info, *proto.graph.output, *proto.graph.input)}
    sizes: dict[str, int] = {}
    for node in proto.graph.node:
        info = written.get(node.output[0])
        shape = executed.get(node.name) or executed.get(node.output[0])
        if info is not None and shape is not None:
            _bind(info.type.tensor_type.shape.dim, shape, sizes)
    for info in proto.graph.input:
        if info.name in executed:
            _bind(info.type.tensor_type.shape.dim, executed[info.name], sizes)
    return sizes


def _bind(dims: Sequence[onnx.TensorShapeProto.Dimension], shape: Shape, sizes: dict[str, int]) -> None:
    if len(dims) != len(shape):
        return
    pairs = list(zip(dims, shape, strict=True))
    if any(d.HasField("dim_value") and d.dim_value != size for d, size in pairs):
        return
    for dim, size in pairs:
        if dim.dim_param:
            sizes.setdefault(dim.dim_param, size)


def _substitute(info: onnx.ValueInfoProto, sizes: Mapping[str, int], default: int | None) -> None:
    for dim in info.type.tensor_type.shape.dim:
        if dim.HasField("dim_value"):
            continue
        size = sizes.get(dim.dim_param, default)
        dim.ClearField("dim_param")
        if size is not None:
            dim.dim_value = size


def _graphs(top: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield top
    for node in top.node:
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from _graphs(inner)


def _mac_nodes(scope: onnx.GraphProto, shapes: Mapping[str, Shape], *, nested: bool) -> Iterator[MacNode]:
    producer = {name: node for node in scope.node for name in node.output if name}
    constants = {tensor.name: tensor.data_type for tensor in scope.initializer}
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in scope.node:
        for name in filter(None, node.input):
            users.setdefault(name, []).append(node)
    for node in scope.node:
        if node.op_type not in RULES:
            continue
        yield MacNode(
            name=node.name or node.output[0],
            op=node.op_type,
            macs=_count(node, shapes),
            module_path=io.module_path(node),
            aliases=tuple(dict.fromkeys(_aliases(node, users))),
            quantized=len(node.input) > 1 and all(_dequantized(n, producer) for n in node.input[:2]),
            weight=_weight(node.input[1], producer, constants) if len(node.input) > 1 else "",
            nested=nested,
        )


def _weight(name: str, producer: Mapping[str, onnx.NodeProto], constants: Mapping[str, int]) -> str:
    """How a constant is stored, looking through what widens integers, and what computes nothing."""
    while name not in constants:
        node = producer.get(name)
        if (
            node is None
            or not node.input
            or node.op_type not in _CARRIERS | {"DequantizeLinear", "Cast", "Div"}
        ):
            return ""
        name = node.input[0]
    types = onnx.TensorProto
    floats = (types.FLOAT, types.FLOAT16, types.BFLOAT16, types.DOUBLE)
    return "float" if constants[name] in floats else "integer"


def _dequantized(name: str, producer: Mapping[str, onnx.NodeProto]) -> bool:
    """Whether a value comes from DequantizeLinear, perhaps through operators that compute nothing."""
    pending, seen = [name], set[str]()
    while pending:
        node = producer.get(pending.pop())
        if node is None:
            return False
        if node.op_type == "DequantizeLinear" or node.name in seen:
            continue
        if node.op_type not in _CARRIERS:
            return False
        if node.name:
            seen.add(node.name)
        pending += node.input if node.op_type == "Concat" else node.input[:1]
    return True


def _count(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> int | None:
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    inputs, outputs = ([shapes.get(name) for name in names] for names in (node.input, node.output))
    try:
        return RULES[node.op_type](cast(_Shapes, inputs), cast(_Shapes, outputs), attributes)
    except (TypeError, IndexError, KeyError):  # an unknown shape (None) where a rule needs one
        return None


def _aliases(node: onnx.NodeProto, users: Mapping[str, Sequence[onnx.NodeProto]]) -> Iterator[str]:
    """Follow the chain of nodes that this one alone feeds, up to the next node that multiplies."""
    for _ in range(16):
        yield from filter(None, (node.name, *node.output))
        following = users.get(node.output[0], ())
        if len(following) != 1 or following[0].op_type in RULES:
            return
        node = following[0]


# --- rules: (input shapes, output shapes, attributes) -> multiply-accumulates ------------------------------

_Shapes: TypeAlias = Sequence[Shape]
_Attributes: TypeAlias = Mapping[str, Any]
_Rule: TypeAlias = Callable[[_Shapes, _Shapes, _Attributes], int]


def _size(shape: Iterable[int]) -> int:
    return math.prod(shape)


def _conv(weight: int) -> _Rule:
    """Every output element is a dot product over one filter: weight (M, C/groups, k…)."""
    return lambda i, o, _: _size(o[0]) * _size(i[weight][1:])


def _conv_transpose(i: _Shapes, _o: _Shapes, _a: _Attributes) -> int:
    """Every input element is spread by one filter: weight (C, M/groups, k…)."""
    return _size(i[0]) * _size(i[1][1:])


def _matmul(i: _Shapes, o: _Shapes, a: _Attributes) -> int:
    """Output elements times the length of the contraction."""
    return _size(o[0]) * int(i[0][-2] if a.get("transA") else i[0][-1])


def _einsum(i: _Shapes, o: _Shapes, a: _Attributes) -> int:
    """Product of all labels' sizes, once for every operand but the first (a naive contraction)."""
    terms = a["equation"].decode().replace(" ", "").split("->")[0].split(",")
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, i, strict=True):
        before, dots, after = term.partition("...")
        sizes |= dict(zip(before, shape, strict=False))
        if after:
            sizes |= dict(zip(after, shape[-len(after) :], strict=True))
        if dots:
            rest = _size(shape[len(before) : len(shape) - len(after)])
            sizes["..."] = max(rest, sizes.get("...", 1))
    del o
    return _size(sizes.values()) * (len(terms) - 1)


def _recurrent(i: _Shapes, _o: _Shapes, _a: _Attributes) -> int:
    """X (time, batch, features) against W and R (directions, gates * hidden, …), every step."""
    return int(i[0][0] * i[0][1] * (_size(i[1]) + _size(i[2])))


def _attention(i: _Shapes, o: _Shapes, _a: _Attributes) -> int:
    """Scores and weighted sum: every query and output element meets every key.

    com.microsoft.Attention has the three projections' weights (features, 3 * hidden) as second input.
    """
    if len(i[1]) == 2:
        return int(_size(i[0]) * i[1][-1] + 2 * _size(o[0]) * i[0][1])
    keys = i[1][-2] + (i[4][-2] if len(i) > 4 and i[4] else 0)
    return int((_size(i[0]) + _size(o[0])) * keys)


def _matmul_nbits(i: _Shapes, _o: _Shapes, a: _Attributes) -> int:
    return _size(i[0]) * int(a["N"])


RULES: Mapping[str, _Rule] = {
    "Conv": _conv(1),
    "FusedConv": _conv(1),
    "NhwcFusedConv": _conv(1),
    "ConvInteger": _conv(1),
    "QLinearConv": _conv(3),
    "DeformConv": _conv(1),
    "ConvTranspose": _conv_transpose,
    "MatMul": _matmul,
    "FusedMatMul": _matmul,
    "MatMulInteger": _matmul,
    "MatMulIntegerToFloat": _matmul,
    "DynamicQuantizeMatMul": _matmul,
    "QLinearMatMul": _matmul,
    "Gemm": _matmul,
    "FusedGemm": _matmul,
    "QGemm": _matmul,
    "MatMulNBits": _matmul_nbits,
    "Einsum": _einsum,
    "LSTM": _recurrent,
    "GRU": _recurrent,
    "RNN": _recurrent,
    "DynamicQuantizeLSTM": _recurrent,
    "Attention": _attention,
    "QAttention": _attention,
    "MultiHeadAttention": _attention,
    "GroupQueryAttention": _attention,
}
"""By operator, in whatever domain: multiply-accumulates of one node."""


# --- which executed kernel runs which node ------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """An executed kernel that multiplies: the names it can be known by, operator and precision."""

    names: tuple[str, ...]
    op: str
    precision: str


_DECORATION = re.compile(
    r"(_nchwc|_token_\d+|_quant|/duplicated.*|/[A-Za-z]+#\d+.*|/WithoutBiases|/Dequantization[A-Za-z]+|/MatMulAddFusion.*|_Add_Fusion.*)$"
)


def assign(nodes: Sequence[MacNode], kernels: Sequence[Kernel]) -> dict[str, Kernel | None]:
    """The kernel that runs each node, by node name; ``None`` where the runtime's report does not tell.

    Nearest alias first, so that a kernel named after a fused activation goes to the node that feeds it.
    When what is left over on the runtime's side has one precision in common, left-over nodes get that.
    """
    free = dict(enumerate(kernels))
    index: dict[str, list[int]] = {}
    for i, kernel in free.items():
        for name in dict.fromkeys(n for raw in kernel.names for n in (raw, plain(raw))):
            index.setdefault(name, []).append(i)
    found: dict[str, Kernel | None] = {}
    for depth in range(max((len(n.aliases) for n in nodes), default=0)):
        for node in nodes:
            if node.name in found or depth >= len(node.aliases):
                continue
            hit = next((i for i in index.get(node.aliases[depth], ()) if i in free), None)
            if hit is not None:
                found[node.name] = free[hit]
                if len(kernels[hit].names) == 1:  # a kernel with several names may run several nodes
                    del free[hit]
    taken = {id(k) for k in found.values()}
    rest = [k for k in free.values() if id(k) not in taken]
    common = rest[0] if rest and len(Counter(k.precision for k in rest)) == 1 else None
    return {node.name: found.get(node.name, common) for node in nodes}


def plain(name: str) -> str:
    """A kernel's name without what ONNX Runtime and OpenVINO append to the node's."""
    while (shorter := _DECORATION.sub("", name)) != name:
        name = shorter
    return name


def computes_integers(target: Target) -> bool:
    """Whether a target promises integer arithmetic, not storage alone."""
    return target.scheme is not None and target.scheme.quantizer != "weights"


def summarize(
    nodes: Sequence[MacNode],
    found: Mapping[str, Kernel | None],
    asked: str,
    reason: Callable[[MacNode, Kernel | None], str],
) -> tuple[float, tuple[Fallback, ...]]:
    """The share of multiply-accumulates in the precision ``asked``, and what is not, grouped by operator and reason.

    Nodes whose cost is unknown do not count, but appear among the fallbacks; where none is known, each counts as one.
    1 for a model without multiply-accumulates, of which nothing runs otherwise.
    """
    total = sum(node.macs or 0 for node in nodes)
    if nodes and not total:
        nodes = [replace(node, macs=1) for node in nodes]
        total = len(nodes)
    as_asked = 0
    groups: dict[tuple[str, str], list[MacNode]] = {}
    for node in nodes:
        kernel = found.get(node.name)
        if kernel is not None and kernel.precision == asked:
            as_asked += node.macs or 0
        else:
            groups.setdefault((node.op, reason(node, kernel)), []).append(node)
    fallbacks = tuple(
        Fallback(
            op=op,
            count=len(group),
            reason=why,
            share=sum(n.macs or 0 for n in group) / total,
            nodes=tuple(n.label for n in group),
        )
        for (op, why), group in groups.items()
    )
    ordered = sorted(fallbacks, key=lambda f: (-f.share, f.op, f.reason))
    if not nodes:
        return 1.0, ()
    return as_asked / total, tuple(ordered)
