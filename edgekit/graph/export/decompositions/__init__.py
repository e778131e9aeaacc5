"""Operators that ``torch.export`` leaves whole and the ONNX exporter lacks, in operators that it has.

Each function computes what its ATen operator does (tests/ops/test_export_decompositions.py compares them with PyTorch).
They are used where the plain export has failed. Sizes along the axes that they take apart have to be static; where one
is dynamic they return ``NotImplemented`` and the operator stays what it is.
"""

from edgekit.graph.export.decompositions import (
    algebra,
    complex,
    factors,
    order,
    places,
    pooling,
    recurrent,
    rotations,
    scores,
    special,
    spectra,
)
from edgekit.graph.export.decompositions.table import TABLE, decomposed, misread

__all__ = [
    "TABLE",
    "algebra",
    "complex",
    "decomposed",
    "factors",
    "misread",
    "order",
    "places",
    "pooling",
    "recurrent",
    "rotations",
    "scores",
    "special",
    "spectra",
]
