"""Which tensors a correction rescaled channel by channel, written where they are made.

Equalization and smoothing keep what a model computes, not what its inner tensors hold: a reader that compares
them with the float model's must know the factors.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

    from edgekit.quantize.params import Floats

_KEY = "edgekit.rescaled"


@dataclass(frozen=True, kw_only=True)
class Factors:
    """What a tensor's channels were multiplied by; ``axis`` is 1 or -1."""

    axis: int
    values: tuple[float, ...]


def note(node: ir.Node, values: Floats, axis: int) -> None:
    """Record that the first output of ``node`` holds ``values`` times what it held before."""
    known = _parsed(node.metadata_props.get(_KEY, ""))
    if known is not None and known.axis == axis:
        values = values * np.asarray(known.values, np.float32)
    text = base64.b64encode(np.ascontiguousarray(values, "<f4").tobytes()).decode()
    node.metadata_props[_KEY] = f"{axis}:{text}"


def read(node: onnx.NodeProto) -> Factors | None:
    """What :func:`note` recorded; ``None`` for nothing, or what it never wrote."""
    return _parsed(next((p.value for p in node.metadata_props if p.key == _KEY), ""))


def _parsed(text: str) -> Factors | None:
    axis, _, encoded = text.partition(":")
    try:
        values = np.frombuffer(base64.b64decode(encoded, validate=True), "<f4")
    except (binascii.Error, ValueError):
        return None
    if axis not in ("1", "-1") or not values.size or not (np.isfinite(values) & (values > 0)).all():
        return None
    return Factors(axis=int(axis), values=tuple(float(v) for v in values))
