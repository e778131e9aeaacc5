"""Arithmetic, comparison, logic: whatever works element by element, with numpy's broadcasting."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from functools import partial

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from onnx import helper

from edgekit.backends.tflite.builder import Builder
from edgekit.backends.tflite.ir import (
    BOOL,
    FLOAT32,
    INT8,
    INT32,
    INT64,
    TENSOR_TYPES,
    DType,
    Options,
    Quant,
    Shape,
    Tensor,
    Type,
)
from edgekit.backends.tflite.registry import Refusal, Rule, op
from edgekit.backends.tflite.view import Perm, View
from edgekit.backends.tflite.widen import HELD

_KERNEL_RANK = 4


def broadcast(
    g: Builder, code: str, views: Sequence[View], kind: Type | DType | None = None, options: Options = None
) -> View:
    """One operator over views that broadcast against each other, in the order of axes that costs least.

    The result has the (quantized) type that the node is to have, or ``kind``, or the first view's type.
    """
    shape = np.broadcast_shapes(*(v.shape for v in views))
    rank = len(shape)
    perm = _order(views, shape, g.common_order(views, rank))
    tensors = [g.aligned(v, rank, perm) for v in views]
    of = (
        kind if kind is not None else g.type_like(next((v for v in views if v.tensor.data is None), views[0]))
    )
    if isinstance(of, Type) and of.quant is not None:
        tensors = [_as_quantized(g, t, of) for t in tensors]
    laid = tuple(shape[p] for p in perm)
    if rank > _KERNEL_RANK and any(t.shape != laid for t in tensors):
        short, tensors = _collapsed(g, laid, tensors)
        return View(g.reshape(g.emit(code, tensors, short, of, options), laid), perm)
    return View(g.emit(code, tensors, laid, of, options), perm)


def _as_quantized(g: Builder, t: Tensor, of: Type) -> Tensor:
    """A float constant operand of an integer operator, quantized by its own range."""
    if t.quant is not None or t.data is None:
        return t
    return g.quantize(t, Type(of.dtype, covering(t.data, of.dtype)))


def covering(data: np.ndarray, dtype: DType) -> Quant:
    """Per-tensor parameters that represent ``data`` (and zero) with the least step."""
    if dtype != INT8:
        return Quant.per_tensor(max(float(np.max(np.abs(data), initial=0.0)), 1e-9) / 32767)
    low, high = min(float(data.min(initial=0.0)), 0.0), max(float(data.max(initial=0.0)), 0.0)
    scale = max(high - low, 1e-9) / 255
    return Quant.per_tensor(scale, round(-128 - low / scale))


def _order(views: Sequence[View], shape: Shape, usual: Perm) -> Perm:
    """``usual``, or ONNX's order where only that leaves few enough axes to broadcast over."""
    # The builtin kernels broadcast over four axes; merging neighbours depends on the order they lie in.
    plain = tuple(range(len(shape)))
    for perm in (usual, plain):
        full = [(1,) * (len(shape) - v.rank) + v.shape for v in views]
        laid = [[s[p] for p in perm] for s in (shape, *full)]
        if len(shape) <= _KERNEL_RANK or len(_merged(laid[0], laid[1:])) <= _KERNEL_RANK:
            return perm
    return usual


def _merged(shape: Sequence[int], full: Sequence[Sequence[int]]) -> list[list[int]]:
    """Neighbouring axes that broadcast alike, as groups."""
    merged: list[list[int]] = []
    for axis in range(len(shape)):
        alike = [s[axis] == shape[axis] for s in full]
        last = merged[-1] if merged else None
        if last is not None and (
            shape[axis] == 1
            or alike == [s[last[0]] == shape[last[0]] for s in full]
            or math.prod(shape[a] for a in last) == 1
        ):
            if math.prod(shape[a] for a in last) == 1:
                last.insert(0, axis)
            else:
                last.append(axis)
        else:
            merged.append([axis])
    return merged


def _collapsed(g: Builder, shape: Sequence[int], tensors: Sequence[Tensor]) -> tuple[list[int], list[Tensor]]:
    """Merge neighbouring axes that broadcast alike: LiteRT's kernels broadcast over four axes at most.

    Where more are left, the operands are brought to the full shape.
    """
    rank = len(shape)
    merged = _merged(shape, [(1,) * (rank - t.rank) + t.shape for t in tensors])
    if len(merged) > _KERNEL_RANK:
        return list(shape), [_spread(g, t, shape) for t in tensors]
    short = [math.prod(shape[a] for a in axes) for axes in merged]
    reshaped = []
    for t in tensors:
        full = (1,) * (rank - t.rank) + t.shape
        flat = [math.prod(full[a] for a in axes) for axes in merged]
        reshaped.append(t if t.rank == 0 else g.reshape(t, flat))
    return short, reshaped


def _spread(g: Builder, t: Tensor, shape: Sequence[int]) -> Tensor:
    if t.data is not None:
        return Tensor(tuple(shape), t.dtype, t.name, np.broadcast_to(t.data, shape), t.quant)
    return g.broadcast_to(t, shape)


def _variadic(g: Builder, code: str, views: Sequence[View]) -> View:
    return functools.reduce(lambda total, view: broadcast(g, code, (total, view)), views)


def _float_only(view: View, what: str) -> None:
    if view.dtype != FLOAT32:
        raise Refusal(f"{what} of {view.dtype}")


@op("Div")
def div(g: Builder, a: View, b: View) -> View:
    """DIV; a constant divisor becomes a factor; integers divide towards zero."""
    if a.dtype.kind == "f":
        # XNNPACK multiplies quicker than it divides; the factor is rounded once, from float64.
        if b.const is not None and np.all(b.const != 0):
            factor = (np.float64(1.0) / b.const).astype(b.const.dtype)
            if np.all(np.isfinite(factor)):
                return broadcast(g, "MUL", (a, View.of(g.constant(factor))))
        return broadcast(g, "DIV", (a, b))
    if a.dtype == INT32:
        return broadcast(g, "DIV", (a, b))
    if a.dtype.kind not in "iu" or (a.dtype.itemsize == 8 and a.dtype.kind == "u"):
        raise Refusal(f"division of {a.dtype}")
    wide = [g.as_type(v, INT32) for v in (a, b)]
    out = broadcast(g, "DIV", wide)
    return g.as_type(out, a.dtype)


@op("Pow")
def power(g: Builder, a: View, b: View) -> View:
    """SQUARE, SQRT, RSQRT or a chain of products where the exponent is known, else POW."""
    exponent = b.const
    if exponent is not None and exponent.size == 1 and a.dtype == FLOAT32:
        e = float(exponent.reshape(-1)[0])
        x = a.tensor
        if b.rank <= a.rank:
            if e == 1.0:
                return a
            if e == 2.0:
                return a.with_tensor(g.binary("MUL", x, x))
            if e == 3.0:
                return a.with_tensor(g.binary("MUL", g.binary("MUL", x, x), x))
            if e == 0.5:
                return a.with_tensor(g.unary("SQRT", x))
            if e == -0.5:
                return a.with_tensor(g.unary("RSQRT", x))
    if a.dtype.kind == "f":
        return broadcast(g, "POW", (a, g.as_type(b, a.dtype)))
    if a.dtype == INT32 and b.dtype == INT32:
        return broadcast(g, "POW", (a, b))
    if a.dtype == INT64 and exponent is not None and exponent.size == 1 and b.rank <= a.rank:
        return _product(g, a, int(exponent.reshape(-1)[0]))
    if a.dtype == INT64 and a.const is not None and a.const.size == 1 and a.rank <= b.rank:
        return _from_table(g, int(a.const.reshape(-1)[0]), b)
    raise Refusal(f"a power of {a.dtype}")


_LARGEST_POWER = 63


def _product(g: Builder, a: View, exponent: int) -> View:
    """``a`` to a known whole power, by squaring."""
    if not 0 < exponent <= _LARGEST_POWER:
        raise Refusal(f"{a.dtype} to the power of {exponent}")
    square, result = a.tensor, None
    while exponent:
        if exponent % 2:
            result = square if result is None else g.binary("MUL", result, square)
        exponent //= 2
        square = g.binary("MUL", square, square) if exponent else square
    assert result is not None
    return a.with_tensor(result)


def _from_table(g: Builder, base: int, exponents: View) -> View:
    """The powers of a known even number, wrapped around as int64: 0 below 0 and from 2⁶⁴ on."""
    if base % 2 or not base:
        raise Refusal(f"{base} to a power that is computed at run time")
    powers = [(base**i + (1 << 63)) % (1 << 64) - (1 << 63) for i in range(_LARGEST_POWER + 1)]
    table = g.constant(np.asarray([0, *powers, 0], np.int64))
    place = g.cast(g.clamp(exponents.tensor, -1, _LARGEST_POWER + 1), INT32)
    return exponents.with_tensor(g.gather(table, g.binary("ADD", place, 1)))


@op("Mod")
def mod(g: Builder, a: View, b: View, *, fmod: int = 0) -> View:
    """FLOOR_MOD (sign of the divisor); with ``fmod`` the sign of the dividend."""
    if not fmod:
        wide = a.dtype in (INT32, INT64, FLOAT32, np.dtype(np.int16), INT8)
        if not wide:
            x, y = (g.as_type(v, INT32) for v in (a, b))
            out = broadcast(g, "FLOOR_MOD", (x, y))
            return g.as_type(out, a.dtype)
        return broadcast(g, "FLOOR_MOD", (a, b))
    absolute = [v.with_tensor(_absolute(g, v.tensor)) for v in (a, b)]
    rest = broadcast(g, "FLOOR_MOD", absolute)
    sign = a.with_tensor(_sign(g, a.tensor))
    return broadcast(g, "MUL", (rest, sign))


def _absolute(g: Builder, x: Tensor) -> Tensor:
    if x.dtype == FLOAT32 or x.dtype == INT32:
        return g.unary("ABS", x)
    return g.cast(g.unary("ABS", g.cast(x, INT32)), x.dtype)


def _extremum(code: str, g: Builder, *views: View) -> View:
    if g.result is not None:
        # The kernel compares stored values: all operands need the result's parameters.
        views = tuple(v.with_tensor(g.quantize(v.tensor, g.result)) for v in views)
    elif views[0].dtype.kind not in "f" and views[0].dtype not in (INT32, INT64, INT8):
        dtype = views[0].dtype
        wide = [g.as_type(v, INT64) for v in views]
        out = _variadic(g, code, wide)
        return g.as_type(out, dtype)
    return _variadic(g, code, views)


@op("Sum")
def sum_(g: Builder, *views: View) -> View:
    """A chain of ADD."""
    return _variadic(g, "ADD", views)


@op("Mean")
def mean_(g: Builder, *views: View) -> View:
    """A chain of ADD, times 1/n."""
    total = _variadic(g, "ADD", views)
    return total.with_tensor(g.binary("MUL", total.tensor, 1.0 / len(views)))


_COMPARISONS = {
    "Equal": "EQUAL",
    "Greater": "GREATER",
    "GreaterOrEqual": "GREATER_EQUAL",
    "Less": "LESS",
    "LessOrEqual": "LESS_EQUAL",
}
_LOGICAL = {"And": "LOGICAL_AND", "Or": "LOGICAL_OR", "Xor": "NOT_EQUAL"}
_UNARY = {
    "Exp": "EXP",
    "Log": "LOG",
    "Sqrt": "SQRT",
    "Sin": "SIN",
    "Cos": "COS",
    "Floor": "FLOOR",
    "Ceil": "CEIL",
    "Round": "ROUND",
}


def _comparison(code: str, g: Builder, a: View, b: View) -> View:
    # LiteRT compares int32, int64 and floats.
    if a.dtype.kind in "iu" and a.dtype not in (INT32, INT64):
        wider = INT64 if a.dtype.itemsize >= 4 else INT32
        a, b = (g.as_type(v, wider) for v in (a, b))
    if a.dtype == BOOL and code != "EQUAL":
        a, b = (g.as_type(v, INT32) for v in (a, b))
    return broadcast(g, code, (a, b), BOOL)


def _logical(code: str, g: Builder, a: View, b: View) -> View:
    return broadcast(g, code, (a, b), BOOL)


@op("Not")
def not_(g: Builder, x: View) -> View:
    """LOGICAL_NOT."""
    return x.with_tensor(g.unary("LOGICAL_NOT", x.tensor))


def _unary(code: str, g: Builder, x: View) -> View:
    _float_only(x, code)
    return x.with_tensor(g.unary(code, x.tensor))


def _arithmetic(code: str, g: Builder, a: View, b: View) -> View:
    return broadcast(g, code, (a, b))


def _register_families() -> None:
    for name in ("Add", "Sub", "Mul"):
        op(name, rule=Rule.FREE)(partial(_arithmetic, name.upper()))
    for name, code in (("Min", "MINIMUM"), ("Max", "MAXIMUM")):
        op(name, rule=Rule.FREE, quantized=("int8", "int16"))(partial(_extremum, code))
    for table, handler in ((_COMPARISONS, _comparison), (_LOGICAL, _logical), (_UNARY, _unary)):
        for name, code in table.items():
            op(name)(partial(handler, code))


_register_families()


@op("Neg")
def neg(g: Builder, x: View) -> View:
    """NEG, or 0 - x for the integers that it lacks."""
    if x.dtype in (FLOAT32, INT32, INT64):
        return x.with_tensor(g.unary("NEG", x.tensor))
    wide = g.unary("NEG", g.cast(x.tensor, INT32))
    return x.with_tensor(g.cast(wide, x.dtype))


@op("Abs")
def absolute(g: Builder, x: View) -> View:
    """ABS."""
    return x.with_tensor(_absolute(g, x.tensor))


@op("Reciprocal")
def reciprocal(g: Builder, x: View) -> View:
    """1 / x."""
    one = g.constant(np.ones((), x.dtype))
    return x.with_tensor(g.emit("DIV", [one, x.tensor], x.tensor.shape, x.tensor))


@op("Sign")
def sign(g: Builder, x: View) -> View:
    """SIGN."""
    return x.with_tensor(_sign(g, x.tensor))


def _sign(g: Builder, x: Tensor) -> Tensor:
    if x.dtype in (FLOAT32, INT32):
        return g.unary("SIGN", x)
    return g.cast(g.unary("SIGN", g.cast(x, FLOAT32)), x.dtype)


@op("Where")
def where(g: Builder, condition: View, a: View, b: View) -> View:
    """SELECT_V2."""
    kind = Type(a.dtype, a.quant)
    return broadcast(g, "SELECT_V2", (condition, a, b), kind)


@op("Cast", rule=Rule.ANY)
def cast(g: Builder, x: View, *, to: int, saturate: int = 1, round_mode: str = "up") -> View:
    """CAST; to bool through a comparison with zero."""
    del saturate, round_mode  # only for the 8-bit float types, which TFLite has not
    x = g.dequantize(x)
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(to))
    dtype = HELD.get(dtype, dtype)
    if dtype not in TENSOR_TYPES:
        raise Refusal(f"TFLite has no element type {dtype}")
    if dtype == BOOL and x.dtype != BOOL:
        zero = g.constant(np.zeros((), x.dtype))
        return x.with_tensor(g.compare("NOT_EQUAL", x.tensor, zero))
    return g.as_type(x, dtype)


@op("Identity", rule=Rule.ANY)
def identity(g: Builder, x: View) -> View:
    """Nothing."""
    del g
    return x


@op("Dropout", since=12, rule=Rule.ANY)
def dropout(
    g: Builder, x: View, ratio: View | None = None, training_mode: View | None = None, *, seed: int = 0
) -> View:
    """Nothing, at inference."""
    del g, ratio, seed
    if training_mode is not None and (training_mode.const is None or bool(training_mode.const)):
        raise Refusal("training mode")
    return x


@op("Dropout", rule=Rule.ANY)
def dropout_before_12(g: Builder, x: View, *, ratio: float = 0.5, is_test: int = 1) -> View:
    """Nothing, at inference."""
    del g, ratio, is_test
    return x


@op("Erf")
def erf(g: Builder, x: View) -> View:
    """Abramowitz and Stegun 7.1.26, |error| ≤ 1.5e-7: LiteRT has no ERF (Gelu is recognized whole)."""
    _float_only(x, "Erf")
    magnitude = g.unary("ABS", x.tensor)
    one = g.constant(np.float32(1.0))
    scaled = g.binary("ADD", g.binary("MUL", magnitude, 0.3275911), one)
    t = g.emit("DIV", [one, scaled], scaled.shape, FLOAT32)
    poly = g.binary("MUL", t, 1.061405429)
    for c in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        poly = g.binary("MUL", g.binary("ADD", poly, c), t)
    square = g.unary("NEG", g.binary("MUL", magnitude, magnitude))
    decay = g.unary("EXP", square)
    rest = g.binary("MUL", poly, decay)
    positive = g.emit("SUB", [one, rest], rest.shape, FLOAT32, schema.SubOptionsT())
    signs = g.unary("SIGN", x.tensor)
    return x.with_tensor(g.binary("MUL", positive, signs))
