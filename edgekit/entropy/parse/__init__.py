"""Where the tensors are inside an artifact: small readers that never execute and never trust a length.

A reader only *suggests*: the packer stores every byte in any case, so a wrong suggestion costs size,
never correctness. In come the bytes of one file; out go the places, types and shapes of tensors that it seems to hold.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Mapping
from pathlib import PurePosixPath

from edgekit.entropy.parse import deepcompression, onnx, openvino, safetensors, tflite
from edgekit.entropy.parse.span import Span as Span

_DAMAGED = (struct.error, ValueError, LookupError, TypeError, ArithmeticError, RecursionError)
"""What following the offsets of a damaged file raises."""


def find_spans(files: Mapping[str, memoryview]) -> list[Span]:
    """All tensors found in ``files`` (relative name → contents), in no particular order."""
    spans: list[Span] = []
    for name, data in files.items():
        suffix = PurePosixPath(name).suffix.lower()
        reader = {
            ".onnx": onnx.spans,
            ".net": deepcompression.spans,
            ".safetensors": safetensors.spans,
            ".tflite": tflite.spans,
            ".xml": openvino.spans,
        }.get(suffix)
        if reader is not None:
            with contextlib.suppress(*_DAMAGED):
                spans += reader(name, data, files)
    return spans
