"""What a tensor's bytes mean, and how they become signed numbers and back, bit for bit.

*plain*: integers as they are (less a centre for unsigned ones), floats as sign and magnitude of their
bit pattern. *clustered*: few distinct values, an index into the sorted values, counted from zero. *ranked*: indices
into another tensor, a palette, renumbered in the order of its values.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

import numpy as np

from edgekit.entropy.coding import Family
from edgekit.entropy.rans import Ints
from edgekit.entropy.wire import malformed

MAX_DISTINCT = 4096


@dataclass(frozen=True, kw_only=True)
class Dtype:
    """One storage type. ``mantissa`` is ``None`` for integers; ``bits`` below 8 are packed, low bits first."""

    code: int
    name: str
    bits: int
    signed: bool
    mantissa: int | None = None

    @property
    def family(self) -> Family:
        """How magnitudes are bucketed."""
        return Family.INTEGER if self.mantissa is None else Family.FLOAT

    def size(self, elements: int) -> int:
        """Bytes of so many elements."""
        return (elements * self.bits + 7) // 8


_TABLE = (
    Dtype(code=0, name="int8", bits=8, signed=True),
    Dtype(code=1, name="uint8", bits=8, signed=False),
    Dtype(code=2, name="int16", bits=16, signed=True),
    Dtype(code=3, name="uint16", bits=16, signed=False),
    Dtype(code=4, name="int32", bits=32, signed=True),
    Dtype(code=5, name="int4", bits=4, signed=True),
    Dtype(code=6, name="uint4", bits=4, signed=False),
    Dtype(code=7, name="float32", bits=32, signed=True, mantissa=23),
    Dtype(code=8, name="float16", bits=16, signed=True, mantissa=10),
    Dtype(code=9, name="bfloat16", bits=16, signed=True, mantissa=7),
)
DTYPES = {d.name: d for d in _TABLE}
BY_CODE = {d.code: d for d in _TABLE}


class Form(enum.IntEnum):
    """How a tensor is stored."""

    PLAIN = 0
    CLUSTERED = 1
    COPY = 2
    RANKED = 3


def unpack_elements(raw: bytes | memoryview, dtype: Dtype, elements: int) -> Ints:
    """The bit patterns of a tensor as unsigned integers. Raises ``ValueError`` if padding bits are set."""
    if dtype.bits == 4:
        data = np.frombuffer(raw, np.uint8)
        # The first of two in the low half, as ONNX and TFLite store them.
        both = np.stack([data & 15, data >> 4], axis=1).reshape(-1).astype(np.int64)
        if both[elements:].any():
            raise ValueError("padding bits are set")
        return both[:elements]
    return np.frombuffer(raw, f"<u{dtype.bits // 8}").astype(np.int64)


def pack_elements(patterns: Ints, dtype: Dtype) -> bytes:
    """The inverse of :func:`unpack_elements`."""
    if dtype.bits == 4:
        even = patterns if len(patterns) % 2 == 0 else np.append(patterns, 0)
        return (even[0::2] | even[1::2] << 4).astype(np.uint8).tobytes()
    return patterns.astype(f"<u{dtype.bits // 8}").tobytes()


def ordered(patterns: Ints, dtype: Dtype) -> Ints:
    """Bit patterns to integers in the order of their values: two's complement, or sign and magnitude.

    -0.0 becomes -1 less than the smallest subnormal would; every pattern keeps a number of its own.
    """
    half = 1 << (dtype.bits - 1)
    if not dtype.signed:
        return patterns
    if dtype.mantissa is None:
        return np.where(patterns >= half, patterns - 2 * half, patterns)
    return np.where(patterns >= half, -1 - (patterns - half), patterns)


def extent(dtype: Dtype) -> tuple[int, int]:
    """The least number that :func:`ordered` gives, and the first above all."""
    half = 1 << (dtype.bits - 1)
    return (-half, half) if dtype.signed else (0, 2 * half)


def unordered(values: Ints, dtype: Dtype) -> Ints:
    """The inverse of :func:`ordered`. Raises ``ContainerError`` for a number that no pattern has."""
    half = 1 << (dtype.bits - 1)
    low, high = extent(dtype)
    if len(values) and not low <= int(values.min()) <= int(values.max()) < high:
        raise malformed(f"a value does not fit {dtype.name}")
    if not dtype.signed:
        return values
    if dtype.mantissa is None:
        return np.where(values < 0, values + 2 * half, values)
    return np.where(values < 0, half - 1 - values, values)


def distinct(patterns: Ints, dtype: Dtype) -> Ints | None:
    """The sorted distinct values if they are few enough to be worth a table, else ``None``."""
    values = ordered(patterns, dtype)
    if len(values) > 1 << 16 and len(np.unique(values[:: len(values) >> 12])) > 1024:
        return None  # a sample already shows too many
    book = np.unique(values)
    span = int(book[-1] - book[0]) + 1
    if len(book) > MAX_DISTINCT or len(book) * 16 > len(values):
        return None
    # Integers that use most of their range have nothing to gain from a table.
    return book if dtype.mantissa is not None or len(book) * 3 < span else None


def zero_index(book: Ints) -> int:
    """The index that counts as zero: that of the value 0, else of the least value above it."""
    return min(int(np.searchsorted(book, 0)), len(book) - 1)


def ranks(palette: Ints, dtype: Dtype) -> Ints:
    """The place of each palette entry in the order of values, less that of entry 0. ``palette``: patterns."""
    order = np.argsort(ordered(palette, dtype), kind="stable")
    out = np.empty(len(order), np.int64)
    out[order] = np.arange(len(order))
    out -= out[0]
    return out


def split_sign(values: Ints) -> tuple[Ints, Ints]:
    """Signed integers to (magnitude, negative)."""
    return np.abs(values), (values < 0).astype(np.int64)


def split_float(patterns: Ints, dtype: Dtype) -> tuple[Ints, Ints]:
    """Patterns to (exponent and mantissa as one number, sign)."""
    half = 1 << (dtype.bits - 1)
    return patterns & (half - 1), patterns >> (dtype.bits - 1)


def trailing_zeros(magnitude: Ints, mantissa: int) -> int:
    """Low mantissa bits that no value uses."""
    used = int(np.bitwise_or.reduce(magnitude, initial=0))
    return min(mantissa - 1, (used & -used).bit_length() - 1) if used else 0
