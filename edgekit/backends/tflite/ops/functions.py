"""Elementary functions that LiteRT has no operator for, bit operations, type conversion by example."""

from __future__ import annotations

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from onnx import helper

from edgekit.backends.tflite.builder import Builder
from edgekit.backends.tflite.ir import FLOAT32, INT32, INT64, Tensor, Type
from edgekit.backends.tflite.ops.elementwise import broadcast, cast
from edgekit.backends.tflite.registry import Refusal, Rule, op
from edgekit.backends.tflite.view import View

# --- trigonometry -----------------------------------------------------------------------------------


@op("Tan")
def tan(g: Builder, x: View) -> View:
    """sin / cos."""
    t = _float(x)
    cosine = g.unary("COS", t)
    return x.with_tensor(g.binary("DIV", g.unary("SIN", t), cosine))


@op("Atan")
def atan(g: Builder, x: View) -> View:
    """ATAN2(x, 1)."""
    return x.with_tensor(_atan2(g, _float(x), g.constant(np.ones(x.tensor.shape, np.float32))))


@op("Asin")
def asin(g: Builder, x: View) -> View:
    """atan2(x, sqrt((1 - x)(1 + x)))."""
    t = _float(x)
    return x.with_tensor(_atan2(g, t, _cosine_of_asin(g, t)))


@op("Acos")
def acos(g: Builder, x: View) -> View:
    """atan2(sqrt((1 - x)(1 + x)), x)."""
    t = _float(x)
    return x.with_tensor(_atan2(g, _cosine_of_asin(g, t), t))


def _cosine_of_asin(g: Builder, t: Tensor) -> Tensor:
    return g.unary("SQRT", g.binary("MUL", g.subtract_from(1.0, t), g.binary("ADD", t, 1.0)))


def _atan2(g: Builder, y: Tensor, x: Tensor) -> Tensor:
    return g.emit("ATAN2", [y, x], y.shape, FLOAT32)


# --- hyperbolic functions ---------------------------------------------------------------------------


@op("Sinh")
def sinh(g: Builder, x: View) -> View:
    """(e^x - e^-x) / 2; a series near zero, where the difference loses all digits."""
    t = _float(x)
    grown, shrunk = _exponentials(g, t)
    far = g.binary("MUL", g.binary("SUB", grown, shrunk), 0.5)
    square = g.binary("MUL", t, t)
    series = g.binary("ADD", g.binary("MUL", square, 1 / 42), 1.0)
    series = g.binary("ADD", g.binary("MUL", g.binary("MUL", square, 1 / 20), series), 1.0)
    series = g.binary("ADD", g.binary("MUL", g.binary("MUL", square, 1 / 6), series), 1.0)
    return x.with_tensor(g.select(g.compare("LESS", _abs(g, t), 1.0), g.binary("MUL", t, series), far))


@op("Cosh")
def cosh(g: Builder, x: View) -> View:
    """(e^x + e^-x) / 2."""
    grown, shrunk = _exponentials(g, _float(x))
    return x.with_tensor(g.binary("MUL", g.binary("ADD", grown, shrunk), 0.5))


@op("Asinh")
def asinh(g: Builder, x: View) -> View:
    """sign(x) log1p(|x| + x² / (1 + sqrt(x² + 1)))."""
    t = _float(x)
    magnitude = _abs(g, t)
    square = g.binary("MUL", t, t)
    root = g.unary("SQRT", g.binary("ADD", square, 1.0))
    inner = g.binary("ADD", magnitude, g.binary("DIV", square, g.binary("ADD", root, 1.0)))
    sign = g.unary("SIGN", t)
    return x.with_tensor(g.binary("MUL", sign, _log1p(g, inner)))


@op("Acosh")
def acosh(g: Builder, x: View) -> View:
    """log1p(d + sqrt(2d + d²)) with d = x - 1."""
    d = g.binary("SUB", _float(x), 1.0)
    root = g.unary("SQRT", g.binary("MUL", d, g.binary("ADD", d, 2.0)))
    return x.with_tensor(_log1p(g, g.binary("ADD", d, root)))


@op("Atanh")
def atanh(g: Builder, x: View) -> View:
    """log1p(2x / (1 - x)) / 2."""
    t = _float(x)
    ratio = g.binary("DIV", g.binary("MUL", t, 2.0), g.subtract_from(1.0, t))
    return x.with_tensor(g.binary("MUL", _log1p(g, ratio), 0.5))


def _exponentials(g: Builder, t: Tensor) -> tuple[Tensor, Tensor]:
    grown = g.unary("EXP", t)
    return grown, g.emit("DIV", [g.constant(np.float32(1)), grown], t.shape)


def _log1p(g: Builder, t: Tensor) -> Tensor:
    """log(1 + t) to full precision near zero (Kahan): log(u) t / (u - 1), u = 1 + t rounded."""
    u = g.binary("ADD", t, 1.0)
    less = g.binary("SUB", u, 1.0)
    equal = g.compare("EQUAL", less, 0)
    divisor = g.select(equal, g.constant(np.ones(t.shape, np.float32)), less)
    logarithm = g.unary("LOG", u)
    scaled = g.binary("MUL", logarithm, g.binary("DIV", t, divisor))
    # log(inf) is inf, but inf / inf is not a number.
    infinite = g.compare("EQUAL", u, np.inf)
    return g.select(equal, t, g.select(infinite, u, scaled))


# --- tests of numbers -------------------------------------------------------------------------------


@op("IsNaN", since=9)
def is_nan(g: Builder, x: View) -> View:
    """x ≠ x."""
    t = _float(x)
    return x.with_tensor(g.compare("NOT_EQUAL", t, t))


@op("IsInf", since=10)
def is_inf(g: Builder, x: View, *, detect_negative: int = 1, detect_positive: int = 1) -> View:
    """Comparison with the infinities."""
    t = _float(x)
    if detect_negative and detect_positive:
        t = _abs(g, t)
    if not (detect_negative or detect_positive):
        return x.with_tensor(g.constant(np.zeros(t.shape, np.bool_)))
    limit = np.float32(np.inf if detect_positive else -np.inf)
    return x.with_tensor(g.compare("EQUAL", t, g.constant(limit)))


# --- bits -------------------------------------------------------------------------------------------


@op("BitwiseXor", since=18)
def bitwise_xor(g: Builder, a: View, b: View) -> View:
    """BITWISE_XOR; of int64 a + b - 2 (a and b), which wraps around to the same bits."""
    if a.dtype == INT64:
        both = bitwise_and(g, a, b)
        twice = broadcast(g, "ADD", (both, both))
        return broadcast(g, "SUB", (broadcast(g, "ADD", (a, b)), twice))
    if a.dtype.itemsize == 8:
        raise Refusal(f"LiteRT's kernels do not compute with {a.dtype}")
    return broadcast(g, "BITWISE_XOR", (a, b))


@op("BitwiseNot", since=18)
def bitwise_not(g: Builder, x: View) -> View:
    """-1 - x."""
    minus = g.constant(np.asarray(-1, x.dtype))
    return x.with_tensor(g.emit("SUB", [minus, x.tensor], x.tensor.shape, x.tensor, schema.SubOptionsT()))


@op("BitwiseAnd", since=18)
def bitwise_and(g: Builder, a: View, b: View) -> View:
    """By STABLEHLO's kernel."""
    return broadcast(g, "STABLEHLO_AND", _same_shape(g, a, b))


@op("BitwiseOr", since=18)
def bitwise_or(g: Builder, a: View, b: View) -> View:
    """(a and b) + (a xor b); of int64 a + b - (a and b)."""
    both = bitwise_and(g, a, b)
    if a.dtype == INT64:
        return broadcast(g, "SUB", (broadcast(g, "ADD", (a, b)), both))
    return broadcast(g, "ADD", (both, bitwise_xor(g, a, b)))


def _same_shape(g: Builder, a: View, b: View) -> tuple[View, View]:
    """Broadcast beforehand: the kernel does not."""
    shape = np.broadcast_shapes(a.shape, b.shape)
    left, right = (View.of(g.broadcast_to(g.plain(view), shape)) for view in (a, b))
    return left, right


@op("BitShift", since=11)
def bit_shift(g: Builder, x: View, amount: View, *, direction: str) -> View:
    """RIGHT_SHIFT, or a product with a power of two; a negative amount counts as one beyond the width."""
    width = x.dtype.itemsize * 8
    if width == 64 and (x.dtype.kind == "u" or direction == "RIGHT"):
        raise Refusal(f"shifting {x.dtype}")
    if amount.dtype.kind == "i":
        t = amount.tensor if width == 64 else g.cast(amount.tensor, INT32)
        far = g.constant(np.full((), width, t.dtype))
        negative = g.compare("LESS", t, 0)
        amount = amount.with_tensor(g.select(negative, far, t))
    if direction == "RIGHT":
        amount = g.as_type(amount, x.dtype)
        return broadcast(g, "RIGHT_SHIFT", (x, amount), Type(x.dtype))
    wide = x.dtype if x.dtype in (INT32, INT64) else INT64 if width == 32 else INT32
    # One place more: an amount beyond the width shifts everything out.
    table = g.constant(np.asarray([*(1 << i for i in range(width)), 0], np.uint64).astype(wide))
    bounded = g.binary("MINIMUM", g.cast(amount.tensor, INT32), width)
    power = g.gather(table, bounded)
    product = broadcast(g, "MUL", (g.as_type(x, wide), amount.with_tensor(power)), Type(wide))
    return g.as_type(product, x.dtype)


@op("BitCast", since=26, rule=Rule.ANY)
def bit_cast(g: Builder, x: View, *, to: int) -> View:
    """BITCAST between types of one width."""
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(to))
    if dtype.itemsize != x.dtype.itemsize or x.quant is not None:
        raise Refusal(f"the bits of {x.dtype} as {dtype}")
    return x.with_tensor(g.emit("BITCAST", [x.tensor], x.tensor.shape, dtype))


# --- small matrices ---------------------------------------------------------------------------------

# Expansion grows like n!: 24 products of four here, 120 of five.
_LARGEST_DETERMINANT = 4


@op("Det", since=11)
def determinant(g: Builder, x: View) -> View:
    """Expanded along the first row, for matrices up to 4 × 4."""
    n = x.shape[-1]
    if n > _LARGEST_DETERMINANT:
        raise Refusal(f"the determinant of {n} × {n} matrices")
    t = g.plain(x)
    lead = t.shape[:-2]

    def cell(i: int, j: int) -> Tensor:
        return g.reshape(g.slice(t, [*(0 for _ in lead), i, j], [*lead, 1, 1]), lead)

    def minor(row: int, columns: tuple[int, ...]) -> Tensor:
        if len(columns) == 1:
            return cell(row, columns[0])
        total: Tensor | None = None
        for k, j in enumerate(columns):
            term = g.binary("MUL", cell(row, j), minor(row + 1, columns[:k] + columns[k + 1 :]))
            total = term if total is None else g.binary("SUB" if k % 2 else "ADD", total, term)
        assert total is not None
        return total

    return View.of(minor(0, tuple(range(n))))


# --- conversion -------------------------------------------------------------------------------------


@op("CastLike", since=15, rule=Rule.ANY)
def cast_like(g: Builder, x: View, like: View, *, saturate: int = 1, round_mode: str = "up") -> View:
    """Cast to the type of the second input."""
    if like.quant is not None:
        raise Refusal("conversion to a quantized type")
    return cast(
        g, x, to=helper.np_dtype_to_tensor_dtype(like.dtype), saturate=saturate, round_mode=round_mode
    )


# --- small pieces -----------------------------------------------------------------------------------


def _float(x: View) -> Tensor:
    if x.dtype != FLOAT32:
        raise Refusal(f"a function of {x.dtype}")
    return x.tensor


def _abs(g: Builder, t: Tensor) -> Tensor:
    return g.unary("ABS", t)
