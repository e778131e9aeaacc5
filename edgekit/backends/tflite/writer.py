"""TFLite IR → flatbuffer bytes.

Constants are copied exactly once: the builder is allocated at the final size, and each array (which may
be a transposed view) is written straight into it. Equal constants share one buffer. The same graphs give
the same bytes.

Format: ``schema.fbs`` of LiteRT, file identifier ``TFL3``; constant data is aligned to 16 bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgekit.backends.tflite.ir import (
    INT4,
    TENSOR_TYPES,
    Array,
    Graph,
    Op,
    Quant,
    Tensor,
    builtin_code,
    int32s,
    options_union,
)
from edgekit.backends.tflite.operator_versions import operator_version
from edgekit.errors import UnsupportedError

# schema.fbs: Buffer.data has force_align 16.
_ALIGNMENT = 16
# Offsets of a flatbuffer are signed 32-bit numbers; a mebibyte is left for everything but the data.
_LIMIT = 2**31 - 2**20
# Bytes of a tensor or operator besides names and data. Too low a guess costs a copy of the whole file, no
# more.
_PER_OBJECT = 400
_SAMPLE = 64


@dataclass(frozen=True, kw_only=True)
class Signature:
    """Names of the main graph's inputs and outputs, in order."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    key: str = "serving_default"


@dataclass(slots=True)
class _Pool:
    """Constant data by buffer number. Buffer 0 is the empty one that TFLite reserves."""

    arrays: list[Array] = field(default_factory=lambda: [np.empty(0, np.uint8)])
    _by_sample: dict[tuple[object, ...], list[int]] = field(default_factory=dict)
    _by_id: dict[int, int] = field(default_factory=dict)

    def add(self, data: Array) -> int:
        if id(data) in self._by_id:
            return self._by_id[id(data)]
        key = _sample_key(data)
        for number in self._by_sample.get(key, ()):
            if _same_bytes(self.arrays[number], data):
                self._by_id[id(data)] = number
                return number
        self.arrays.append(data)
        number = len(self.arrays) - 1
        self._by_sample.setdefault(key, []).append(number)
        self._by_id[id(data)] = number
        return number


def _sample_key(data: Array) -> tuple[object, ...]:
    """A cheap key that differs for nearly all different arrays: equality is then checked in full."""
    flat = data.flat
    step = max(1, data.size // _SAMPLE)
    sample = np.array([flat[i] for i in range(0, data.size, step)], data.dtype)
    return data.dtype.str, data.dtype.name, data.size, sample.tobytes()


def _same_bytes(a: Array, b: Array) -> bool:
    """Whether two arrays of one dtype and size are stored as the same bytes (NaN and -0 included)."""
    if a.flags.c_contiguous and b.flags.c_contiguous and a.dtype.itemsize:
        return bool(np.array_equal(a.reshape(-1).view(np.uint8), b.reshape(-1).view(np.uint8)))
    return a.shape == b.shape and a.tobytes() == b.tobytes()


def write(
    graphs: Sequence[Graph],
    signature: Signature,
    *,
    description: str = "",
    metadata: Mapping[str, bytes] | None = None,
) -> memoryview:
    """Serialize; the first graph is the main one.

    Returns a read-only view of the file's bytes. Raises :class:`UnsupportedError` above 2 GiB, which a
    flatbuffer cannot address.
    """
    return _Writer(graphs).run(signature, description, metadata or {})


class _Writer:
    def __init__(self, graphs: Sequence[Graph]) -> None:
        self.graphs = graphs
        self.pool = _Pool()
        self.codes: dict[tuple[str, int], int] = {}
        self.scales: dict[int, int] = {}
        """id of a tensor quantized in blocks → index of the tensor with their scales, in its graph."""

    def run(self, signature: Signature, description: str, metadata: Mapping[str, bytes]) -> memoryview:
        tensors = [self._with_scales(g) for g in self.graphs]
        numbers = [[0 if t.data is None else self.pool.add(t.data) for t in ts] for ts in tensors]
        notes = [
            (name, self.pool.add(np.frombuffer(text, np.uint8))) for name, text in sorted(metadata.items())
        ]
        self.b = flatbuffers.Builder(self._capacity(tensors))
        buffers = self._vector([self._buffer(a) for a in self.pool.arrays])
        subgraphs = self._vector(
            [self._subgraph(g, ts, ns) for g, ts, ns in zip(self.graphs, tensors, numbers, strict=True)]
        )
        codes = self._vector([self._code(name, version) for name, version in self.codes])
        signatures = self._vector([self._signature(signature, tensors[0])])
        notes_vector = self._vector([self._metadata(name, number) for name, number in notes])
        text = self.b.CreateString(description)
        model = self._table(
            "Model",
            # Of the schema; runtimes take no other.
            Version=3,
            OperatorCodes=codes,
            Subgraphs=subgraphs,
            Description=text,
            Buffers=buffers,
            Metadata=notes_vector,
            SignatureDefs=signatures,
        )
        b = self.b
        b.Finish(model, b"TFL3")
        return memoryview(b.Bytes)[b.Head() :].toreadonly()

    def _with_scales(self, graph: Graph) -> list[Tensor]:
        """The graph's tensors; behind them the scales, as float16, of those that have one a block."""
        tensors = list(graph.tensors())
        for t in tuple(tensors):
            if t.quant is not None and t.quant.block:
                self.scales[id(t)] = len(tensors)
                data = t.quant.scale.astype(np.float16)
                tensors.append(Tensor(data.shape, data.dtype, f"{t.name}/scales", data))
        return tensors

    def _capacity(self, tensors: Sequence[Sequence[Tensor]]) -> int:
        data = sum(_stored_bytes(a) + 2 * _ALIGNMENT + 32 for a in self.pool.arrays)
        if data > _LIMIT:
            raise UnsupportedError(
                f"the constants take {data / 2**30:.1f} GiB; a TFLite file holds at most 2 GiB",
                hint="store the weights in fewer bits (tflite-fp16, tflite-int8), or split the model",
            )
        names = sum(len(t.name) for ts in tensors for t in ts)
        scales = sum(t.quant.scale.size * 12 for ts in tensors for t in ts if t.quant is not None)
        objects = sum(len(ts) for ts in tensors) + sum(len(g.ops) for g in self.graphs)
        return data + names + scales + objects * _PER_OBJECT + 4096

    # --- leaves -------------------------------------------------------------------------------------

    def _vector(self, offsets: Sequence[int]) -> int:
        self.b.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            self.b.PrependUOffsetTRelative(offset)
        return int(self.b.EndVector())

    def _ints(self, values: Sequence[int]) -> int:
        return int(self.b.CreateNumpyVector(int32s(values)))

    def _table(self, name: str, **fields: int | bool | None) -> int:
        """One table of the schema; ``None`` leaves a field out. The order of fields decides the bytes."""
        getattr(schema, f"{name}Start")(self.b)
        for field_name, value in fields.items():
            if value is not None:
                getattr(schema, f"{name}Add{field_name}")(self.b, value)
        return int(getattr(schema, f"{name}End")(self.b))

    def _buffer(self, data: Array) -> int:
        return self._table("Buffer", Data=self._bytes(data) if data.size else None)

    def _bytes(self, data: Array) -> int:
        """A byte vector made of ``data`` in C order, copied once, straight into the builder."""
        b = self.b
        count = _stored_bytes(data)
        b.StartVector(1, count, _ALIGNMENT)
        head = b.Head() - count
        b.head = head
        target = np.frombuffer(b.Bytes, np.uint8, count=count, offset=head)
        if data.dtype == INT4:
            target[:] = _pack_int4(data)
        else:
            np.copyto(target.view(data.dtype).reshape(data.shape), data)
        return int(b.EndVector())

    def _blocks(self, quant: Quant, scales: int) -> int:
        """Blockwise parameters; XNNPACK and the builtin kernel read them for FULLY_CONNECTED."""
        details = self._table("BlockwiseQuantization", Scales=scales, ZeroPoints=-1, BlockSize=quant.block)
        kind = schema.QuantizationDetails.BlockwiseQuantization
        return self._table("QuantizationParameters", DetailsType=kind, Details=details)

    def _quantization(self, quant: Quant) -> int:
        scale = self.b.CreateNumpyVector(quant.scale.astype(np.float32))
        zero = self.b.CreateNumpyVector(quant.zero_point.astype(np.int64))
        return self._table(
            "QuantizationParameters", Scale=scale, ZeroPoint=zero, QuantizedDimension=quant.axis
        )

    def _tensor(self, tensor: Tensor, number: int) -> int:
        shape = self._ints([1 if i == tensor.dynamic else d for i, d in enumerate(tensor.shape)])
        signature = None
        if tensor.dynamic is not None:
            signature = self._ints([-1 if i == tensor.dynamic else d for i, d in enumerate(tensor.shape)])
        name = self.b.CreateString(tensor.name)
        quant = None
        if tensor.quant is not None:
            scales = self.scales.get(id(tensor))
            quant = self._quantization(tensor.quant) if scales is None else self._blocks(tensor.quant, scales)
        return self._table(
            "Tensor",
            Shape=shape,
            Type=TENSOR_TYPES[tensor.dtype],
            Buffer=number,
            Name=name,
            Quantization=quant,
            ShapeSignature=signature,
            IsVariable=tensor.is_variable,
            # Without it, a shape of [] is an unknown rank instead of a scalar.
            HasRank=True,
        )

    def _operator(self, op: Op, index: Mapping[int, int]) -> int:
        key = (op.code, operator_version(op))
        code = self.codes.setdefault(key, len(self.codes))
        inputs = self._ints([-1 if t is None else index[id(t)] for t in op.inputs])
        outputs = self._ints([index[id(t)] for t in op.outputs])
        fields: dict[str, int] = {}
        if op.options is not None:
            table = op.options.Pack(self.b)
            union, member = options_union(type(op.options).__name__)
            fields = {f"{union}Type": member, union: table}
        return self._table("Operator", OpcodeIndex=code, Inputs=inputs, Outputs=outputs, **fields)

    def _subgraph(self, graph: Graph, tensors: Sequence[Tensor], numbers: Sequence[int]) -> int:
        index = {id(t): i for i, t in enumerate(tensors)}
        table = self._vector([self._tensor(t, n) for t, n in zip(tensors, numbers, strict=True)])
        operators = self._vector([self._operator(op, index) for op in graph.ops])
        inputs = self._ints([index[id(t)] for t in graph.inputs])
        outputs = self._ints([index[id(t)] for t in graph.outputs])
        name = self.b.CreateString(graph.name)
        return self._table(
            "SubGraph", Tensors=table, Inputs=inputs, Outputs=outputs, Operators=operators, Name=name
        )

    def _code(self, name: str, version: int) -> int:
        number = builtin_code(name)
        # Readers before the 128th operator know the first field only.
        fields = {"DeprecatedBuiltinCode": min(number, 127), "Version": version, "BuiltinCode": number}
        return self._table("OperatorCode", **fields)

    def _signature(self, signature: Signature, tensors: Sequence[Tensor]) -> int:
        index = {id(t): i for i, t in enumerate(tensors)}
        main = self.graphs[0]
        inputs = self._tensor_map(signature.inputs, [index[id(t)] for t in main.inputs])
        outputs = self._tensor_map(signature.outputs, [index[id(t)] for t in main.outputs])
        key = self.b.CreateString(signature.key)
        return self._table("SignatureDef", Inputs=inputs, Outputs=outputs, SignatureKey=key, SubgraphIndex=0)

    def _tensor_map(self, names: Sequence[str], indices: Sequence[int]) -> int:
        pairs = zip(names, indices, strict=True)
        return self._vector(
            [self._table("TensorMap", Name=self.b.CreateString(n), TensorIndex=i) for n, i in pairs]
        )

    def _metadata(self, name: str, number: int) -> int:
        return self._table("Metadata", Name=self.b.CreateString(name), Buffer=number)


def _stored_bytes(data: Array) -> int:
    return (data.size + 1) // 2 if data.dtype == INT4 else data.nbytes


def _pack_int4(data: Array) -> Array:
    """Two values a byte, the first in the low half, as TFLite stores them."""
    low = np.ascontiguousarray(data).reshape(-1).view(np.uint8) & 0xF
    if low.size % 2:
        low = np.append(low, np.uint8(0))
    return np.asarray(low[0::2] | (low[1::2] << 4), np.uint8)
