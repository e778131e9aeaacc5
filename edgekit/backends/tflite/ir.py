"""The compiler's own picture of a TFLite model: tensors, operators, graphs.

It sits between the ONNX handlers (:mod:`edgekit.backends.tflite.ops`) and the flatbuffer
(:mod:`edgekit.backends.tflite.writer`). Element types are numpy dtypes (``ml_dtypes`` for int4 and
bfloat16). Constant data is held as numpy arrays, which may be views (a transposed weight is not copied
until the writer copies it into the file).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
import numpy.typing as npt
from ai_edge_litert import schema_py_generated as schema

from edgekit.errors import UnsupportedError

Array: TypeAlias = npt.NDArray[Any]
DType: TypeAlias = np.dtype[Any]
Shape: TypeAlias = tuple[int, ...]

FLOAT32 = np.dtype(np.float32)
FLOAT16 = np.dtype(np.float16)
INT8 = np.dtype(np.int8)
UINT8 = np.dtype(np.uint8)
INT16 = np.dtype(np.int16)
INT32 = np.dtype(np.int32)
INT64 = np.dtype(np.int64)
BOOL = np.dtype(np.bool_)
INT4 = np.dtype(ml_dtypes.int4)

TENSOR_TYPES: dict[DType, int] = {
    FLOAT32: schema.TensorType.FLOAT32,
    FLOAT16: schema.TensorType.FLOAT16,
    np.dtype(np.float64): schema.TensorType.FLOAT64,
    np.dtype(ml_dtypes.bfloat16): schema.TensorType.BFLOAT16,
    INT4: schema.TensorType.INT4,
    INT8: schema.TensorType.INT8,
    UINT8: schema.TensorType.UINT8,
    INT16: schema.TensorType.INT16,
    np.dtype(np.uint16): schema.TensorType.UINT16,
    INT32: schema.TensorType.INT32,
    np.dtype(np.uint32): schema.TensorType.UINT32,
    INT64: schema.TensorType.INT64,
    np.dtype(np.uint64): schema.TensorType.UINT64,
    BOOL: schema.TensorType.BOOL,
    np.dtype(np.complex64): schema.TensorType.COMPLEX64,
}
"""numpy dtype → ``tflite.TensorType``."""

Options: TypeAlias = Any
"""An object of one of the schema's ``…OptionsT`` classes (they have no stubs), or None."""


def int32s(values: Sequence[int]) -> Array:
    """Sizes and indices as the file stores them. Raises :class:`UnsupportedError` for a number that it cannot hold."""
    limits = np.iinfo(np.int32)
    beyond = [v for v in values if not limits.min <= v <= limits.max]
    if beyond:
        raise UnsupportedError(
            f"a size of {beyond[0]:,}: a TFLite file holds sizes up to {limits.max:,}",
            hint="make its inputs smaller, or build another runtime's target",
        )
    return np.asarray(values, np.int32)


@dataclass(frozen=True, slots=True, eq=False)
class Quant:
    """Affine quantization ``real = scale * (stored - zero_point)``; ``axis`` counts when per channel.

    ``scale`` is float32 and ``zero_point`` int64, both 1-D of equal length (1: per tensor). With a ``block``,
    that many consecutive elements along ``axis`` share a scale: both have the tensor's rank then.
    """

    scale: Array
    zero_point: Array
    axis: int = 0
    block: int = 0

    @classmethod
    def per_tensor(cls, scale: float, zero_point: int = 0) -> Quant:
        """One scale and zero point for the whole tensor."""
        return cls(np.array([scale], np.float32), np.array([zero_point], np.int64))

    @property
    def per_channel(self) -> bool:
        """Whether there is one scale a slice (or a block) along ``axis``."""
        return self.scale.size > 1 or self.block > 0

    def same_as(self, other: Quant | None) -> bool:
        """Equal parameters, so that stored values mean the same."""
        return (
            other is not None
            and np.array_equal(self.scale, other.scale)
            and np.array_equal(self.zero_point, other.zero_point)
            and (not self.per_channel or (self.axis, self.block) == (other.axis, other.block))
        )

    def along(self, axis: int) -> Quant:
        """The same parameters along another axis (after a transposition)."""
        return Quant(self.scale, self.zero_point, axis)

    def transposed(self, perm: Sequence[int]) -> Quant:
        """The parameters of the tensor with its axes in the order ``perm``."""
        if self.block:
            scale, zero = (np.transpose(a, perm) for a in (self.scale, self.zero_point))
            return Quant(scale, zero, list(perm).index(self.axis), self.block)
        return self.along(list(perm).index(self.axis)) if self.per_channel else self

    def dequantize(self, stored: Array) -> Array:
        """Real values of ``stored`` as float32."""
        scale, zero = self._spread(stored)
        return np.asarray((stored.astype(np.float32) - zero.astype(np.float32)) * scale, np.float32)

    def quantize(self, real: Array, dtype: DType) -> Array:
        """Stored values of ``real``: round half to even, saturated to ``dtype``."""
        scale, zero = self._spread(real)
        low, high = integer_range(dtype)
        stored = np.rint(real / scale) + zero
        return np.asarray(np.clip(stored, low, high).astype(dtype))

    def _spread(self, data: Array) -> tuple[Array, Array]:
        """Scale and zero point, shaped to broadcast against ``data``."""
        if self.block:
            parts = (np.repeat(a, self.block, self.axis) for a in (self.scale, self.zero_point))
            keep = slice(data.shape[self.axis])  # the last block may be shorter
            scale, zero = (a[(*(slice(None),) * self.axis, keep)] for a in parts)
            return scale, zero
        shape = [1] * data.ndim
        if self.per_channel:
            shape[self.axis] = self.scale.size
        return self.scale.reshape(shape), self.zero_point.reshape(shape)


def integer_range(dtype: DType) -> tuple[int, int]:
    """Smallest and largest value of an integer dtype, int4 included."""
    if dtype == INT4:
        return -8, 7
    info = np.iinfo(dtype)
    return int(info.min), int(info.max)


@dataclass(frozen=True, slots=True)
class Type:
    """Element type of a tensor: storage dtype and quantization."""

    dtype: DType
    quant: Quant | None = None


FLOAT = Type(FLOAT32)


@dataclass(slots=True, eq=False)
class Tensor:
    """One TFLite tensor. ``data`` is set for constants. Identity is object identity.

    ``dynamic`` is the dimension whose size only the run tells; ``shape`` has its upper bound there.
    """

    shape: Shape
    dtype: DType
    name: str = ""
    data: Array | None = None
    quant: Quant | None = None
    is_variable: bool = False
    dynamic: int | None = None

    @property
    def rank(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def same_type(self, other: Tensor) -> bool:
        """Equal element type and quantization."""
        if self.dtype != other.dtype:
            return False
        return self.quant is other.quant or (self.quant is not None and self.quant.same_as(other.quant))

    def __repr__(self) -> str:
        quant = " q" if self.quant is not None else ""
        const = " const" if self.data is not None else ""
        return f"<{self.name or '?'} {self.dtype}{list(self.shape)}{quant}{const}>"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an operator comes from: the ONNX node and the PyTorch module that made it."""

    node: str = ""
    op: str = ""
    module: str = ""


@dataclass(slots=True, eq=False)
class Op:
    """One TFLite operator. ``options`` is an object of the schema's ``…OptionsT`` classes, or None."""

    code: str
    inputs: list[Tensor | None]
    outputs: list[Tensor]
    options: Options = None
    origin: Origin = field(default_factory=Origin)

    def input(self, position: int = 0) -> Tensor:
        """An input that is there."""
        tensor = self.inputs[position]
        assert tensor is not None, self
        return tensor

    def values(self, position: int) -> Array:
        """The contents of an input that is constant."""
        data = self.input(position).data
        assert data is not None, self
        return data

    def __repr__(self) -> str:
        return f"{self.code}({self.inputs}) -> {self.outputs}"


@dataclass(slots=True, eq=False)
class Graph:
    """One subgraph, operators in execution order."""

    name: str = "main"
    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor once, in order of first appearance: inputs, then by operator, then outputs."""
        seen: set[int] = set()
        streams: list[Sequence[Tensor | None]] = [self.inputs]
        for op in self.ops:
            streams += (op.inputs, op.outputs)
        streams.append(self.outputs)
        for stream in streams:
            for t in stream:
                if t is not None and id(t) not in seen:
                    seen.add(id(t))
                    yield t


@functools.cache
def builtin_code(name: str) -> int:
    """The number of a ``BuiltinOperator``; KeyError-free: names are checked when operators are emitted."""
    return int(getattr(schema.BuiltinOperator, name))


@functools.cache
def options_union(class_name: str) -> tuple[str, int]:
    """The union that an options class is in, ``BuiltinOptions`` or its continuation, and its number there."""
    name = class_name.removesuffix("T")
    if hasattr(schema.BuiltinOptions, name):
        return "BuiltinOptions", int(getattr(schema.BuiltinOptions, name))
    return "BuiltinOptions2", int(getattr(schema.BuiltinOptions2, name))
