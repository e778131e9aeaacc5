"""The files of "Deep Compression" (Han et al., ICLR 2016), as published for SqueezeNet and AlexNet.

A uint32 count of stored weights for every layer; then for every layer a codebook (16 or 256 float32, the
first is 0), the biases (float32), the codebook indices (4 or 8 bits a weight) and the distances between
stored weights (4 bits, less one). Neither the number of layers nor that of biases is written down; both
follow from where the next codebook begins and from the end of the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from edgekit.entropy.parse.span import Span

_MAX_LAYERS = 256
_MAX_BIASES = 1 << 14
_LARGEST = 1e4


def spans(name: str, data: memoryview, files: Mapping[str, memoryview]) -> list[Span]:
    """Codebooks, biases and streams of all layers; none if the file does not come out even."""
    del files
    head = np.frombuffer(data[: len(data) // 4 * 4][: 4 * _MAX_LAYERS], "<u4").astype(np.int64)
    for layers in range(1, len(head)):
        if not _codebook(data, 4 * layers, 256) and not _codebook(data, 4 * layers, 16):
            continue
        out: list[Span] = []
        at = 4 * layers
        for number in range(layers):
            layer_spans, at = _layer(data, at, int(head[number]), number == layers - 1)
            if not layer_spans:
                break
            out += [replace(s, file=name, name=f"layer{number}.{s.name}") for s in layer_spans]
            out[-2] = replace(out[-2], palette=out[-4].name)
        if at == len(data):
            return out
    return []


def _codebook(data: memoryview, at: int, entries: int) -> bool:
    """Whether a zero and then finite numbers of ordinary size, none zero, begin at ``at``."""
    if at + 4 * entries > len(data) or bytes(data[at : at + 4]) != bytes(4):
        return False
    rest = np.frombuffer(data[at + 4 : at + 4 * entries], "<f4")
    with np.errstate(invalid="ignore"):
        sane = np.isfinite(rest) & (np.abs(rest) < _LARGEST) & (np.abs(rest) > 1e-8)
    return bool(sane.all())


def _layer(data: memoryview, at: int, stored: int, last: bool) -> tuple[list[Span], int]:
    """The four spans of the layer that begins at ``at`` and where the next begins; none if there is none."""
    for entries, bits in ((256, 8), (16, 4)):
        if not stored or not _codebook(data, at, entries):
            continue
        indices, distances = (stored * bits + 7) // 8, (stored + 1) // 2
        streams = at + 4 * entries
        for biases in range(1, _MAX_BIASES):
            begin = streams + 4 * biases
            end = begin + indices + distances
            if end > len(data):
                break
            ends = end == len(data) if last else _codebook(data, end, 256) or _codebook(data, end, 16)
            if ends:
                kind = "uint8" if bits == 8 else "uint4"
                return [
                    _span("codebook", "float32", entries, at, 4 * entries),
                    _span("bias", "float32", biases, streams, 4 * biases),
                    _span("index", kind, stored, begin, indices),
                    _span("distance", "uint4", stored, begin + indices, distances),
                ], end
    return [], at


def _span(name: str, dtype: str, count: int, offset: int, size: int) -> Span:
    return Span(file="", name=name, dtype=dtype, shape=(count,), offset=offset, size=size)
