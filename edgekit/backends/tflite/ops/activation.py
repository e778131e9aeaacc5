"""Activations: single builtins where LiteRT has them, else short compositions."""

from __future__ import annotations

import math

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgekit.backends.tflite.builder import Builder
from edgekit.backends.tflite.ir import FLOAT32, INT8, INT32, INT64, Quant, Tensor, Type
from edgekit.backends.tflite.ops.elementwise import broadcast, covering
from edgekit.backends.tflite.registry import Refusal, Rule, op
from edgekit.backends.tflite.view import View

# Output parameters that TFLite's specification prescribes: these functions' whole range, whatever was
# calibrated.
_LOGISTIC = {"int8": (1 / 256, -128), "uint8": (1 / 256, 0), "int16": (1 / 32768, 0)}
_TANH = {"int8": (1 / 128, 0), "uint8": (1 / 128, 128), "int16": (1 / 32768, 0)}


def _same(g: Builder, x: View, code: str, options: object = None) -> View:
    return x.with_tensor(g.unary(code, x.tensor, g.type_like(x), options))


@op("Relu", rule=Rule.FREE)
def relu(g: Builder, x: View) -> View:
    """RELU."""
    if x.dtype.kind != "f" and x.quant is None:
        zero = View.of(g.constant(np.zeros((), x.dtype)))
        return broadcast(g, "MAXIMUM", (x, zero))
    return _same(g, x, "RELU")


_RELUS = {
    (0.0, 6.0): "RELU6",
    (-1.0, 1.0): "RELU_N1_TO_1",
    (0.0, 1.0): "RELU_0_TO_1",
    (0.0, math.inf): "RELU",
}


def _bounds(x: View, low: View | float | None, high: View | float | None) -> tuple[float, float] | None:
    """The limits as numbers; None if they are computed at run time."""
    ends = []
    for bound, default in ((low, -math.inf), (high, math.inf)):
        if bound is None:
            ends.append(default)
        elif isinstance(bound, View):
            if bound.const is None:
                return None
            ends.append(float(bound.const.reshape(-1)[0]))
        else:
            ends.append(float(bound))
    # Exporters write "no limit" as the largest finite number.
    if x.dtype == FLOAT32:
        largest = float(np.finfo(np.float32).max)
        ends = [-math.inf if ends[0] <= -largest else ends[0], math.inf if ends[1] >= largest else ends[1]]
    return ends[0], ends[1]


@op("Clip", since=11, rule=Rule.FREE, quantized=("int8", "int16"))
def clip(g: Builder, x: View, low: View | None = None, high: View | None = None) -> View:
    """RELU, RELU6, RELU_N1_TO_1, RELU_0_TO_1, or MAXIMUM and MINIMUM."""
    ends = _bounds(x, low, high)
    if ends is not None and ends in _RELUS and (x.dtype == FLOAT32 or x.quant is not None):
        return _same(g, x, _RELUS[ends])
    if x.quant is not None:
        if ends is None:
            raise Refusal("limits that are computed at run time, in integers")
        return _quantized_clip(g, x, ends)
    if x.dtype.kind != "f" and x.dtype not in (INT32, INT64):
        wide = g.as_type(x, INT64)
        limits = [v if v is None else g.as_type(v, INT64) for v in (low, high)]
        out = clip(g, wide, *limits)
        return g.as_type(out, x.dtype)
    for bound, code, end in ((low, "MAXIMUM", -math.inf), (high, "MINIMUM", math.inf)):
        skip = bound is None or (ends is not None and ends[0 if end < 0 else 1] == end)
        if bound is not None and not skip:
            x = broadcast(g, code, (x, bound), options=schema.MaximumMinimumOptionsT())
    return x


def _quantized_clip(g: Builder, x: View, ends: tuple[float, float]) -> View:
    assert g.result is not None
    t = g.quantize(x.tensor, g.result)
    for end, code in ((ends[0], "MAXIMUM"), (ends[1], "MINIMUM")):
        if math.isfinite(end):
            limit = g.quantize(g.constant(np.asarray(end, np.float32)), g.result)
            t = g.emit(code, [t, limit], t.shape, t, schema.MaximumMinimumOptionsT())
    return x.with_tensor(t)


@op("Clip", since=1, rule=Rule.FREE, quantized=("int8", "int16"))
def clip_by_attributes(g: Builder, x: View, *, min: float = -math.inf, max: float = math.inf) -> View:
    """Clip before opset 11."""
    limits = [None if math.isinf(v) else View.of(g.constant(np.float32(v))) for v in (min, max)]
    return clip(g, x, *limits)


@op("Sigmoid", rule=Rule.FIXED, fixed=_LOGISTIC)
def sigmoid(g: Builder, x: View) -> View:
    """LOGISTIC."""
    return _same(g, x, "LOGISTIC")


@op("Tanh", rule=Rule.FIXED, fixed=_TANH)
def tanh(g: Builder, x: View) -> View:
    """TANH."""
    return _same(g, x, "TANH")


@op("LeakyRelu", rule=Rule.FREE)
def leaky_relu(g: Builder, x: View, *, alpha: float = 0.01) -> View:
    """LEAKY_RELU."""
    return _same(g, x, "LEAKY_RELU", schema.LeakyReluOptionsT(alpha=alpha))


@op("Elu", rule=Rule.FREE, quantized=("int8",))
def elu(g: Builder, x: View, *, alpha: float = 1.0) -> View:
    """ELU; another alpha scales the negative half."""
    if alpha == 1.0:
        return _same(g, x, "ELU", None)
    if x.quant is not None:
        raise Refusal(f"alpha {alpha} in integers")
    negative = g.unary("ELU", g.binary("MINIMUM", x.tensor, 0.0))
    return x.with_tensor(g.binary("ADD", g.unary("RELU", x.tensor), g.binary("MUL", negative, alpha)))


@op("Selu")
def selu(
    g: Builder, x: View, *, alpha: float = 1.67326319217681884765625, gamma: float = 1.05070102214813232421875
) -> View:
    """gamma * Elu(x; alpha)."""
    out = elu(g, x, alpha=alpha)
    return out.with_tensor(g.binary("MUL", out.tensor, gamma))


@op("Celu", since=12)
def celu(g: Builder, x: View, *, alpha: float = 1.0) -> View:
    """max(0, x) + min(0, alpha * (exp(x / alpha) - 1))."""
    scaled = x.with_tensor(g.binary("MUL", x.tensor, 1.0 / alpha))
    out = elu(g, scaled)
    return out.with_tensor(g.binary("MUL", out.tensor, alpha))


@op("PRelu", rule=Rule.FREE, quantized=("int8", "uint8"))
def prelu(g: Builder, x: View, slope: View) -> View:
    """PRELU with the slope along the channels, else relu(x) - slope * relu(-x)."""
    perm = x.perm
    alpha = g.aligned(slope, x.rank, perm)
    if alpha.rank == x.rank and alpha.shape[0] == 1:
        alpha = g.reshape(alpha, alpha.shape[1:])
    # The kernel takes one slope a channel; any other shape is spelled with two RELUs.
    per_channel = alpha.rank < x.rank and all(d == 1 for d in alpha.shape[:-1])
    if per_channel or x.quant is not None:
        if alpha.quant is None and x.quant is not None:
            assert alpha.data is not None
            alpha = g.quantize(alpha, Type(x.dtype, covering(alpha.data, x.dtype)))
        return x.with_tensor(g.emit("PRELU", [x.tensor, alpha], x.tensor.shape, g.type_like(x)))
    negative = g.unary("RELU", g.unary("NEG", x.tensor))
    return x.with_tensor(g.binary("SUB", g.unary("RELU", x.tensor), g.binary("MUL", negative, alpha)))


@op("HardSigmoid", rule=Rule.FIXED, quantized=("int8",), fixed={"int8": (1 / 255, -128)})
def hard_sigmoid(g: Builder, x: View, *, alpha: float = 0.2, beta: float = 0.5) -> View:
    """min(1, max(0, alpha x + beta)) as RELU6 of the sixfold, which fuses into the addition."""
    if x.quant is not None and g.result is not None:
        return x.with_tensor(_integer_hard_sigmoid(g, x.tensor, alpha, beta, g.result))
    scaled = g.binary("MUL", x.tensor, 6 * alpha) if abs(6 * alpha - 1.0) > 1e-6 else x.tensor
    return x.with_tensor(g.binary("MUL", g.unary("RELU6", g.binary("ADD", scaled, 6 * beta)), 1 / 6))


def _integer_hard_sigmoid(g: Builder, x: Tensor, alpha: float, beta: float, kind: Type) -> Tensor:
    """A product and a sum: the product only relabels the steps, the sum saturates at 0 and 1."""
    assert x.quant is not None
    relabelled = Type(INT8, Quant.per_tensor(float(x.quant.scale[0]) * alpha, int(x.quant.zero_point[0])))
    scaled = g.emit("MUL", [x, _stored(g, alpha)], x.shape, relabelled)
    return g.emit("ADD", [scaled, _stored(g, beta)], x.shape, kind, schema.AddOptionsT())


def _stored(g: Builder, value: float) -> Tensor:
    """A positive number in int8, exactly."""
    return g.constant(np.asarray([127], np.int8), quant=Quant.per_tensor(value / 127))


@op("HardSwish", since=14, rule=Rule.FREE, quantized=("int8", "uint8"))
def hard_swish(g: Builder, x: View) -> View:
    """HARD_SWISH; where XNNPACK is to take int8, x * HardSigmoid(x), as it lacks the integer kernel."""
    if x.dtype == INT8 and x.quant is not None and g.lowering.kernels == "xnnpack":
        gate = _integer_hard_sigmoid(g, x.tensor, 1 / 6, 0.5, Type(INT8, Quant.per_tensor(1 / 255, -128)))
        return x.with_tensor(g.binary("MUL", x.tensor, gate, g.type_like(x)))
    return _same(g, x, "HARD_SWISH")


@op("Gelu", since=20, rule=Rule.FREE, quantized=("int8",), delegated=False)
@op("Gelu", domain="com.microsoft", rule=Rule.FREE, quantized=("int8",), delegated=False)
def gelu(g: Builder, x: View, *, approximate: str = "none") -> View:
    """GELU."""
    return _same(g, x, "GELU", schema.GeluOptionsT(approximate=approximate == "tanh"))


@op("FastGelu", domain="com.microsoft")
def fast_gelu(g: Builder, x: View, bias: View | None = None) -> View:
    """GELU by tanh."""
    return gelu(g, x if bias is None else broadcast(g, "ADD", (x, bias)), approximate="tanh")


@op("QuickGelu", domain="com.microsoft")
def quick_gelu(g: Builder, x: View, *, alpha: float = 1.702) -> View:
    """x * sigmoid(alpha x)."""
    gate = g.unary("LOGISTIC", g.binary("MUL", x.tensor, alpha) if alpha != 1.0 else x.tensor)
    return x.with_tensor(g.binary("MUL", x.tensor, gate))


@op("Swish", since=24)
def swish(g: Builder, x: View, *, alpha: float = 1.0) -> View:
    """x * sigmoid(alpha x)."""
    return quick_gelu(g, x, alpha=alpha)


def _softplus(g: Builder, x: Tensor) -> Tensor:
    """max(x, 0) + log(1 + exp(-|x|)), which does not overflow."""
    magnitude = g.unary("NEG", g.unary("ABS", x))
    tail = g.unary("LOG", g.binary("ADD", g.unary("EXP", magnitude), 1.0))
    return g.binary("ADD", g.unary("RELU", x), tail)


@op("Softplus")
def softplus(g: Builder, x: View) -> View:
    """log(1 + exp(x))."""
    return x.with_tensor(_softplus(g, x.tensor))


@op("Mish", since=18)
def mish(g: Builder, x: View) -> View:
    """x * tanh(softplus(x)) = x * n / (n + 2) with n = e^x (e^x + 2); beyond 20 that is x."""
    # e^20 squared is still finite in float32, and n / (n + 2) is 1 there.
    bounded = g.binary("MINIMUM", x.tensor, 20.0)
    grown = g.unary("EXP", bounded)
    n = g.binary("MUL", grown, g.binary("ADD", grown, 2.0))
    return x.with_tensor(g.binary("MUL", x.tensor, g.binary("DIV", n, g.binary("ADD", n, 2.0))))


@op("Softsign")
def softsign(g: Builder, x: View) -> View:
    """x / (1 + |x|)."""
    below = g.binary("ADD", g.unary("ABS", x.tensor), 1.0)
    return x.with_tensor(g.binary("DIV", x.tensor, below))


@op("ThresholdedRelu", since=10)
def thresholded_relu(g: Builder, x: View, *, alpha: float = 1.0) -> View:
    """x where x > alpha, else 0."""
    t = x.tensor
    above = g.compare("GREATER", t, alpha)
    mask = g.cast(above, FLOAT32)
    return x.with_tensor(g.binary("MUL", t, mask))


@op("Shrink", since=9)
def shrink(g: Builder, x: View, *, bias: float = 0.0, lambd: float = 0.5) -> View:
    """x + bias below -lambd, x - bias above lambd, else 0."""
    t = x.tensor
    low, high = g.compare("LESS", t, -lambd), g.compare("GREATER", t, lambd)
    zero = g.constant(np.float32(0.0))
    up = g.binary("ADD", t, bias)
    down = g.binary("SUB", t, bias)
    return x.with_tensor(g.select(low, up, g.select(high, down, zero)))


def _last_axis(g: Builder, x: View, axis: int) -> View:
    """The view with ``axis`` as the tensor's last axis, where TFLite's softmax works."""
    axis %= x.rank
    # A convolution leaves its channels last, where softmax over classes wants them.
    if x.perm[-1] == axis:
        return x
    perm = (*(p for p in x.perm if p != axis), axis)
    return View(g.layout(x, perm), perm)


def _flattened_from(x: View, axis: int) -> tuple[int, int]:
    axis %= max(x.rank, 1)
    return math.prod(x.shape[:axis]), math.prod(x.shape[axis:])


@op("Softmax", since=13, rule=Rule.FIXED, fixed=_LOGISTIC, delegated=False)
def softmax(g: Builder, x: View, *, axis: int = -1) -> View:
    """SOFTMAX over one axis."""
    laid = _last_axis(g, x, axis)
    return _same(g, laid, "SOFTMAX", schema.SoftmaxOptionsT(beta=1.0))


@op("Softmax", since=1, rule=Rule.FIXED, fixed=_LOGISTIC, delegated=False)
def softmax_flattened(g: Builder, x: View, *, axis: int = 1) -> View:
    """Before opset 13: over all axes from ``axis`` on."""
    flat = g.reshape_view(x, _flattened_from(x, axis))
    return g.reshape_view(softmax(g, flat), x.shape)


@op("LogSoftmax", since=13)
def log_softmax(g: Builder, x: View, *, axis: int = -1) -> View:
    """LOG_SOFTMAX over one axis."""
    return _same(g, _last_axis(g, x, axis), "LOG_SOFTMAX")


@op("LogSoftmax", since=1)
def log_softmax_flattened(g: Builder, x: View, *, axis: int = 1) -> View:
    """Before opset 13: over all axes from ``axis`` on."""
    flat = g.reshape_view(x, _flattened_from(x, axis))
    return g.reshape_view(log_softmax(g, flat), x.shape)


@op("Hardmax", since=13)
def hardmax(g: Builder, x: View, *, axis: int = -1) -> View:
    """1 at the first maximum, else 0."""
    laid = _last_axis(g, x, axis)
    t = laid.tensor
    index = g.emit("ARG_MAX", [t, g.constant(np.int32(t.rank - 1))], t.shape[:-1], INT32,
                   schema.ArgMaxOptionsT(outputType=schema.TensorType.INT32))  # fmt: skip
    parts = [index, g.constant(np.int32(t.shape[-1])), g.constant(np.float32(1)), g.constant(np.float32(0))]
    return laid.with_tensor(g.emit("ONE_HOT", parts, t.shape, FLOAT32, schema.OneHotOptionsT(axis=-1)))


@op("Hardmax", since=1)
def hardmax_flattened(g: Builder, x: View, *, axis: int = 1) -> View:
    """Before opset 13: over all axes from ``axis`` on."""
    flat = g.reshape_view(x, _flattened_from(x, axis))
    return g.reshape_view(hardmax(g, flat), x.shape)
