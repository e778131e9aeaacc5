"""ONNX operators by family. Importing this package fills the operator table; a failing import is an error.

In comes one ONNX node as views of its inputs and its attributes as keyword parameters. Out go the operators that LiteRT
executes for it, or the reason for which it cannot be expressed.
"""

from edgekit.backends.tflite.ops import (
    activation,
    contrib,
    control,
    convolution,
    dynamic,
    einsum,
    elementwise,
    functions,
    indexing,
    integer,
    matmul,
    normalization,
    pooling,
    quantize,
    recurrent,
    reduction,
    resize,
    sampling,
    scatter,
    search,
    separable,
    sequences,
    shape,
    signal,
)

__all__ = [
    "activation",
    "contrib",
    "control",
    "convolution",
    "dynamic",
    "einsum",
    "elementwise",
    "functions",
    "indexing",
    "integer",
    "matmul",
    "normalization",
    "pooling",
    "quantize",
    "recurrent",
    "reduction",
    "resize",
    "sampling",
    "scatter",
    "search",
    "separable",
    "sequences",
    "shape",
    "signal",
]
