"""ONNX operators by family. Importing this package fills the operator table; a failing import is an error."""

from edgekit.backends.tflite.ops import (
    activation,
    convolution,
    elementwise,
    functions,
    indexing,
    matmul,
    normalization,
    pooling,
    quantize,
    recurrent,
    reduction,
    resize,
    scatter,
    search,
    shape,
)

__all__ = [
    "activation",
    "convolution",
    "elementwise",
    "functions",
    "indexing",
    "matmul",
    "normalization",
    "pooling",
    "quantize",
    "recurrent",
    "reduction",
    "resize",
    "scatter",
    "search",
    "shape",
]
