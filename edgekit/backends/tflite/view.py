"""How an ONNX value is held: a TFLite tensor and the order of its axes.

Layout is not converted, it is bookkeeping. A convolution leaves its result as NHWC together with
``perm = (0, 2, 3, 1)``; what does not care about axes computes on the tensor as it lies; ONNX's Transpose
only composes permutations. A TRANSPOSE operator appears where somebody needs a certain order
(:meth:`Builder.layout`), once a tensor and order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from edgekit.backends.tflite.ir import Array, DType, Quant, Shape, Tensor

Perm: TypeAlias = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class View:
    """An ONNX value: axis ``i`` of ``tensor`` carries ONNX axis ``perm[i]``.

    ``scramble`` is set only between a Flatten and the fully connected layers behind it: the last axis then
    lies in another order, ``scramble[i]`` being the ONNX index of stored element ``i``.
    """

    tensor: Tensor
    perm: Perm
    scramble: tuple[int, ...] | None = None

    @classmethod
    def of(cls, tensor: Tensor) -> View:
        """A tensor in ONNX order."""
        return cls(tensor, tuple(range(tensor.rank)))

    @property
    def shape(self) -> Shape:
        """The ONNX shape."""
        if self.is_plain:
            return self.tensor.shape
        out = [0] * len(self.perm)
        for i, axis in enumerate(self.perm):
            out[axis] = self.tensor.shape[i]
        return tuple(out)

    @property
    def rank(self) -> int:
        """Number of axes."""
        return len(self.perm)

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.tensor.size

    @property
    def dtype(self) -> DType:
        """Stored element type."""
        return self.tensor.dtype

    @property
    def quant(self) -> Quant | None:
        """The tensor's quantization, its axis counted in tensor order."""
        return self.tensor.quant

    @property
    def is_plain(self) -> bool:
        """Whether the axes are in ONNX order."""
        return self.perm == tuple(range(len(self.perm)))

    @property
    def const(self) -> Array | None:
        """The real values in ONNX order if the value is constant (dequantized to float32 if quantized)."""
        stored = self.tensor.data
        if stored is None:
            return None
        real = stored if self.tensor.quant is None else self.tensor.quant.dequantize(stored)
        return np.transpose(real, inverse(self.perm))

    def position(self, axis: int) -> int:
        """Where ONNX ``axis`` (negative counts from the end) lies in the tensor."""
        return self.perm.index(axis % self.rank if self.rank else axis)

    def with_tensor(self, tensor: Tensor) -> View:
        """The same order of axes on another tensor of the same rank."""
        return View(tensor, self.perm, self.scramble)


@dataclass(frozen=True, slots=True)
class Items(View):
    """A sequence of values, known while the graph is lowered; ``tensor`` stands for nothing."""

    items: tuple[View, ...] = ()

    @classmethod
    def of_views(cls, items: Iterable[View]) -> Items:
        """The sequence of some values."""
        return cls(Tensor((0,), np.dtype(np.float32)), (0,), None, tuple(items))


def inverse(perm: Sequence[int]) -> Perm:
    """The permutation that undoes ``perm``."""
    out = [0] * len(perm)
    for i, p in enumerate(perm):
        out[p] = i
    return tuple(out)


def compose(perm: Sequence[int], then: Sequence[int]) -> Perm:
    """The view of ``np.transpose(x, then)`` on a tensor that is a view ``perm`` of ``x``."""
    back = inverse(then)
    return tuple(back[p] for p in perm)


def channels_last(rank: int) -> Perm:
    """N, spatial axes, C: the order in which TFLite's convolutions and pools compute."""
    return (0, *range(2, rank), 1) if rank > 2 else tuple(range(rank))


@dataclass(frozen=True, slots=True)
class Group:
    """Consecutive axes of a reshape's input that become consecutive axes of its output."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def reshape_groups(before: Shape, after: Shape) -> list[Group]:
    """Split a reshape into the smallest independent groups of axes.

    ``(2, 3, 4, 5) → (2, 12, 5)`` gives ``0→0``, ``1 2→1``, ``3→2``. Sizes must be positive.
    """
    groups: list[Group] = []
    i = j = 0
    while i < len(before) and j < len(after):
        ins, outs = [i], [j]
        a, b = before[i], after[j]
        i, j = i + 1, j + 1
        while a != b:
            if a < b:
                a *= before[i]
                ins.append(i)
                i += 1
            else:
                b *= after[j]
                outs.append(j)
                j += 1
        groups.append(Group(tuple(ins), tuple(outs)))
    if i < len(before) or j < len(after):
        last = groups.pop() if groups else Group((), ())
        groups.append(
            Group(last.inputs + tuple(range(i, len(before))), last.outputs + tuple(range(j, len(after))))
        )
    return groups


def reshape_order(perm: Perm, shape: Shape, groups: Sequence[Group]) -> tuple[Perm, Perm, bool]:
    """``(tensor order needed, order of the result, needed now?)`` for a reshape by ``groups``.

    The groups keep the order in which their innermost axes lie in the tensor, so that what is contiguous
    stays so; within a group the axes must ascend. The third item says that the present order will do.
    """
    lying = [axis for axis in perm if shape[axis] != 1]
    place = {axis: i for i, axis in enumerate(lying)}
    keyed: list[tuple[float, int]] = []
    previous = -1.0
    for n, group in enumerate(groups):
        places = [place[axis] for axis in group.inputs if axis in place]
        # A group of unit axes only follows its predecessor.
        previous = float(max(places)) if places else previous + 1e-6
        keyed.append((previous, n))
    order = [groups[n] for _, n in sorted(keyed)]
    needed = tuple(axis for group in order for axis in group.inputs)
    result = tuple(axis for group in order for axis in group.outputs)
    return needed, result, [axis for axis in needed if shape[axis] != 1] == lying
