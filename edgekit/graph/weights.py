"""What a file stores its weights as: the promise of an integer target, as against what its runtime computes in."""

from __future__ import annotations

from collections.abc import Iterable

_INTEGERS = frozenset({"int2", "int4", "int8", "uint2", "uint4", "uint8", "i4", "i8", "u4", "u8"})
_FLOATS = frozenset({"float16", "float32", "float64", "bfloat16", "f16", "f32", "f64", "bf16"})


FREE = 4096
"""So many floats (16 KB) are nobody's weights: scales, biases, grids, tables of a dozen rows."""


def integer_share(constants: Iterable[tuple[int, str]]) -> float | None:
    """The share of a file's weights that are integers of eight bits or fewer, 0 to 1; ``None`` without weights.

    :data:`FREE` floats do not count.

    ``constants``: of each its number of values and its type, as numpy, ONNX or OpenVINO name it. Wider integers
    (indices, shapes, INT32 biases) and booleans are no weights.
    """
    integers = floats = 0
    for size, dtype in constants:
        integers += size if dtype in _INTEGERS else 0
        floats += size if dtype in _FLOATS else 0
    floats = max(floats - FREE, 0)
    return integers / (integers + floats) if integers + floats else None
