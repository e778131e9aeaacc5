"""Dynamic dimensions: the indices of what is not zero, the boxes that are left.

Such a tensor has one dimension (:attr:`Tensor.dynamic`) in the place of whose size its upper bound stands. LiteRT
resizes what is behind it as it runs, as long as no constant spells the size out; the operators for which that
holds are in the table here, the others are refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import numpy as np

from edgekit.backends.tflite.ir import INT32, Options, Shape, Tensor
from edgekit.backends.tflite.registry import Refusal

_Inputs = list[Tensor | None]
_Rule = Callable[[_Inputs, Shape, Any], int]

_SAME = ("CAST", "NEG", "ABS", "EXP", "SQRT", "LOGISTIC", "TANH", "RELU", "LOGICAL_NOT")
_PAIRS = (
    "ADD",
    "SUB",
    "MUL",
    "DIV",
    "FLOOR_MOD",
    "EQUAL",
    "NOT_EQUAL",
    "LESS",
    "LESS_EQUAL",
    "GREATER",
    "GREATER_EQUAL",
)


def dynamic_dimension(code: str, inputs: _Inputs, shape: Shape, options: Options) -> int | None:
    """Which dimension of an operator's result is dynamic, if any. Constants among ``inputs`` that spell the bound out
    are replaced in the list by ones that do not.

    Raises :class:`Refusal` for operators that need to know the size.
    """
    if all(t is None or t.dynamic is None for t in inputs):
        return None
    rule = _RULES.get(code)
    if rule is None:
        refuse(f"{code} would have to know how large its input is")
    return rule(inputs, shape, options)


def refuse(what: str) -> NoReturn:
    """Raise the refusal of everything here."""
    raise Refusal(
        f"{what}: the size of the result depends on the data, and files are compiled for fixed shapes"
    )


def reshaped_axis(x: Tensor, shape: Sequence[int]) -> int:
    """The dynamic dimension of ``x`` in ``shape``."""
    assert x.dynamic is not None
    for axis, size in enumerate(shape):
        if size == x.shape[x.dynamic] and math.prod(shape[:axis]) == math.prod(x.shape[: x.dynamic]):
            return axis
    refuse("a reshape that splits or merges an axis")


def _data(inputs: _Inputs, position: int = 0) -> Tensor:
    tensor = inputs[position]
    assert tensor is not None
    return tensor


def _same(inputs: _Inputs, shape: Shape, options: Options) -> int:
    del shape, options
    axis = _data(inputs).dynamic
    assert axis is not None
    return axis


def _pair(inputs: _Inputs, shape: Shape, options: Options) -> int:
    """One side dynamic, the other of size 1 along that axis."""
    del options
    sides = [t for t in inputs if t is not None]
    axes = [t.dynamic + len(shape) - t.rank for t in sides if t.dynamic is not None]
    axis = axes[0]
    fixed = [t for t in sides if t.dynamic is None]
    one = all(t.rank < len(shape) - axis or t.shape[axis - len(shape) + t.rank] == 1 for t in fixed)
    # Two upper bounds say nothing of two sizes: LiteRT would stop in the kernel.
    if len(axes) != 1 or not one:
        refuse("an operator on two tensors that may differ in size")
    return axis


def _transpose(inputs: _Inputs, shape: Shape, options: Options) -> int:
    del shape, options
    order = _data(inputs, 1).data
    assert order is not None
    return int(np.flatnonzero(order == _data(inputs).dynamic)[0])


def _reshape(inputs: _Inputs, shape: Shape, options: Options) -> int:
    axis = reshaped_axis(_data(inputs), shape)
    target = np.asarray([-1 if i == axis else d for i, d in enumerate(shape)], np.int32)
    # The shape stands in the file twice, as an input and as an option; both have to say -1.
    options.newShape = target
    inputs[1] = Tensor(target.shape, INT32, data=target)
    return axis


def _gather(inputs: _Inputs, shape: Shape, options: Options) -> int:
    del shape
    table, index = _data(inputs), _data(inputs, 1)
    if table.dynamic is None:
        assert index.dynamic is not None
        return int(options.axis) + index.dynamic
    if index.dynamic is not None or options.axis == table.dynamic:
        refuse("a lookup along an axis of unknown size")
    return table.dynamic if table.dynamic < options.axis else table.dynamic - 1 + index.rank


def _gather_nd(inputs: _Inputs, shape: Shape, options: Options) -> int:
    del shape, options
    table, index = _data(inputs), _data(inputs, 1)
    if table.dynamic is not None or index.dynamic is None or index.dynamic == index.rank - 1:
        refuse("a lookup in a table of unknown size")
    return index.dynamic


def _slice(inputs: _Inputs, shape: Shape, options: Options) -> int:
    """Along the other axes; -1 takes what is there."""
    del shape, options
    x, begin, size = (_data(inputs, i) for i in range(3))
    assert x.dynamic is not None
    assert begin.data is not None
    assert size.data is not None
    # From the middle on, the bound's size would reach beyond what is there.
    if begin.data[x.dynamic] != 0 or size.data[x.dynamic] != x.shape[x.dynamic]:
        refuse("a part of an axis of unknown size")
    sizes = np.array(size.data)
    sizes[x.dynamic] = -1
    inputs[2] = Tensor(sizes.shape, size.dtype, data=sizes)
    return x.dynamic


_RULES: dict[str, _Rule] = {
    **dict.fromkeys(_SAME, _same),
    **dict.fromkeys(_PAIRS, _pair),
    "TRANSPOSE": _transpose,
    "RESHAPE": _reshape,
    "GATHER": _gather,
    "GATHER_ND": _gather_nd,
    "SLICE": _slice,
}
