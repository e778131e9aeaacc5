"""OpenVINO IR: ``Const`` layers of the .xml point into the .bin beside it.

Read by pattern, not by an XML parser: nothing in the file can make it expand or reach outside.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath

from edgekit.entropy.parse.span import Span

_DTYPES = {
    "f32": "float32", "f16": "float16", "bf16": "bfloat16", "i8": "int8", "u8": "uint8", "i16": "int16",
    "u16": "uint16", "i32": "int32", "i4": "int4", "u4": "uint4",
}  # fmt: skip
# Possessive, and none reaches into the next tag: what is no layer is passed once, whatever the file says.
_LAYER = re.compile(rb"<layer\b([^<>]*+)>\s*+<data\b([^<>]*+)>")
_ATTRIBUTE = re.compile(rb'\b(\w++)="([^"]*+)"')


def spans(name: str, data: memoryview, files: Mapping[str, memoryview]) -> list[Span]:
    """The constants that the .xml ``name`` describes in its .bin; none without a .bin."""
    weights = str(PurePosixPath(name).with_suffix(".bin"))
    if weights not in files:
        return []
    out = []
    for match in _LAYER.finditer(bytes(data)):
        layer, row = (dict(_ATTRIBUTE.findall(match[i])) for i in (1, 2))
        if layer.get(b"type") != b"Const" or b"name" not in layer or not match[2].endswith(b"/"):
            continue
        dtype = _DTYPES.get(row.get(b"element_type", b"").decode("ascii", "replace"))
        try:
            shape = tuple(int(d) for d in row.get(b"shape", b"").split(b",") if d.strip())
            offset, size = int(row[b"offset"]), int(row[b"size"])
        except (KeyError, ValueError):
            continue
        if dtype is not None:
            label = layer[b"name"].decode("utf-8", "replace")
            out.append(Span(file=weights, name=label, dtype=dtype, shape=shape, offset=offset, size=size))
    return out
