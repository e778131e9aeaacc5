"""How constants are stored, as against what operators compute in: float16 weights, quantized weights
under float activations."""

from __future__ import annotations

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgekit.backends.tflite.ir import FLOAT16, FLOAT32, INT4, INT8, Graph, Op, Tensor

_SMALL = 64
_LARGEST_HALF = float(np.finfo(np.float16).max)
_DYNAMIC = {"FULLY_CONNECTED": (INT8, INT4), "CONV_2D": (INT8,)}
_WEIGHTED = frozenset({"FULLY_CONNECTED", "CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "BATCH_MATMUL"})


def store_half(graph: Graph) -> int:
    """Store float32 constants of more than a few elements as float16 behind a DEQUANTIZE.

    The runtime expands them once, when it loads the model; lookups (GATHER) expand only what they read.
    Constants with values beyond float16's range stay as they are. Returns how many were converted.
    """
    halves: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
    out: list[Op] = []
    front: list[Op] = []
    for op in graph.ops:
        if op.code == "GATHER" and _fits_half(op.inputs[0]) and op.inputs[0] is not None:
            out += _gathered_half(op, op.inputs[0])
            continue
        for i, t in enumerate(op.inputs):
            if t is None or not _fits_half(t):
                continue
            if id(t) not in halves:
                real = Tensor(t.shape, FLOAT32, t.name)
                half = _half(t)
                halves[id(t)] = (t, half, real)
                front.append(Op("DEQUANTIZE", [half], [real], schema.DequantizeOptionsT(), op.origin))
            op.inputs[i] = halves[id(t)][2]
        out.append(op)
    graph.ops = front + out
    return len(halves)


def _fits_half(t: Tensor | None) -> bool:
    if t is None or t.data is None or t.dtype != FLOAT32 or t.size < _SMALL:
        return False
    return bool(np.max(np.abs(t.data)) <= _LARGEST_HALF)


def _half(t: Tensor) -> Tensor:
    assert t.data is not None
    return Tensor(t.shape, FLOAT16, f"{t.name}/float16" if t.name else "", t.data.astype(np.float16))


def _gathered_half(op: Op, table: Tensor) -> list[Op]:
    rows = Tensor(op.outputs[0].shape, FLOAT16)
    inputs: list[Tensor | None] = [_half(table), *op.inputs[1:]]
    expand = Op("DEQUANTIZE", [rows], op.outputs, schema.DequantizeOptionsT(), op.origin)
    return [Op(op.code, inputs, [rows], op.options, op.origin), expand]


def expand_weights(graph: Graph, *, dynamic: bool) -> int:
    """Quantized weights of operators with float activations.

    With ``dynamic`` they stay (the kernel quantizes the activations as it goes) where LiteRT has such a
    kernel and the weights are symmetric; else a DEQUANTIZE, done once at load, expands them to float32.
    Returns how many were expanded.
    """
    expanded: dict[int, tuple[Tensor, Tensor]] = {}
    out: list[Op] = []
    for op in graph.ops:
        w = op.inputs[1] if op.code in _WEIGHTED else None
        x = op.inputs[2 if op.code == "TRANSPOSE_CONV" else 0]
        if w is not None and w.quant is not None and w.data is not None and x is not None and x.quant is None:
            symmetric = not np.any(w.quant.zero_point)
            if not (dynamic and symmetric and w.dtype in _DYNAMIC.get(op.code, ())):
                if id(w) not in expanded:
                    real = Tensor(w.shape, FLOAT32)
                    expanded[id(w)] = (w, real)
                    out.append(Op("DEQUANTIZE", [w], [real], schema.DequantizeOptionsT(), op.origin))
                op.inputs[1] = expanded[id(w)][1]
        out.append(op)
    graph.ops = out
    return len(expanded)
