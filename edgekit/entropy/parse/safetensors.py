"""safetensors: an 8-byte length, a JSON header, the tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping

from edgekit.entropy.parse.span import Span

_DTYPES = {
    "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I8": "int8", "U8": "uint8", "I16": "int16",
    "U16": "uint16", "I32": "int32",
}  # fmt: skip
_MAX_HEADER = 100_000_000


def spans(name: str, data: memoryview, files: Mapping[str, memoryview]) -> list[Span]:
    """The tensors of one file; none if it is not safetensors."""
    del files
    if len(data) < 8:
        return []
    length = int.from_bytes(data[:8], "little")
    if length > min(len(data) - 8, _MAX_HEADER):
        return []
    try:
        header = json.loads(bytes(data[8 : 8 + length]))
    except (ValueError, RecursionError):
        return []
    if not isinstance(header, dict):
        return []
    return [s for key, row in header.items() if (s := _span(name, key, row, 8 + length)) is not None]


def _span(file: str, name: str, row: object, base: int) -> Span | None:
    match row:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(begin), int(end)]}:
            if dtype in _DTYPES and all(isinstance(d, int) for d in shape):
                return Span(
                    file=file, name=name, dtype=_DTYPES[dtype], shape=tuple(shape), offset=base + begin,
                    size=end - begin,
                )  # fmt: skip
    return None
