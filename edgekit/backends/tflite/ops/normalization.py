"""Normalizations, spelled out in elementary operators that the XNNPACK delegate takes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgekit.backends.tflite.builder import Builder
from edgekit.backends.tflite.ir import FLOAT32, Tensor
from edgekit.backends.tflite.ops.elementwise import broadcast
from edgekit.backends.tflite.registry import Refusal, op
from edgekit.backends.tflite.view import View


def _squared_deviation(g: Builder, x: Tensor, axes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """``(x - mean, variance)`` over tensor axes."""
    mean = g.reduce("MEAN", x, axes)
    centred = g.binary("SUB", x, mean)
    return centred, g.reduce("MEAN", g.binary("MUL", centred, centred), axes)


def standardized(g: Builder, x: Tensor, axes: Sequence[int], epsilon: float) -> Tensor:
    """``(x - mean) / sqrt(variance + epsilon)`` over tensor axes."""
    centred, variance = _squared_deviation(g, x, axes)
    return g.binary("MUL", centred, g.unary("RSQRT", g.binary("ADD", variance, epsilon)))


def _affine(g: Builder, x: View, scale: View | None, bias: View | None) -> View:
    """Times scale plus bias, unless they are all ones or zeros."""
    if scale is not None and not (scale.const is not None and np.all(scale.const == 1)):
        x = broadcast(g, "MUL", (x, scale))
    if bias is not None and not (bias.const is not None and np.all(bias.const == 0)):
        x = broadcast(g, "ADD", (x, bias))
    return x


def _along_channels(g: Builder, x: View, parameter: View) -> View:
    return g.reshape_view(parameter, (parameter.size, *(1,) * (x.rank - 2)))


@op("BatchNormalization", since=7)
def batch_normalization(
    g: Builder,
    x: View,
    scale: View,
    b: View,
    mean: View,
    var: View,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    spatial: int = 1,
    training_mode: int = 0,
) -> View:
    """One product and one sum (they fuse into a convolution before)."""
    del momentum
    if training_mode or not spatial:
        raise Refusal("training mode" if training_mode else "statistics an activation (spatial=0)")
    parts = [v.const for v in (scale, b, mean, var)]
    if any(p is None for p in parts):
        return _batch_normalization_of_views(g, x, (scale, b, mean, var), epsilon)
    gamma, beta, mu, sigma2 = (np.asarray(p, np.float64) for p in parts)
    # In float64, rounded once: the convolution in front takes the product in.
    factor = gamma / np.sqrt(sigma2 + epsilon)
    offset = beta - mu * factor
    channels = (-1, *(1,) * (x.rank - 2))
    scale_view = View.of(g.constant(factor.astype(np.float32).reshape(channels)))
    offset_view = View.of(g.constant(offset.astype(np.float32).reshape(channels)))
    return broadcast(g, "ADD", (broadcast(g, "MUL", (x, scale_view)), offset_view))


def _batch_normalization_of_views(g: Builder, x: View, parameters: Sequence[View], epsilon: float) -> View:
    scale, bias, mean, var = (_along_channels(g, x, p) for p in parameters)
    spread = var.with_tensor(g.unary("RSQRT", g.binary("ADD", var.tensor, epsilon)))
    centred = broadcast(g, "SUB", (x, mean))
    return _affine(g, broadcast(g, "MUL", (centred, spread)), scale, bias)


@op("LayerNormalization", since=17)
def layer_normalization(
    g: Builder,
    x: View,
    scale: View,
    b: View | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
) -> Sequence[View | None]:
    """MEAN, SUB, MUL, MEAN, RSQRT, MUL, MUL, ADD; the optional outputs are the mean and 1/deviation."""
    del stash_type
    axes = [x.position(a) for a in range(axis % x.rank, x.rank)]
    centred, variance = _squared_deviation(g, x.tensor, axes)
    inverse = g.unary("RSQRT", g.binary("ADD", variance, epsilon))
    out = _affine(g, x.with_tensor(g.binary("MUL", centred, inverse)), scale, b)
    wants_more = g.node is not None and any(o.uses() or o.is_graph_output() for o in g.node.outputs[1:])
    if not wants_more:
        return [out]
    # Not computed again: x less what was centred.
    mean = g.binary("SUB", x.tensor, centred)
    return [out, x.with_tensor(g.reduce("MEAN", mean, axes)), x.with_tensor(inverse)]


@op("RMSNormalization", since=23)
@op("SimplifiedLayerNormalization")
@op("SimplifiedLayerNormalization", domain="com.microsoft")
def rms_normalization(
    g: Builder, x: View, scale: View, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> View:
    """x / sqrt(mean(x²) + epsilon) * scale."""
    del stash_type
    axes = [x.position(a) for a in range(axis % x.rank, x.rank)]
    power = g.reduce("MEAN", g.binary("MUL", x.tensor, x.tensor), axes)
    out = g.binary("MUL", x.tensor, g.unary("RSQRT", g.binary("ADD", power, epsilon)))
    return _affine(g, x.with_tensor(out), scale, None)


@op("InstanceNormalization", since=6)
def instance_normalization(g: Builder, x: View, scale: View, b: View, *, epsilon: float = 1e-5) -> View:
    """Standardized over the spatial axes, in the order in which the data lies."""
    axes = [x.position(a) for a in range(2, x.rank)]
    out = x.with_tensor(standardized(g, x.tensor, axes, epsilon))
    return _affine(g, out, _along_channels(g, x, scale), _along_channels(g, x, b))


@op("GroupNormalization", since=21)
def group_normalization(
    g: Builder, x: View, scale: View, b: View, *, num_groups: int, epsilon: float = 1e-5, stash_type: int = 1
) -> View:
    """Standardized over the channels of a group and the spatial axes."""
    del stash_type
    n, c, *spatial = x.shape
    grouped = g.reshape_view(x, (n, num_groups, c // num_groups, *spatial))
    axes = [grouped.position(a) for a in range(2, grouped.rank)]
    out = grouped.with_tensor(standardized(g, grouped.tensor, axes, epsilon))
    flat = g.reshape_view(out, x.shape)
    return _affine(g, flat, _along_channels(g, x, scale), _along_channels(g, x, b))


@op("GroupNormalization", since=18)
def group_normalization_18(
    g: Builder, x: View, scale: View, b: View, *, num_groups: int, epsilon: float = 1e-5
) -> View:
    """Scale and bias are one number a group (opset 18)."""
    per = x.shape[1] // num_groups
    wide = [
        View.of(g.constant(np.repeat(g.known(v, "parameters computed at run time"), per))) for v in (scale, b)
    ]
    return group_normalization(g, x, *wide, num_groups=num_groups, epsilon=epsilon)


@op("MeanVarianceNormalization", since=9)
def mean_variance_normalization(g: Builder, x: View, *, axes: Sequence[int] = (0, 2, 3)) -> View:
    """(x - mean) / (deviation + 1e-9)."""
    places = [x.position(a) for a in axes]
    centred, variance = _squared_deviation(g, x.tensor, places)
    deviation = g.binary("ADD", g.unary("SQRT", variance), 1e-9)
    return x.with_tensor(g.binary("DIV", centred, deviation))


@op("LpNormalization")
def lp_normalization(g: Builder, x: View, *, axis: int = -1, p: int = 2) -> View:
    """x / |x|_p, with 0 where the norm is 0."""
    place = [x.position(axis)]
    if p == 1:
        norm = g.reduce("SUM", g.unary("ABS", x.tensor), place)
    else:
        norm = g.unary("SQRT", g.reduce("SUM", g.binary("MUL", x.tensor, x.tensor), place))
    # The least number that is no zero: 0 / tiny is the 0 that ONNX asks for.
    tiny = g.constant(np.float32(np.finfo(np.float32).tiny))
    safe = g.emit("MAXIMUM", [norm, tiny], norm.shape, FLOAT32)
    return x.with_tensor(g.binary("DIV", x.tensor, safe))


@op("LRN")
def local_response_normalization(
    g: Builder, x: View, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0
) -> View:
    """LOCAL_RESPONSE_NORMALIZATION, whose window is symmetric: odd sizes."""
    if size % 2 == 0 or x.rank != 4:
        raise Refusal(f"size {size}, rank {x.rank}")
    t = g.layout(x, (0, 2, 3, 1))
    options = schema.LocalResponseNormalizationOptionsT(
        radius=size // 2, bias=bias, alpha=alpha / size, beta=beta
    )
    return View(g.emit("LOCAL_RESPONSE_NORMALIZATION", [t], t.shape, t, options), (0, 2, 3, 1))
