"""The peephole pass over finished TFLite graphs: fuses what TFLite's operators can absorb.

Linear in the number of operators: each is looked at once, in order, with a table of consumers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from edgekit.backends.tflite.fusion import fuse_graph
from edgekit.backends.tflite.ir import Graph, Op


def rewrite(graphs: Sequence[Graph], *, fuse: bool, weights: str) -> dict[str, int]:
    """Fuse (if ``fuse``), remove what nobody reads; returns how often each fusion applied."""
    del weights
    counts: Counter[str] = Counter()
    for graph in graphs:
        if fuse:
            counts.update(fuse_graph(graph))
        remove_dead(graph)
    return dict(counts)


def remove_dead(graph: Graph) -> None:
    """Drop operators none of whose outputs is read."""
    live = {id(t) for t in graph.outputs}
    kept: list[Op] = []
    for op in reversed(graph.ops):
        if any(id(t) in live for t in op.outputs):
            kept.append(op)
            live.update(id(t) for t in op.inputs if t is not None)
    graph.ops = kept[::-1]
