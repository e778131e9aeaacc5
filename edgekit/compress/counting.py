"""Multiply-accumulates of one forward pass of a module.

torch's own counter knows convolutions and matrix products; recurrent layers, attention and transformer layers that run
as one operator count as nothing with it. Their formulas are here: shapes in, floating point operations out (two for
each multiply-accumulate). Biases, gates, soft maxima and normalizations are not counted, as in
:mod:`edgekit.graph.macs`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch.utils.flop_counter import FlopCounterMode

from edgekit.compress.step import forward

Shape = Sequence[int]


def count(model: torch.nn.Module, inputs: Mapping[str, torch.Tensor]) -> int:
    """What ``model`` multiplies and adds for ``inputs``; 0 without inputs."""
    if not inputs:
        return 0
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=_formulas()) as counter:
        forward(model, inputs)
    return int(counter.get_total_flops()) // 2


def _formulas() -> dict[torch._ops.OpOverloadPacket, Callable[..., int]]:
    """By operator; those that this torch lacks are left out."""
    aten = torch.ops.aten
    formulas: dict[str, Callable[..., int]] = {
        "mkldnn_rnn_layer": _one_layer,
        "_cudnn_rnn": _all_layers,
        "_scaled_dot_product_flash_attention_for_cpu": _attention,
        "_scaled_dot_product_fused_attention_overrideable": _attention,
        "_scaled_dot_product_attention_math_for_mps": _attention,
        "_native_multi_head_attention": _heads,
        "_transformer_encoder_layer_fwd": _encoder_layer,
        "_trilinear": _trilinear,
        "mv": _vector,
        "addmv": _added_vector,
        "dot": _dot,
    }
    return {getattr(aten, name): formula for name, formula in formulas.items() if hasattr(aten, name)}


def _one_layer(x: Shape, inner: Shape, recurrent: Shape, *_: object, **__: object) -> int:
    return 2 * _rows(x) * (math.prod(inner) + math.prod(recurrent))


def _all_layers(x: Shape, weights: Sequence[Shape], *_: object, **__: object) -> int:
    return 2 * _rows(x) * sum(math.prod(w) for w in weights if len(w) > 1)


def _attention(query: Shape, key: Shape, value: Shape, *_: object, **__: object) -> int:
    """``[…, T, D]``, ``[…, S, D]``, ``[…, S, V]``; keys may have fewer heads than queries."""
    return 2 * _rows(query) * key[-2] * (query[-1] + value[-1])


def _heads(
    query: Shape, key: Shape, value: Shape, width: int, heads: int, qkv: Shape, bias: object, out: Shape,
    *_: object, **__: object,
) -> int:  # fmt: skip
    del value, heads, bias
    inner = width * (_rows(query) + 2 * _rows(key)) * qkv[1]
    return 2 * (inner + 2 * _rows(query) * key[-2] * width + _rows(query) * math.prod(out))


def _encoder_layer(x: Shape, width: int, heads: int, qkv: Shape, *rest: object, **__: object) -> int:
    """The weights with two axes: of the projection and of the two linear layers."""
    del heads
    matrices = [w for w in rest if isinstance(w, Sequence) and len(w) == 2]
    weights = math.prod(qkv) + sum(math.prod(w) for w in matrices[:3])
    return 2 * _rows(x) * (weights + 2 * x[-2] * width)


def _trilinear(one: Shape, weight: Shape, other: Shape, *_: object, **__: object) -> int:
    """As a bilinear layer calls it: ``[N, 1, I, 1]`` or alike, ``[1, O, I, J]``, ``[N, 1, 1, J]``."""
    del other
    return 2 * one[0] * math.prod(weight)


def _vector(matrix: Shape, vector: Shape, **__: object) -> int:
    del vector
    return 2 * math.prod(matrix)


def _added_vector(start: Shape, matrix: Shape, *_: object, **__: object) -> int:
    del start
    return 2 * math.prod(matrix)


def _dot(one: Shape, *_: object, **__: object) -> int:
    return 2 * math.prod(one)


def _rows(shape: Shape) -> int:
    return math.prod(shape[:-1])
