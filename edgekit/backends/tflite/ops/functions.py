"""Elementary functions that LiteRT has no operator for, bit operations, type conversion by example."""

from __future__ import annotations

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgekit.backends.tflite.builder import Builder
from edgekit.backends.tflite.ir import BOOL, FLOAT32, INT32, Tensor
from edgekit.backends.tflite.ops.elementwise import broadcast, cast
from edgekit.backends.tflite.registry import Refusal, Rule, op
from edgekit.backends.tflite.view import View

# --- trigonometry -----------------------------------------------------------------------------------


@op("Tan")
def tan(g: Builder, x: View) -> View:
    """sin / cos."""
    t = _float(x)
    cosine = g.unary("COS", t, options=schema.CosOptionsT())
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
    return g.unary("SQRT", g.binary("MUL", _from(g, 1.0, t), g.binary("ADD", t, 1.0)))


def _atan2(g: Builder, y: Tensor, x: Tensor) -> Tensor:
    return g.emit("ATAN2", [y, x], y.shape, FLOAT32, schema.ATan2OptionsT())


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
    return x.with_tensor(_select(g, _below(g, _abs(g, t), 1.0), g.binary("MUL", t, series), far))


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
    sign = g.unary("SIGN", t, options=schema.SignOptionsT())
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
    ratio = g.binary("DIV", g.binary("MUL", t, 2.0), _from(g, 1.0, t))
    return x.with_tensor(g.binary("MUL", _log1p(g, ratio), 0.5))


def _exponentials(g: Builder, t: Tensor) -> tuple[Tensor, Tensor]:
    grown = g.unary("EXP", t, options=schema.ExpOptionsT())
    return grown, g.emit("DIV", [g.constant(np.float32(1)), grown], t.shape, FLOAT32, schema.DivOptionsT())


def _log1p(g: Builder, t: Tensor) -> Tensor:
    """log(1 + t) to full precision near zero (Kahan): log(u) t / (u - 1), u = 1 + t rounded."""
    u = g.binary("ADD", t, 1.0)
    less = g.binary("SUB", u, 1.0)
    equal = g.emit("EQUAL", [less, g.constant(np.float32(0))], t.shape, BOOL, schema.EqualOptionsT())
    divisor = _select(g, equal, g.constant(np.ones(t.shape, np.float32)), less)
    logarithm = g.unary("LOG", u)
    scaled = g.binary("MUL", logarithm, g.binary("DIV", t, divisor))
    infinite = g.emit("EQUAL", [u, g.constant(np.float32(np.inf))], t.shape, BOOL, schema.EqualOptionsT())
    return _select(g, equal, t, _select(g, infinite, u, scaled))


# --- tests of numbers -------------------------------------------------------------------------------


@op("IsNaN", since=9)
def is_nan(g: Builder, x: View) -> View:
    """x ≠ x."""
    t = _float(x)
    return x.with_tensor(g.emit("NOT_EQUAL", [t, t], t.shape, BOOL, schema.NotEqualOptionsT()))


@op("IsInf", since=10)
def is_inf(g: Builder, x: View, *, detect_negative: int = 1, detect_positive: int = 1) -> View:
    """Comparison with the infinities."""
    t = _float(x)
    if detect_negative and detect_positive:
        t = _abs(g, t)
    if not (detect_negative or detect_positive):
        return x.with_tensor(g.constant(np.zeros(t.shape, np.bool_)))
    limit = np.float32(np.inf if detect_positive else -np.inf)
    return x.with_tensor(g.emit("EQUAL", [t, g.constant(limit)], t.shape, BOOL, schema.EqualOptionsT()))


# --- bits -------------------------------------------------------------------------------------------


@op("BitwiseXor", since=18)
def bitwise_xor(g: Builder, a: View, b: View) -> View:
    """BITWISE_XOR."""
    return broadcast(g, "BITWISE_XOR", (a, b), options=schema.BitwiseXorOptionsT())


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
    """(a and b) + (a xor b)."""
    both = bitwise_and(g, a, b)
    return broadcast(g, "ADD", (both, bitwise_xor(g, a, b)))


def _same_shape(g: Builder, a: View, b: View) -> tuple[View, View]:
    """Broadcast beforehand: the kernel does not."""
    shape = np.broadcast_shapes(a.shape, b.shape)
    out = []
    for view in (a, b):
        t = g.plain(view)
        if t.shape != shape:
            t = g.emit("BROADCAST_TO", [t, g.ints(shape)], shape, t, schema.BroadcastToOptionsT())
        out.append(View.of(t))
    return out[0], out[1]


@op("BitShift", since=11)
def bit_shift(g: Builder, x: View, amount: View, *, direction: str) -> View:
    """A product with a power of two, or the floor of a quotient."""
    power = _power_of_two(g, amount)
    if direction == "LEFT":
        return broadcast(g, "MUL", (x, power))
    return broadcast(g, "FLOOR_DIV", (x, power), options=schema.FloorDivOptionsT())


def _power_of_two(g: Builder, amount: View) -> View:
    if amount.const is not None:
        return View.of(g.constant((2 ** amount.const.astype(np.int64)).astype(amount.dtype)))
    index = amount.with_tensor(g.cast(amount.tensor, INT32))
    bits = 31 if amount.dtype == INT32 else 63
    table = g.constant(np.asarray([1 << i for i in range(bits)], amount.dtype))
    out = g.emit("GATHER", [table, index.tensor], index.tensor.shape, table, schema.GatherOptionsT(axis=0))
    return amount.with_tensor(out)


# --- conversion -------------------------------------------------------------------------------------


@op("CastLike", since=15, rule=Rule.ANY)
def cast_like(g: Builder, x: View, like: View, *, saturate: int = 1, round_mode: str = "up") -> View:
    """Cast to the type of the second input."""
    from onnx import helper

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
    return g.unary("ABS", t, options=schema.AbsOptionsT())


def _from(g: Builder, number: float, t: Tensor) -> Tensor:
    """number - t."""
    return g.emit("SUB", [g.constant(np.float32(number)), t], t.shape, FLOAT32, schema.SubOptionsT())


def _below(g: Builder, t: Tensor, limit: float) -> Tensor:
    return g.emit("LESS", [t, g.constant(np.float32(limit))], t.shape, BOOL, schema.LessOptionsT())


def _select(g: Builder, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    shape = np.broadcast_shapes(condition.shape, a.shape, b.shape)
    return g.emit("SELECT_V2", [condition, a, b], shape, a, schema.SelectV2OptionsT())
