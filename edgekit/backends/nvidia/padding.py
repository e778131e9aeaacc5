"""Whether each window of a MaxPool holds a number, so that what is padded with -inf never comes out of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgekit.graph.edit import attribute, constant, integers, produced_by


@dataclass(frozen=True, kw_only=True)
class _Axis:
    """Windows along one axis: ``before`` and ``behind`` are padding, of which ``own`` is the pool's behind; ``size`` is
    ``None`` where it is open; ``up``: the number of windows is rounded up."""

    size: int | None
    before: int
    behind: int
    own: int
    kernel: int
    dilation: int
    stride: int
    up: bool

    @property
    def always_real(self) -> bool:
        reach = self.dilation * (self.kernel - 1)
        if self.size is None:  # not less than a dilation: no window steps over all of it
            behind = self.behind <= reach and not (self.up and self.behind > self.own)
            return self.before <= reach and behind
        end = self.before + self.size  # where the padding behind begins
        room = end + self.behind - reach - 1  # where the last whole window may start
        starts = [*range(0, room + 1, self.stride)]
        more = self.stride * len(starts)
        if self.up and more - self.stride < room and more < end + self.behind - self.own:
            starts.append(more)
        return all(self._first(start) < end for start in starts)

    def _first(self, start: int) -> int:
        """The first place of a window behind the padding before; far behind all where it has none."""
        steps = max(0, -(-(self.before - start) // self.dilation))
        return start + steps * self.dilation if steps < self.kernel else 1 << 62


def sees_nothing(pool: ir.Node) -> bool:
    """Whether a window of ``pool`` may lie in its own padding alone."""
    axes = _axes(pool, pool.inputs[0], None)
    return axes is not None and not all(axis.always_real for axis in axes)


def largest_of(pool: ir.Node) -> Sequence[ir.Value | None]:
    """What the numbers that come out of a MaxPool are among: where it reads what was padded with -inf, and no window
    lies in the padding alone, what was there before."""
    pad = produced_by(pool.inputs[0], "Pad")
    if pad is None or attribute(pad, "mode", "constant") != "constant" or len(pad.inputs) != 3:
        return pool.inputs
    around, value = constant(pad.inputs[1]), constant(pad.inputs[2])
    if around is None or value is None or value.size != 1 or not np.isneginf(value.reshape(())):
        return pool.inputs
    axes = _axes(pool, pad.inputs[0], around)
    if axes is None or (around < 0).any() or not all(axis.always_real for axis in axes):
        return pool.inputs
    return pad.inputs[:1]


def _axes(pool: ir.Node, x: ir.Value | None, around: np.ndarray | None) -> list[_Axis] | None:
    """``around``: what a Pad puts around ``x`` before the pool does. ``None``: not known."""
    kernel = integers(pool, "kernel_shape") or []
    rank = len(kernel)
    if attribute(pool, "auto_pad", "NOTSET") != "NOTSET":
        return None
    pads = integers(pool, "pads") or [0] * (2 * rank)
    outer = np.zeros(2 * (2 + rank), np.int64) if around is None else around.ravel()
    if outer.size != 2 * (2 + rank) or outer[:2].any() or outer[2 + rank : 4 + rank].any():
        return None
    shape = x.shape if x is not None and x.shape is not None and len(x.shape) == 2 + rank else None
    sizes = [None] * rank if shape is None else [d if isinstance(d, int) else None for d in shape[2:]]
    dilations = integers(pool, "dilations") or [1] * rank
    strides = integers(pool, "strides") or [1] * rank
    return [
        _Axis(
            size=sizes[i],
            before=pads[i] + int(outer[2 + i]),
            behind=pads[rank + i] + int(outer[4 + rank + i]),
            own=pads[rank + i],
            kernel=kernel[i],
            dilation=dilations[i],
            stride=strides[i],
            up=bool(attribute(pool, "ceil_mode", 0)),
        )
        for i in range(rank)
    ]
