"""Reductions, in whatever order the axes lie."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from edgekit.backends.tflite.builder import Builder
from edgekit.backends.tflite.ir import BOOL, FLOAT32, INT32, INT64, Tensor
from edgekit.backends.tflite.ops.shape import constant_ints
from edgekit.backends.tflite.registry import Refusal, Rule, op
from edgekit.backends.tflite.view import View

_Core = Callable[[Builder, Tensor, Sequence[int], bool], Tensor]


def reduce_view(g: Builder, x: View, axes: Sequence[int], keepdims: bool, core: _Core) -> View:
    """Apply ``core(g, tensor, tensor_axes, keepdims)`` to ONNX ``axes`` of a view."""
    gone = {a % x.rank for a in axes}
    places = sorted(x.position(a) for a in gone)
    out = core(g, x.tensor, places, keepdims)
    if keepdims:
        return View(out, x.perm)
    remaining = [p for p in x.perm if p not in gone]
    rank = {p: i for i, p in enumerate(sorted(remaining))}
    return View(out, tuple(rank[p] for p in remaining))


def _builtin(code: str) -> _Core:
    def core(g: Builder, x: Tensor, axes: Sequence[int], keepdims: bool) -> Tensor:
        supported = (FLOAT32, INT32, INT64)
        if x.quant is None and x.dtype not in supported:
            wide = g.cast(x, INT32)
            return g.cast(g.reduce(code, wide, axes, keepdims), x.dtype)
        return g.reduce(code, x, axes, keepdims)

    return core


def _mean(g: Builder, x: Tensor, axes: Sequence[int], keepdims: bool) -> Tensor:
    return g.reduce("MEAN", x, axes, keepdims)


def _l1(g: Builder, x: Tensor, axes: Sequence[int], keepdims: bool) -> Tensor:
    return g.reduce("SUM", g.unary("ABS", x), axes, keepdims)


def _sum_square(g: Builder, x: Tensor, axes: Sequence[int], keepdims: bool) -> Tensor:
    return g.reduce("SUM", g.binary("MUL", x, x), axes, keepdims)


def _l2(g: Builder, x: Tensor, axes: Sequence[int], keepdims: bool) -> Tensor:
    return g.unary("SQRT", _sum_square(g, x, axes, keepdims))


def _log_sum(g: Builder, x: Tensor, axes: Sequence[int], keepdims: bool) -> Tensor:
    return g.unary("LOG", g.reduce("SUM", x, axes, keepdims))


def _log_sum_exp(g: Builder, x: Tensor, axes: Sequence[int], keepdims: bool) -> Tensor:
    """max + log(sum(exp(x - max)))."""
    top = g.reduce("REDUCE_MAX", x, axes, True)
    total = g.reduce("SUM", g.unary("EXP", g.binary("SUB", x, top)), axes, True)
    out = g.binary("ADD", g.unary("LOG", total), top)
    shape = [d for i, d in enumerate(out.shape) if keepdims or i not in axes]
    return g.reshape(out, shape)


_FLOAT_ONLY = frozenset({"ReduceL2", "ReduceLogSum", "ReduceLogSumExp"})
_INT16 = frozenset({"ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin"})
_CORES: dict[str, tuple[_Core, Rule]] = {
    "ReduceMean": (_mean, Rule.FREE),
    "ReduceSum": (_builtin("SUM"), Rule.FREE),
    "ReduceMax": (_builtin("REDUCE_MAX"), Rule.SAME),
    "ReduceMin": (_builtin("REDUCE_MIN"), Rule.SAME),
    "ReduceProd": (_builtin("REDUCE_PROD"), Rule.FLOAT),
    "ReduceL1": (_l1, Rule.FLOAT),
    "ReduceL2": (_l2, Rule.FLOAT),
    "ReduceSumSquare": (_sum_square, Rule.FLOAT),
    "ReduceLogSum": (_log_sum, Rule.FLOAT),
    "ReduceLogSumExp": (_log_sum_exp, Rule.FLOAT),
}


def _reduction(
    core: _Core,
    name: str,
    g: Builder,
    x: View,
    axes: View | None = None,
    *,
    keepdims: int = 1,
    noop_with_empty_axes: int = 0,
) -> View:
    reduced = constant_ints(g, axes, "axes")
    if not reduced and noop_with_empty_axes:
        return x
    return _reduced(core, name, g, x, reduced or tuple(range(x.rank)), keepdims)


def _reduction_by_attribute(
    core: _Core, name: str, g: Builder, x: View, *, axes: Sequence[int] | None = None, keepdims: int = 1
) -> View:
    return _reduced(core, name, g, x, axes or tuple(range(x.rank)), keepdims)


def _reduced(core: _Core, name: str, g: Builder, x: View, axes: Sequence[int], keepdims: int) -> View:
    if x.dtype == BOOL and name in ("ReduceMax", "ReduceMin"):
        core = _builtin_bool("REDUCE_ANY" if name == "ReduceMax" else "REDUCE_ALL")
    if math.prod(x.shape) == 0:
        return _of_nothing(g, name, x, axes, bool(keepdims))
    if x.quant is not None and g.result is not None and name in ("ReduceMean", "ReduceSum"):
        return _with_result(g, x, axes, keepdims, "MEAN" if name == "ReduceMean" else "SUM")
    if x.dtype.kind in "iu" and name in _FLOAT_ONLY:
        raise Refusal(f"{name} of {x.dtype}")
    return reduce_view(g, x, axes, bool(keepdims), core)


_NEUTRAL = {"ReduceProd": 1.0, "ReduceMin": math.inf, "ReduceMax": -math.inf}
_LOGARITHMS = ("ReduceLogSum", "ReduceLogSumExp")


def _of_nothing(g: Builder, name: str, x: View, axes: Sequence[int], keepdims: bool) -> View:
    """A reduction of an empty tensor: the neutral element."""
    gone = {a % x.rank for a in axes}
    shape = [1 if i in gone else n for i, n in enumerate(x.shape) if keepdims or i not in gone]
    value = _NEUTRAL.get(name, -math.inf if name in _LOGARITHMS else 0.0)
    if math.isinf(value) and x.dtype.kind in "iu":
        # ONNX: the least and the largest number of the type stand for the infinities.
        value = float(np.iinfo(x.dtype).min if value < 0 else np.iinfo(x.dtype).max)
    if name == "ReduceMean":
        value = math.nan
    if x.dtype == BOOL:
        value = float(name == "ReduceMin")
    return View.of(g.constant(np.full(shape, value, x.dtype)))


def _with_result(g: Builder, x: View, axes: Sequence[int], keepdims: int, code: str) -> View:
    def core(g: Builder, t: Tensor, places: Sequence[int], keep: bool) -> Tensor:
        out = g.reduce(code, t, places, keep)
        assert g.result is not None
        # MEAN and SUM rescale in the kernel, so the output may have parameters of its own.
        out.dtype, out.quant = g.result.dtype, g.result.quant
        return out

    return reduce_view(g, x, axes, bool(keepdims), core)


def _builtin_bool(code: str) -> _Core:
    return lambda g, x, axes, keepdims: g.reduce(code, x, axes, keepdims)


def _register() -> None:
    for name, (core, rule) in _CORES.items():
        from_input = 13 if name == "ReduceSum" else 18
        kinds = ("int8", "int16") if name in _INT16 else ("int8",)
        op(name, since=from_input, rule=rule, quantized=kinds)(partial(_reduction, core, name))
        op(name, since=1, rule=rule, quantized=kinds)(partial(_reduction_by_attribute, core, name))


_register()
