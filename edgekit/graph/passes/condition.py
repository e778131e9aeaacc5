"""What the last bit of a model's weights does to its answers: nothing finer can be asked of a rewrite."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from edgekit.graph import io

_FEW = 8
"""Fewer numbers may be factors of a Resize, which sizes follow from."""


def shaken(path: Path) -> bytes:
    """The model with its float32 weights (those in other files aside) one step up or down, at random.

    Where that moves the answers, sums in another order do so as well (Wilkinson's backward error: a rewrite is as good
    as the exact computation on weights that near).
    """
    proto, rng = io.read_proto(path), np.random.default_rng(0)
    for tensor in _tensors(proto.graph):
        if tensor.data_type != onnx.TensorProto.FLOAT or tensor.external_data:
            continue
        array = numpy_helper.to_array(tensor)
        if array.size > _FEW:
            towards = np.where(rng.integers(0, 2, array.shape), np.inf, -np.inf).astype(np.float32)
            moved = np.where((array == 0) | ~np.isfinite(array), array, np.nextafter(array, towards))
            tensor.CopyFrom(numpy_helper.from_array(moved.astype(np.float32), tensor.name))
    data: bytes = proto.SerializeToString()
    return data


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            if attribute.HasField("g"):
                yield from _tensors(attribute.g)
