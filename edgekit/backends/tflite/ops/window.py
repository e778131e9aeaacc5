"""What convolutions and pools share: ONNX's padding attributes, and TFLite's way to say the same."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgekit.backends.tflite.builder import Builder
from edgekit.backends.tflite.ir import Tensor
from edgekit.backends.tflite.registry import Refusal


class WindowAttributes(TypedDict, total=False):
    """The attributes that convolutions and pools share."""

    auto_pad: str
    dilations: Sequence[int]
    kernel_shape: Sequence[int]
    pads: Sequence[int]
    strides: Sequence[int]


@dataclass(frozen=True, slots=True)
class Window:
    """A sliding window over the spatial axes; ``pads`` are ``(before, after)`` an axis, in elements."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]

    def output(self, sizes: Sequence[int]) -> tuple[int, ...]:
        """Output sizes of the spatial axes."""
        spans = zip(sizes, self.kernel, self.strides, self.dilations, self.pads, strict=True)
        out = tuple((n + sum(p) - (k - 1) * d - 1) // s + 1 for n, k, s, d, p in spans)
        if min(out, default=1) < 1:
            raise Refusal(f"the window {self.kernel} does not fit into {tuple(sizes)}")
        return out

    def is_same(self, sizes: Sequence[int]) -> bool:
        """Whether TFLite's SAME padding puts exactly these pads around an input of ``sizes``."""
        spans = zip(sizes, self.kernel, self.strides, self.dilations, strict=True)
        return tuple(same_pads(n, k, s, d) for n, k, s, d in spans) == self.pads


def same_pads(size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """TFLite's SAME padding of one axis, ``(before, after)``."""
    total = max((math.ceil(size / stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
    return total // 2, total - total // 2


def make_window(sizes: Sequence[int], attributes: WindowAttributes, kernel: Sequence[int] = ()) -> Window:
    """ONNX's window attributes with their defaults; ``auto_pad`` is resolved for ``sizes``.

    ``kernel`` stands for ``kernel_shape`` where that is left out.
    """
    n = len(sizes)
    kernel = attributes.get("kernel_shape") or kernel
    strides = tuple(attributes.get("strides") or (1,) * n)
    dilations = tuple(attributes.get("dilations") or (1,) * n)
    pads, auto_pad = attributes.get("pads"), attributes.get("auto_pad", "NOTSET")
    if len(kernel) != n or len(strides) != n or len(dilations) != n:
        raise Refusal(f"{len(kernel)} kernel axes on {n} spatial axes")
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        spans = zip(sizes, kernel, strides, dilations, strict=True)
        both = [same_pads(*span) for span in spans]
        # SAME_LOWER puts the odd element in front.
        margins = tuple(p if auto_pad == "SAME_UPPER" else (p[1], p[0]) for p in both)
    elif auto_pad == "VALID" or not pads:
        margins = ((0, 0),) * n
    else:
        margins = tuple((int(pads[i]), int(pads[i + n])) for i in range(n))
    return Window(tuple(kernel), strides, dilations, margins)


def padded(g: Builder, x: Tensor, window: Window, value: float = 0.0) -> tuple[Tensor, int]:
    """``x`` (channels last) and the TFLite padding code that together pad as ``window`` says.

    Negative pads crop. ``value`` is what the margin holds, in real numbers.
    """
    sizes = x.shape[1:-1]
    if not any(any(p) for p in window.pads):
        return x, schema.Padding.VALID
    # XNNPACK pads inside its convolution: a PAD in front would copy the activation.
    if value == 0.0 and window.is_same(sizes):
        return x, schema.Padding.SAME
    if any(p < 0 for pair in window.pads for p in pair):
        x = crop(g, x, [(max(-a, 0), max(-b, 0)) for a, b in window.pads])
    return pad(g, x, [(0, 0), *((max(a, 0), max(b, 0)) for a, b in window.pads), (0, 0)], value), (
        schema.Padding.VALID
    )


def pad(g: Builder, x: Tensor, pads: Sequence[tuple[int, int]], value: float = 0.0) -> Tensor:
    """Constant padding of a tensor, ``(before, after)`` an axis."""
    if not any(any(p) for p in pads):
        return x
    shape = [d + a + b for d, (a, b) in zip(x.shape, pads, strict=True)]
    table = g.constant(np.asarray(pads, np.int32))
    if value == 0.0:
        return g.emit("PAD", [x, table], shape, x)
    if x.quant is not None:
        fill = g.constant(x.quant.quantize(np.asarray([value], np.float32), x.dtype), quant=x.quant)
    else:
        fill = g.constant(np.asarray([value], x.dtype))
    return g.emit("PADV2", [x, table, fill], shape, x)


def crop(g: Builder, x: Tensor, crops: Sequence[tuple[int, int]]) -> Tensor:
    """Cut ``(before, after)`` elements off the spatial axes of a channels-last tensor."""
    begin = [0, *(a for a, _ in crops), 0]
    size = [x.shape[0], *(n - a - b for n, (a, b) in zip(x.shape[1:-1], crops, strict=True)), x.shape[-1]]
    return g.slice(x, begin, size)
