"""The peephole pass over finished TFLite graphs: fuses what TFLite's operators can absorb.

Linear in the number of operators: each is looked at once, in order, with a table of consumers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np

from edgekit.backends.tflite.builder import Scope
from edgekit.backends.tflite.fusion import fuse_graph
from edgekit.backends.tflite.ir import Graph, Op, Tensor
from edgekit.backends.tflite.xnnpack import after_fusion, before_fusion


def rewrite(scope: Scope, *, fuse: bool, kernels: str) -> dict[str, int]:
    """Respell for XNNPACK (if ``kernels`` says so), fuse (if ``fuse``), remove what nobody reads.

    Returns how often each kind of rewrite applied.
    """
    counts: Counter[str] = Counter()
    for graph in scope.graphs:
        if kernels == "xnnpack":
            counts["respelled"] += before_fusion(graph, scope)
        if fuse:
            counts["duplicate"] += merge_equal(graph)
            counts.update(fuse_graph(graph))
        if kernels == "xnnpack":
            counts["respelled"] += after_fusion(graph, scope)
        remove_dead(graph)
    return {kind: n for kind, n in counts.items() if n}


def merge_equal(graph: Graph) -> int:
    """Compute once what several operators compute alike (masks, in every layer); returns how many went."""
    seen: dict[tuple[object, ...], Op] = {}
    alias: dict[int, Tensor] = {}
    outputs = {id(t) for t in graph.outputs}
    kept: list[Op] = []
    for op in graph.ops:
        op.inputs = [t if t is None else alias.get(id(t), t) for t in op.inputs]
        # Two draws of random numbers are two values, and a variable changes between its readers.
        if op.code in _IMPURE or any(t.is_variable for t in op.inputs if t is not None):
            kept.append(op)
            continue
        options = None if op.options is None else repr(sorted(_plain(vars(op.options)).items()))
        types = tuple((t.shape, t.dtype, _quant_key(t)) for t in op.outputs)
        key = (op.code, tuple(_identity(t) for t in op.inputs), type(op.options).__name__, options, types)
        first = seen.setdefault(key, op)
        if first is op or any(id(t) in outputs for t in op.outputs):
            kept.append(op)
            continue
        alias.update((id(old), new) for old, new in zip(op.outputs, first.outputs, strict=True))
    removed = len(graph.ops) - len(kept)
    graph.ops = kept
    return removed


_IMPURE = frozenset(
    ["RANDOM_STANDARD_NORMAL", "RANDOM_UNIFORM", "MULTINOMIAL", "WHILE", "IF", "CALL", "CALL_ONCE"]
)


def _identity(tensor: Tensor | None) -> object:
    """What makes two operands the same: the tensor itself; for small constants, their contents."""
    if tensor is None or tensor.data is None or tensor.data.nbytes > 256 or tensor.quant is not None:
        return id(tensor)
    return tensor.dtype.name, tensor.shape, tensor.data.tobytes()


def _quant_key(tensor: Tensor) -> object:
    quant = tensor.quant
    return None if quant is None else (quant.scale.tobytes(), quant.zero_point.tobytes(), quant.axis)


def _plain(options: Mapping[str, object]) -> dict[str, object]:
    return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in options.items()}


def remove_dead(graph: Graph) -> None:
    """Drop operators none of whose outputs is read."""
    live = {id(t) for t in graph.outputs}
    kept: list[Op] = []
    # Backwards, so that what only dead operators read is dead too.
    for op in reversed(graph.ops):
        if any(id(t) in live for t in op.outputs):
            kept.append(op)
            live.update(id(t) for t in op.inputs if t is not None)
    graph.ops = kept[::-1]
