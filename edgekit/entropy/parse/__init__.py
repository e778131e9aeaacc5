"""Where the tensors are inside an artifact: small readers that never execute and never trust a length.

A reader only *suggests*: the packer stores every byte in any case, so a wrong suggestion costs size,
never correctness.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath


@dataclass(frozen=True, kw_only=True)
class Span:
    """A tensor's bytes in one file of the artifact. ``channels_last``: the last axis is the input channel.

    ``palette``: the values are indices into the earlier tensor of that name.
    """

    file: str
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int
    channels_last: bool = False
    palette: str = ""


def find_spans(files: Mapping[str, memoryview]) -> list[Span]:
    """All tensors found in ``files`` (relative name → contents), in no particular order."""
    from edgekit.entropy.parse import deepcompression, onnx, openvino, safetensors, tflite

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
            spans += reader(name, data, files)
    return spans
