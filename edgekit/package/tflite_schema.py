"""TFLite Metadata as a FlatBuffer: just the tables that image and tensor models need.

The schema is metadata_schema.fbs of TFLite Support and MediaPipe Tasks (file identifier ``M001``); the
numbers below are its field positions and enum values.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import flatbuffers

IDENTIFIER = b"M001"
MIN_PARSER_VERSION = "1.0.0"

_TENSOR_AXIS_LABELS = 2
_RGB, _GRAYSCALE = 1, 2
_FEATURE, _IMAGE = 1, 2
_NORMALIZATION = 1


@dataclass(frozen=True, kw_only=True)
class ImageInput:
    """What a reader does with an image: resize to the size, then ``(value - mean) / std`` a channel."""

    height: int
    width: int
    gray: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class TensorInfo:
    """One tensor. ``labels_file`` names the classes along its last axis."""

    name: str
    description: str = ""
    image: ImageInput | None = None
    labels_file: str = ""


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """The root table. Tensors are in the order of the model's inputs and outputs."""

    name: str
    description: str
    version: str
    license: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]


def encode(info: ModelInfo) -> bytes:
    """The ``TFLITE_METADATA`` buffer."""
    b = flatbuffers.Builder(1024)
    graph = _table(
        b, 10, refs={2: _vector(b, _tensors(b, info.inputs)), 3: _vector(b, _tensors(b, info.outputs))}
    )
    refs = {0: b.CreateString(info.name), 1: b.CreateString(info.description)}
    refs |= {2: b.CreateString(info.version), 3: _vector(b, [graph])}
    if info.license:
        refs[5] = b.CreateString(info.license)
    refs[7] = b.CreateString(MIN_PARSER_VERSION)
    b.Finish(_table(b, 8, refs=refs), file_identifier=IDENTIFIER)
    return bytes(b.Output())


def _tensors(b: flatbuffers.Builder, tensors: Sequence[TensorInfo]) -> list[int]:
    return [_tensor(b, t) for t in tensors]


def _tensor(b: flatbuffers.Builder, tensor: TensorInfo) -> int:
    refs = {0: b.CreateString(tensor.name), 3: _content(b, tensor.image)}
    if tensor.description:
        refs[1] = b.CreateString(tensor.description)
    if tensor.image is not None:
        options = _table(b, 2, refs={0: _floats(b, tensor.image.mean), 1: _floats(b, tensor.image.std)})
        refs[4] = _vector(b, [_table(b, 2, refs={1: options}, bytes_={0: _NORMALIZATION})])
    if tensor.labels_file:
        name = b.CreateString(tensor.labels_file)
        refs[6] = _vector(b, [_table(b, 5, refs={0: name}, bytes_={2: _TENSOR_AXIS_LABELS})])
    return _table(b, 7, refs=refs)


def _content(b: flatbuffers.Builder, image: ImageInput | None) -> int:
    if image is None:
        return _table(b, 3, refs={1: _table(b, 0)}, bytes_={0: _FEATURE})
    size = _table(b, 2, uints={0: image.width, 1: image.height})
    color = _GRAYSCALE if image.gray else _RGB
    return _table(b, 3, refs={1: _table(b, 2, refs={1: size}, bytes_={0: color})}, bytes_={0: _IMAGE})


def _table(
    b: flatbuffers.Builder,
    fields: int,
    *,
    refs: dict[int, int] | None = None,
    bytes_: dict[int, int] | None = None,
    uints: dict[int, int] | None = None,
) -> int:
    b.StartObject(fields)
    for slot, offset in (refs or {}).items():
        b.PrependUOffsetTRelativeSlot(slot, offset, 0)
    for slot, value in (uints or {}).items():
        b.PrependUint32Slot(slot, value, 0)
    for slot, value in (bytes_ or {}).items():
        b.PrependInt8Slot(slot, value, 0)
    return int(b.EndObject())


def _vector(b: flatbuffers.Builder, offsets: Sequence[int]) -> int:
    b.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        b.PrependUOffsetTRelative(offset)
    return int(b.EndVector())


def _floats(b: flatbuffers.Builder, values: Sequence[float]) -> int:
    # flatbuffers are built back to front.
    b.StartVector(4, len(values), 4)
    for value in reversed(values):
        b.PrependFloat32(struct.unpack("<f", struct.pack("<f", value))[0])
    return int(b.EndVector())
