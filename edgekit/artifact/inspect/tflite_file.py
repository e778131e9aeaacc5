"""``.tflite``: operators, buffers and their scales, read from the flatbuffer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

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
from edgekit.backends.tflite import flatbuffer_schema
from edgekit.backends.tflite.reading import read_tree
from edgekit.core.foreign import translated
from edgekit.types import Json, TensorSpec

if TYPE_CHECKING:
    from ai_edge_litert import schema_py_generated as schema

_BITS = {"int4": 4, "uint4": 4, "int2": 2, "float4": 4}
_WIDE = frozenset({"int32", "int64", "uint32", "uint64", "bool", "string", "resource", "variant"})
"""Types of shapes, indices and masks; an INT32 with scales is a bias."""
_OPTIONS: Mapping[str, frozenset[int]] = {
    "SHAPE": frozenset({0}),
    "PADV2": frozenset({1, 2}),
    "MIRROR_PAD": frozenset({1}),
    "FILL": frozenset({1}),
    "ONE_HOT": frozenset({1, 2, 3}),
    "RANGE": frozenset({0, 1, 2}),
    "NON_MAX_SUPPRESSION_V4": frozenset({2, 3, 4}),
    "NON_MAX_SUPPRESSION_V5": frozenset({2, 3, 4, 5}),
}
_CARRIERS = frozenset({"DEQUANTIZE", "TRANSPOSE", "RESHAPE", "CAST", "EXPAND_DIMS", "SQUEEZE", "QUANTIZE"})


def read(path: Path) -> Inspection:
    """Raises :class:`SourceError` for a damaged file, :class:`MissingExtraError` without LiteRT's schema."""
    data = path.read_bytes()
    tree = read_tree(data, str(path))
    with translated(f"{path} is damaged", hint="build or copy it again"):
        return _inspection(path, len(data), tree)


def _inspection(path: Path, size: int, tree: schema.ModelT) -> Inspection:
    graphs = [Subgraph(tree, number) for number in range(len(tree.subgraphs))]
    main = graphs[0]
    tally, seen = Tally(), set[int]()
    for graph in graphs:
        graph.tally(tally, seen)
    counted = [count for graph in graphs for count in graph.macs()]
    inputs, outputs = main.specs(tree.subgraphs[0].inputs), main.specs(tree.subgraphs[0].outputs)
    return Inspection(
        path=path,
        format="TFLite",
        size=size,
        inputs=inputs,
        outputs=outputs,
        operators=most_common(op for graph in graphs for op in graph.codes),
        weights=dict(tally.weights.most_common()),
        macs=sum(count or 0 for count in counted),
        facts=_facts(tree),
        parameters=tally.parameters,
        layers=tuple(tally.layers),
        notes=(*open_axes(inputs), *uncounted(counted)),
    )


def _facts(tree: schema.ModelT) -> dict[str, Json]:
    return {
        "schema": tree.version,
        "description": _text(tree.description),
        "subgraphs": len(tree.subgraphs),
        "signatures": [_text(s.signatureKey) for s in tree.signatureDefs or ()],
        "metadata": [_text(m.name) for m in tree.metadata or ()],
    }


def _text(value: bytes | str | None) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value or ""


class Subgraph:
    """One subgraph. ``codes`` are its operators' names, in their order."""

    def __init__(self, tree: schema.ModelT, number: int) -> None:
        tables = flatbuffer_schema()
        self._tree, self._graph = tree, tree.subgraphs[number]
        self._kinds = {v: k.lower() for k, v in vars(tables.TensorType).items() if not k.startswith("_")}
        names = {v: k for k, v in vars(tables.BuiltinOperator).items() if not k.startswith("_")}
        self.codes = [self._code(operator, names) for operator in self._graph.operators]

    def _code(self, operator: schema.OperatorT, names: Mapping[int, str]) -> str:
        code = self._tree.operatorCodes[operator.opcodeIndex]
        builtin = max(code.builtinCode, code.deprecatedBuiltinCode)
        if names.get(builtin) == "CUSTOM" and code.customCode:
            return _text(code.customCode)
        return names.get(builtin, f"operator {builtin}")

    def specs(self, indices: Sequence[int] | None) -> tuple[TensorSpec, ...]:
        """Names, types and shapes of tensors."""
        return tuple(self._spec(int(i)) for i in (indices if indices is not None else ()))

    def _spec(self, index: int) -> TensorSpec:
        tensor = self._graph.tensors[index]
        name, quantization = _text(tensor.name) or "?", tensor.quantization
        scales = _values(None if quantization is None else quantization.scale)
        points = _values(None if quantization is None else quantization.zeroPoint)
        one = len(scales) == 1
        return TensorSpec(
            name=name,
            dtype=self._kinds[tensor.type],
            shape=tuple(d if d >= 0 else f"{name}_axis{axis}" for axis, d in enumerate(_signature(tensor))),
            scale=float(scales[0]) if one else None,
            zero_point=int(points[0] if points else 0) if one else None,
        )

    def tally(self, found: Tally, seen: set[int]) -> None:
        """Add the constants, each buffer once in the whole file (``seen``: their numbers)."""
        readers, by_buffer = self._readers(), dict[int, list[int]]()
        for index, tensor in enumerate(self._graph.tensors):
            if tensor.buffer not in seen and _stored(self._tree.buffers[tensor.buffer]):
                by_buffer.setdefault(tensor.buffer, []).append(index)
        for buffer, tensors in by_buffer.items():
            seen.add(buffer)
            size = _stored(self._tree.buffers[buffer])
            found.weights[self._kinds[self._graph.tensors[tensors[0]].type]] += size
            computing = [place for index in tensors for place in self._computing(index, readers)]
            if computing and (weight := self._weight(tensors[0], size, computing)) is not None:
                found.add(weight)

    def _weight(self, index: int, size: int, computing: Sequence[tuple[int, int]]) -> StoredWeight | None:
        """What is known of a constant that operators compute with; ``None`` where it is no parameter."""
        tensor, (operator, slot) = self._graph.tensors[index], computing[0]
        kind, shape = self._kinds[tensor.type], _shape(tensor)
        scales, block = _granularity(tensor.quantization)
        if not shape or (kind in _WIDE and scales is None):
            return None
        if size < -(-math.prod(shape) * _BITS.get(kind, 8) // 8):
            raise ValueError(f"tensor {index} states {math.prod(shape)} values and has {size} bytes")
        return StoredWeight(
            name=_text(tensor.name),
            layer=self._layer(operator),
            op=self.codes[operator],
            dtype=kind,
            shape=shape,
            count=times_read(shape, len(computing)),
            size=size,
            scales=scales if kind not in ("float32", "float16", "bfloat16") else None,
            block=block,
            input=self._input(operator, slot),
        )

    def _readers(self) -> dict[int, list[tuple[int, int]]]:
        """By tensor: the operators that read it, and as which input."""
        readers: dict[int, list[tuple[int, int]]] = {}
        for number, operator in enumerate(self._graph.operators):
            for slot, index in enumerate(_ints(operator.inputs)):
                readers.setdefault(index, []).append((number, slot))
        return readers

    def _computing(
        self, index: int, readers: Mapping[int, Sequence[tuple[int, int]]]
    ) -> list[tuple[int, int]]:
        """The operators that compute with a constant, and which input it is there."""
        found, pending, seen = [], [index], {index}
        while pending:
            for number, slot in readers.get(pending.pop(), ()):
                code = self.codes[number]
                if slot in _OPTIONS.get(code, ()) or (slot > 0 and code in _CARRIERS):
                    continue
                if code not in _CARRIERS:
                    found.append((number, slot))
                    continue
                behind = [i for i in _ints(self._graph.operators[number].outputs) if i not in seen]
                seen.update(behind)
                pending += behind
        return found

    def _layer(self, operator: int) -> str:
        outputs = _ints(self._graph.operators[operator].outputs)
        return _text(self._graph.tensors[outputs[0]].name) if outputs else ""

    def _input(self, operator: int, slot: int) -> str:
        """The type of the first input that is not the weight itself."""
        others = [
            i for n, i in enumerate(_ints(self._graph.operators[operator].inputs)) if n != slot and i >= 0
        ]
        return self._kinds[self._graph.tensors[others[0]].type] if others else ""

    def macs(self) -> Iterator[int | None]:
        """Multiply-accumulates of each operator that multiplies; ``None`` where shapes do not tell."""
        yield from (self.macs_of(n) for n, code in enumerate(self.codes) if code in _MACS)

    def macs_of(self, number: int) -> int | None:
        """Those of one operator: 0 where it does not multiply."""
        rule, operator = _MACS.get(self.codes[number]), self._graph.operators[number]
        if rule is None:
            return 0
        inputs, outputs = (
            [None if i < 0 else _shape(self._graph.tensors[i]) for i in _ints(side)]
            for side in (operator.inputs, operator.outputs)
        )
        try:
            return rule(cast(_Shapes, inputs), cast(_Shapes, outputs), operator.builtinOptions)
        except (TypeError, IndexError):  # an input that is not given, an axis that is not there
            return None

    @property
    def ends(self) -> tuple[list[int], list[int]]:
        """The tensors that are inputs and outputs."""
        return _ints(self._graph.inputs), _ints(self._graph.outputs)

    def wired(self, number: int) -> tuple[list[int], list[int]]:
        """The tensors that an operator reads (-1: not given) and writes."""
        operator = self._graph.operators[number]
        return _ints(operator.inputs), _ints(operator.outputs)

    def is_constant(self, index: int) -> bool:
        """Whether a tensor's values are in the file."""
        return bool(_stored(self._tree.buffers[self._graph.tensors[index].buffer]))


def _length(values: Any) -> int:
    return 0 if values is None else len(values)


def _values(values: Any) -> list[float]:
    return [] if values is None else [float(v) for v in values]


def _ints(values: Any) -> list[int]:
    return [] if values is None else [int(v) for v in values]


def _signature(tensor: schema.TensorT) -> list[int]:
    """The shape in which dynamic axes are negative; the other has 1 there."""
    signature = _ints(tensor.shapeSignature)
    return signature or _ints(tensor.shape)


def _shape(tensor: schema.TensorT) -> tuple[int, ...]:
    return tuple(max(1, d) if d < 0 else d for d in _ints(tensor.shape))


def _stored(buffer: schema.BufferT) -> int:
    """Bytes of a constant: in the table, or behind it in files of 2 GB and more."""
    return _length(buffer.data) or (int(buffer.size) if buffer.offset > 1 else 0)


def _granularity(quantization: schema.QuantizationParametersT | None) -> tuple[Scales | None, int]:
    if quantization is None:
        return None, 0
    block = getattr(quantization.details, "blockSize", 0)
    if block:
        return Scales.BLOCK, int(block)
    count = _length(quantization.scale)
    return (None if not count else Scales.TENSOR if count == 1 else Scales.CHANNEL), 0


# --- rules: (input shapes, output shapes, options) -> multiply-accumulates -------------------------------------------

_Shapes: TypeAlias = Sequence[tuple[int, ...]]  # with None where an input is not given: rules raise TypeError
_Rule: TypeAlias = Callable[[_Shapes, _Shapes, Any], int]


def _conv(i: _Shapes, o: _Shapes, _: Any) -> int:
    """Every output element is a dot product over one filter, [outputs, …, inputs / groups]."""
    return math.prod(o[0]) * math.prod(i[1][1:])


def _depthwise(i: _Shapes, o: _Shapes, _: Any) -> int:
    """Filter [1, height, width, outputs]: one channel each."""
    return math.prod(o[0]) * math.prod(i[1][1:-1])


def _transposed(i: _Shapes, _o: _Shapes, _: Any) -> int:
    """Every input element (the third operand) is spread by one filter, [outputs, …, inputs]."""
    return math.prod(i[2]) * math.prod(i[1][:-1])


def _fully_connected(i: _Shapes, o: _Shapes, _: Any) -> int:
    return math.prod(o[0]) * int(i[1][-1])


def _batch_matmul(i: _Shapes, o: _Shapes, options: Any) -> int:
    adjoint = options is not None and options.adjX
    return math.prod(o[0]) * int(i[0][-2] if adjoint else i[0][-1])


def _recurrent(*matrices: int) -> _Rule:
    """X (time and batch, features) against the gates' matrices, which are these inputs, every step."""

    def rule(i: _Shapes, _o: _Shapes, _a: Any) -> int:
        given = [i[slot] for slot in matrices if slot < len(i) and i[slot] is not None]
        return math.prod(i[0][:-1]) * sum(map(math.prod, given))

    return rule


_LSTM = _recurrent(*range(1, 9), 16)  # of inputs, of the state, the projection

_MACS: Mapping[str, _Rule] = {
    "CONV_2D": _conv,
    "CONV_3D": lambda i, o, _: (
        math.prod(o[0]) * math.prod(i[1][:-1])
    ),  # [depth, height, width, inputs, outputs]
    "DEPTHWISE_CONV_2D": _depthwise,
    "TRANSPOSE_CONV": _transposed,
    "FULLY_CONNECTED": _fully_connected,
    "BATCH_MATMUL": _batch_matmul,
    "UNIDIRECTIONAL_SEQUENCE_LSTM": _LSTM,
    "LSTM": _LSTM,
    "BIDIRECTIONAL_SEQUENCE_LSTM": _recurrent(*range(1, 9), 16, *range(18, 26), 33),
    "UNIDIRECTIONAL_SEQUENCE_RNN": _recurrent(1, 2),
    "RNN": _recurrent(1, 2),
}
"""By operator, as :data:`edgekit.graph.macs.RULES` are of ONNX's."""
