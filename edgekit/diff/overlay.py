"""What a comparison by layers found, laid over the graph of the model that was compared."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from edgekit.artifact.explorer.graph import Graph
from edgekit.artifact.explorer.overlay import Index, Overlay, Place
from edgekit.diff import Walk
from edgekit.diff.report import EXCESS_DB

_EXACT_DB = 200.0
_SNR = ((10.0, "#fb6a4a"), (20.0, "#fdae6b"), (30.0, "#fee391"), (_EXACT_DB, "#c7e9c0"))
_EXCESS = ((EXCESS_DB / 2, "#c7e9c0"), (EXCESS_DB, "#fee391"), (200.0, "#fb6a4a"))


def of_walk(graphs: Sequence[Graph], walk: Walk) -> Iterator[Overlay]:
    """Of each node the least signal to noise of its own, and the most beyond rounding, over all stages of the walk.

    Layers of earlier forms are those of the node that has their name, else of the one that computes their module.
    """
    index = Index(graphs)
    snr, excess, unplaced = dict[Place, float](), dict[Place, float](), 0
    for stage in walk.stages:
        for layer in stage.layers:
            place = index.find((layer.node, layer.tensor), layer.module)
            if place is None:
                unplaced += 1
                continue
            snr[place] = min(layer.local_db, snr.get(place, _EXACT_DB))
            if layer.local_db < _EXACT_DB:
                excess[place] = max(layer.excess_db, excess.get(place, layer.excess_db))
    if snr:
        title = "signal to noise of its own, dB"
        yield Overlay(key="snr", title=title, values=snr, thresholds=_SNR, unplaced=unplaced)
    if excess:
        title = "error beyond rounding, dB"
        yield Overlay(key="beyond-rounding", title=title, values=excess, thresholds=_EXCESS)
