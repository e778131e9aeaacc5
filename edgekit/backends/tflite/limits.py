"""How many axes LiteRT's kernels take: a file with more is not loaded, or ends the process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from edgekit.backends.tflite.ir import Graph, Op
from edgekit.errors import UnsupportedNode

_LARGEST = 8
"""Measured with ai-edge-litert 2.3: RESHAPE and TRANSPOSE refuse nine, arithmetic on nine may abort."""

_DELEGATED = 6
"""What XNNPACK claims and cannot prepare beyond, and PAD's kernel."""

_FEW = frozenset(
    (
        *("SUM", "MEAN", "REDUCE_MAX", "REDUCE_MIN", "SOFTMAX", "CONCATENATION"),
        *("SPLIT", "SPLIT_V", "PAD", "PADV2", "MIRROR_PAD"),
    )
)


def too_many_axes(graphs: Sequence[Graph]) -> list[UnsupportedNode]:
    """The ONNX nodes whose operators have tensors of more axes than LiteRT takes, each once."""
    found = {(n.op, n.node): n for graph in graphs for op in graph.ops for n in _refused(op)}
    return list(found.values())


def _refused(op: Op) -> Iterator[UnsupportedNode]:
    most = _DELEGATED if op.code in _FEW else _LARGEST
    rank = max((t.rank for t in (*op.inputs, *op.outputs) if t is not None), default=0)
    if rank > most:
        yield UnsupportedNode(
            op=op.origin.op or op.code,
            node=op.origin.node or "?",
            reason=f"LiteRT's {op.code} takes {most} axes at most, here are {rank}",
            module_path=op.origin.module,
        )
