"""The integers of a GGUF file as :class:`BlockWeights`, without rounding them a second time.

Q8_0, Q4_0 and Q4_1 are blocks of 32 along the inputs with scales in float16
(https://github.com/ggml-org/ggml/blob/master/docs/gguf.md and ggml-common.h): ``d * q``, ``d * (q - 8)`` and
``d * q + m``. Other types are left to be rounded anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from edgekit.core.foreign import translated
from edgekit.load.gguf_reader import open_gguf
from edgekit.quantize.block_weights import BLOCK, BlockWeights

if TYPE_CHECKING:
    from edgekit.types import Array

_BYTES = {"Q4_0": 18, "Q4_1": 20, "Q8_0": 34}


def read(path: Path, weights: Mapping[str, torch.Tensor]) -> dict[str, BlockWeights]:
    """The blocks of every matrix of ``weights`` (``[outputs, inputs]`` by module name) that the file has as such.

    Which tensor of the file is which matrix, and in what order its rows are (files of the Llama family have those of
    queries and keys in another), is told by the numbers: a matrix is taken over only where its blocks, widened, are it.
    """
    with translated(f"{path} cannot be read", hint="it is damaged, or of a newer version of GGUF"):
        tensors = [t for t in open_gguf(path).tensors if t.tensor_type.name in _BYTES]
        by_shape: dict[tuple[int, int], list[tuple[str, Array]]] = {}
        for tensor in tensors:
            columns, rows = (int(n) for n in tensor.shape)
            by_shape.setdefault((rows, columns), []).append((tensor.tensor_type.name, tensor.data))
    found = {}
    for name, weight in weights.items():
        rows, columns = weight.shape
        candidates = by_shape.get((int(rows), int(columns)), [])
        for index, (kind, data) in enumerate(candidates):
            blocks = _in_order(kind, data, weight)
            if blocks is not None:
                found[name] = blocks
                candidates.pop(index)
                break
    return found


def _in_order(kind: str, data: Array, weight: torch.Tensor) -> BlockWeights | None:
    """The blocks in the order of ``weight``'s rows; ``None`` where they are another matrix."""
    rows, columns = weight.shape
    wanted = weight.numpy()
    raw = np.ascontiguousarray(data).view(np.uint8).reshape(rows, columns // BLOCK, _BYTES[kind])
    first = _blocks(kind, raw[:1]).widened()[0]
    places = np.flatnonzero(np.isclose(wanted[:, :BLOCK], first[:BLOCK], rtol=1e-5, atol=1e-7).all(axis=1))
    if not places.size:
        return None
    blocks = _blocks(kind, raw)
    widened = blocks.widened()
    for order in _orders(rows):
        if np.allclose(widened[order], wanted, rtol=1e-5, atol=1e-7):
            return blocks if isinstance(order, slice) else blocks.selected(order)
    return None


def _orders(rows: int) -> list[slice | Array]:
    """As it is, and with the two halves of each head interleaved, for every size of head."""
    found: list[slice | Array] = [slice(None)]
    for size in (64, 128, 80, 96, 32, 256, 16):
        if rows % size == 0:
            within = np.arange(rows).reshape(rows // size, size // 2, 2).swapaxes(1, 2)
            found.append(within.reshape(-1))
    return found


def _blocks(kind: str, raw: Array) -> BlockWeights:
    rows = raw.shape[0]

    def half(start: int) -> Array:
        return np.ascontiguousarray(raw[..., start : start + 2]).view(np.float16)[..., 0].astype(np.float32)

    if kind == "Q8_0":
        integers = (raw[..., 2:].view(np.int8).astype(np.int16) + 128).astype(np.uint8)
        return BlockWeights(bits=8, integers=integers.reshape(rows, -1), scales=half(0))
    start = 2 if kind == "Q4_0" else 4
    packed = raw[..., start:]
    integers = np.concatenate([packed & 15, packed >> 4], axis=-1)
    scales = half(0)
    offsets = None if kind == "Q4_0" else half(2) + 8.0 * scales
    return BlockWeights(bits=4, integers=integers.reshape(rows, -1), scales=scales, offsets=offsets)
