"""ONNX Runtime's own operators (com.microsoft), as optimizers and exporters leave them in graphs.

https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from edgekit.backends.tflite.builder import Builder
from edgekit.backends.tflite.ir import FLOAT32
from edgekit.backends.tflite.ops.activation import gelu, softmax
from edgekit.backends.tflite.ops.elementwise import broadcast
from edgekit.backends.tflite.ops.matmul import matmul
from edgekit.backends.tflite.ops.normalization import layer_normalization, rms_normalization
from edgekit.backends.tflite.registry import Refusal, op
from edgekit.backends.tflite.view import View

_CONTRIB = "com.microsoft"


@op("Attention", domain=_CONTRIB)
def attention(
    g: Builder,
    x: View,
    weights: View,
    bias: View | None = None,
    mask: View | None = None,
    past: View | None = None,
    attention_bias: View | None = None,
    *,
    num_heads: int,
    qkv_hidden_sizes: Sequence[int] | None = None,
    scale: float = 0.0,
    unidirectional: int = 0,
    mask_filter_value: float = -10000.0,
) -> View:
    """Query, key and value out of one product, then attention over ``num_heads``."""
    if past is not None:
        raise Refusal("a cache of keys and values")
    sizes = list(qkv_hidden_sizes) if qkv_hidden_sizes else [weights.shape[1] // 3] * 3
    packed = matmul(g, x, weights)
    if bias is not None:
        packed = broadcast(g, "ADD", (packed, bias))
    bounds = np.cumsum([0, *sizes])
    query, key, value = (_columns(g, packed, int(a), int(b)) for a, b in itertools.pairwise(bounds))
    added = _biases(g, mask, attention_bias, mask_filter_value)
    if unidirectional:
        added.append(_causal(g, query.shape[1], key.shape[1], mask_filter_value))
    return attend(g, (query, key, value), num_heads, scale, added)


@op("MultiHeadAttention", domain=_CONTRIB)
def multi_head_attention(
    g: Builder,
    query: View,
    key: View | None = None,
    value: View | None = None,
    bias: View | None = None,
    padding_mask: View | None = None,
    attention_bias: View | None = None,
    past_key: View | None = None,
    past_value: View | None = None,
    *,
    num_heads: int,
    mask_filter_value: float = -10000.0,
    scale: float = 0.0,
    unidirectional: int = 0,
) -> View:
    """Attention over ``[N, T, heads · size]`` inputs."""
    if past_key is not None or past_value is not None:
        raise Refusal("a cache of keys and values")
    if key is None or value is None or not query.rank == key.rank == value.rank == 3:
        raise Refusal("packed or split inputs: three tensors of three axes are taken")
    parts = [query, key, value]
    if bias is not None:
        bounds = np.cumsum([0, *(p.shape[-1] for p in parts)])
        pieces = [_columns(g, bias, int(a), int(b)) for a, b in itertools.pairwise(bounds)]
        parts = [broadcast(g, "ADD", (p, c)) for p, c in zip(parts, pieces, strict=True)]
    added = _biases(g, padding_mask, attention_bias, mask_filter_value)
    if unidirectional:
        added.append(_causal(g, query.shape[1], key.shape[1], mask_filter_value))
    return attend(g, (parts[0], parts[1], parts[2]), num_heads, scale, added)


def attend(
    g: Builder, parts: tuple[View, View, View], heads: int, scale: float, added: Sequence[View]
) -> View:
    """softmax(q k' scale + added) v over ``[N, T, heads · size]``."""
    split = [g.reshape_view(p, (*p.shape[:2], heads, p.shape[2] // heads)) for p in parts]
    q, k, v = (g.transpose_view(p, (0, 2, 1, 3)) for p in split)
    # On the queries, which are fewer numbers than the scores.
    factor = scale or 1 / math.sqrt(q.shape[-1])
    scores = matmul(g, q.with_tensor(g.binary("MUL", q.tensor, factor)), g.transpose_view(k, (0, 1, 3, 2)))
    for view in added:
        scores = broadcast(g, "ADD", (scores, view))
    out = g.transpose_view(matmul(g, softmax(g, scores, axis=-1), v), (0, 2, 1, 3))
    return g.reshape_view(out, (*out.shape[:2], out.shape[2] * out.shape[3]))


def _biases(g: Builder, mask: View | None, bias: View | None, low: float) -> list[View]:
    """What is added to the scores: the bias as it is, a mask of ones and zeros as zeros and ``low``."""
    added = [] if bias is None else [bias]
    if mask is None:
        return added
    if mask.rank not in (2, 3):
        raise Refusal(f"a mask of {mask.rank} axes")
    ones = g.as_type(mask, FLOAT32)
    gone = g.binary("MUL", g.binary("SUB", ones.tensor, 1.0), -low)
    shape = (mask.shape[0], 1, 1, mask.shape[1]) if mask.rank == 2 else (mask.shape[0], 1, *mask.shape[1:])
    return [*added, g.reshape_view(ones.with_tensor(gone), shape)]


def _causal(g: Builder, rows: int, columns: int, low: float) -> View:
    # Aligned at the end where there are more keys than queries.
    allowed = np.tri(rows, columns, columns - rows, dtype=bool)
    return View.of(g.constant(np.where(allowed, 0.0, low).astype(np.float32)[None, None]))


def _columns(g: Builder, x: View, first: int, last: int) -> View:
    """Elements ``first`` to ``last`` of the last axis."""
    if x.const is not None:
        return View.of(g.constant(np.ascontiguousarray(x.const[..., first:last])))
    return x.with_tensor(g.part(x.tensor, x.position(x.rank - 1), range(first, last)))


# --- fused residuals and activations ----------------------------------------------------------------


@op("SkipLayerNormalization", domain=_CONTRIB)
def skip_layer_normalization(
    g: Builder,
    x: View,
    skip: View,
    gamma: View,
    beta: View | None = None,
    bias: View | None = None,
    *,
    epsilon: float = 1e-12,
) -> Sequence[View | None]:
    """LayerNormalization of a sum, which is the fourth output."""
    total = _sum(g, x, skip, bias)
    return [layer_normalization(g, total, gamma, beta, epsilon=epsilon)[0], None, None, total]


@op("SkipSimplifiedLayerNormalization", domain=_CONTRIB)
def skip_rms_normalization(
    g: Builder, x: View, skip: View, gamma: View, bias: View | None = None, *, epsilon: float = 1e-12
) -> Sequence[View | None]:
    """RMSNormalization of a sum, which is the fourth output."""
    total = _sum(g, x, skip, bias)
    return [rms_normalization(g, total, gamma, epsilon=epsilon), None, None, total]


def _sum(g: Builder, x: View, skip: View, bias: View | None) -> View:
    total = broadcast(g, "ADD", (x, skip))
    return total if bias is None else broadcast(g, "ADD", (total, bias))


@op("BiasGelu", domain=_CONTRIB)
def bias_gelu(g: Builder, x: View, bias: View) -> View:
    """Gelu of a sum."""
    return gelu(g, broadcast(g, "ADD", (x, bias)))


@op("BiasSoftmax", domain=_CONTRIB)
def bias_softmax(g: Builder, x: View, bias: View, *, axis: int = 1, is_inner_broadcast: int) -> View:
    """Softmax of a sum over all axes from ``axis`` on."""
    if not is_inner_broadcast or axis % x.rank != x.rank - 1:
        raise Refusal("a softmax over several axes, or a bias that repeats block by block")
    return softmax(g, broadcast(g, "ADD", (x, bias)), axis=-1)


@op("RotaryEmbedding", domain=_CONTRIB)
def rotary_embedding(
    g: Builder,
    x: View,
    positions: View,
    cosines: View,
    sines: View,
    *,
    interleaved: int = 0,
    is_packed_batching: int = 0,
    num_heads: int = 0,
    rotary_embedding_dim: int = 0,
    scale: float = 1.0,
) -> View:
    """Pairs of features turned by their position's angles (Su et al. 2021); whole heads, halves apart."""
    del scale, is_packed_batching
    if interleaved or rotary_embedding_dim or positions.rank != 2:
        raise Refusal("interleaved pairs, a part of the head, or one offset for all")
    heads = x
    if x.rank == 3:
        count = num_heads or x.shape[-1] // (2 * cosines.shape[-1])
        split = g.reshape_view(x, (*x.shape[:2], count, x.shape[2] // count))
        heads = g.transpose_view(split, (0, 2, 1, 3))
    half = heads.shape[-1] // 2
    turn = [_turn(g, table, positions) for table in (cosines, sines)]
    a, b = _columns(g, heads, 0, half), _columns(g, heads, half, 2 * half)
    left = broadcast(g, "SUB", (broadcast(g, "MUL", (a, turn[0])), broadcast(g, "MUL", (b, turn[1]))))
    right = broadcast(g, "ADD", (broadcast(g, "MUL", (a, turn[1])), broadcast(g, "MUL", (b, turn[0]))))
    out = View.of(g.concat([g.plain(left), g.plain(right)], 3))
    if x.rank == 3:
        return g.reshape_view(g.transpose_view(out, (0, 2, 1, 3)), x.shape)
    return out


def _turn(g: Builder, table: View, positions: View) -> View:
    """Rows of a table by position: ``[N, 1, T, half]``."""
    index = g.cast(g.plain(positions), np.int32)
    rows = g.plain(table)
    shape = (*index.shape, rows.shape[1])
    angles = g.gather(rows, index)
    return View.of(g.reshape(angles, (shape[0], 1, *shape[1:])))
