"""What a comparison by layers found, laid over the graph of the model that was compared."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from edgekit.artifact.explorer.graph import Graph
from edgekit.artifact.explorer.overlay import Overlay, of_layers
from edgekit.diff import Walk
from edgekit.diff.record import layers


def of_walk(graphs: Sequence[Graph], walk: Walk) -> Iterator[Overlay]:
    """See :func:`of_layers`: over all stages of the walk."""
    return of_layers(graphs, layers(walk))
