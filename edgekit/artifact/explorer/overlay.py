"""What is known of a graph's nodes: figures and words, each with the colours in which Model Explorer shows it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edgekit.artifact.explorer.graph import Graph, Node
from edgekit.types import Json

if TYPE_CHECKING:
    from edgekit.artifact.manifest import ComparedLayer, Manifest
    from edgekit.artifact.profile import OperatorTime
    from edgekit.types import Fallback

Place = tuple[str, str]
"""A node: the ids of its graph and its own."""

_PALETTE = ("#9ecae1", "#fdae6b", "#a1d99b", "#bcbddc", "#fdd0a2", "#c7e9c0", "#dadaeb", "#d9d9d9")
_GOOD, _BAD = "#a1d99b", "#fc9272"
_HEAT: tuple[Mapping[str, Json], ...] = ({"stop": 0, "bgColor": "#ffffff"}, {"stop": 1, "bgColor": "#fb6a4a"})
_DECIMALS = 2
"""The viewer shows figures as they are written."""
AS_ASKED = "as asked"

_EXACT_DB = 200.0
_SNR = ((10.0, "#fb6a4a"), (20.0, "#fdae6b"), (30.0, "#fee391"), (_EXACT_DB, "#c7e9c0"))
OFF_DB = 10.0
"""Error power over the expectation from which a layer counts as wrong. Healthy layers of the architectures
measured stay below 7 dB."""
_BEYOND = ((OFF_DB / 2, "#c7e9c0"), (OFF_DB, "#fee391"), (200.0, "#fb6a4a"))


@dataclass(frozen=True, kw_only=True)
class Overlay:
    """Values of nodes. ``key`` is the name of its file, ``title`` what people read; words have ``colours``, figures
    ``gradient`` (from the least to the most) or ``thresholds``: the colour of all up to each of them, in their order.
    ``unplaced`` counts what was known of something that is no node of the graph, once for overlays of one origin."""

    key: str
    title: str
    values: Mapping[Place, float | str]
    colours: Mapping[str, str] = field(default_factory=dict)
    gradient: Sequence[Mapping[str, Json]] = ()
    thresholds: Sequence[tuple[float, str]] = ()
    unplaced: int = 0


class Index:
    """Finds the node that a name belongs to: its own, a tensor's that it makes, or one that a runtime derived."""

    def __init__(self, graphs: Sequence[Graph]) -> None:
        self._names: dict[str, Place] = {}
        self._modules: dict[str, Place] = {}
        self._products: dict[str, Place] = {}
        self._short: dict[str, Place | None] = {}
        for graph in graphs:
            for node in graph.nodes:
                self._add((graph.id, node.id), node)

    def _add(self, place: Place, node: Node) -> None:
        for name in node.names:
            self._names.setdefault(name, place)
        if not node.module:
            return
        if node.macs != 0:  # what moves data for a product has its module, too
            self._products.setdefault(node.module, place)
        self._modules.setdefault(node.module, place)

    def find(self, names: Iterable[str], module: str = "") -> Place | None:
        """The node of the first name that one has; else by the beginning of a name, else the module's."""
        given = list(filter(None, names))
        for name in given:
            if name in self._names:
                return self._names[name]
        for name in given:
            if (place := self._root(name)) is not None:
                return place
        return self._products.get(module) or self._modules.get(module) if module else None

    def _root(self, name: str) -> Place | None:
        """By the longest beginning of ``name`` that ends before a sign: ``conv_quant`` is a form of ``conv``."""
        if name not in self._short:
            ends = [m.start() for m in re.finditer(r"[^A-Za-z0-9](?!\d)", name)]
            found = (self._names[name[:end]] for end in reversed(ends) if name[:end] in self._names)
            self._short[name] = next(found, None)
        return self._short[name]


def of_file(graphs: Sequence[Graph]) -> Iterator[Overlay]:
    """What the file alone tells: multiply-accumulates, and the types that products are computed with."""
    counts = {place: float(node.macs) for place, node in _nodes(graphs) if node.macs}
    if counts:
        yield Overlay(key="macs", title="multiply-accumulates", values=counts, gradient=_HEAT)
    types = {place: node.precision for place, node in _nodes(graphs) if node.precision}
    if types:
        yield words("precision", "types of products", types)


def of_manifest(graphs: Sequence[Graph], manifest: Manifest) -> Iterator[Overlay]:
    """What a comparison with the source found of layers, where there was one; then which products run as the target
    promises and which do not, as far as the runtime said it of nodes."""
    if manifest.compared is not None:
        yield from of_layers(graphs, manifest.compared.layers)
    placement = manifest.placement
    if placement is None or placement.share is None:
        return
    reasons, unplaced = _reasons(graphs, placement.fallbacks)
    values: dict[Place, float | str] = {place: AS_ASKED for place, node in _nodes(graphs) if node.macs != 0}
    if unplaced:  # a product that is not known to be as asked is not said to be
        values = {}
    values |= reasons
    if values:
        yield words("placement", f"as {manifest.target.name} promises", values, unplaced=unplaced)


def of_layers(graphs: Sequence[Graph], layers: Iterable[ComparedLayer]) -> Iterator[Overlay]:
    """Of each node the least signal to noise of its own, and the most beyond rounding, over all of ``layers``.

    Layers of earlier forms are those of the node that has their name, else of the one that computes their module.
    """
    index = Index(graphs)
    snr, beyond, unplaced = dict[Place, float](), dict[Place, float](), 0
    for layer in layers:
        place = index.find((layer.node, layer.tensor), layer.module)
        if place is None:
            unplaced += 1
            continue
        snr[place] = min(layer.local_db, snr.get(place, _EXACT_DB))
        if layer.beyond_db is not None:
            beyond[place] = max(layer.beyond_db, beyond.get(place, layer.beyond_db))
    if snr:
        title = "signal to noise of its own, dB"
        yield Overlay(key="snr", title=title, values=snr, thresholds=_SNR, unplaced=unplaced)
    if beyond:
        title = "error beyond rounding, dB"
        yield Overlay(key="beyond-rounding", title=title, values=beyond, thresholds=_BEYOND)


def _reasons(graphs: Sequence[Graph], fallbacks: Iterable[Fallback]) -> tuple[dict[Place, str], int]:
    """Why nodes do not run as asked, and how many could not be found. Where the nodes are not named, all of an operator
    are meant, or none can be told."""
    index, found, missing = Index(graphs), dict[Place, str](), 0
    for fallback in fallbacks:
        places = [index.find([name]) for name in fallback.nodes]
        if not fallback.nodes:
            places = [place for place, node in _nodes(graphs) if node.op == fallback.op]
            places = [*places] if len(places) == fallback.count else [None] * fallback.count
        found |= {place: fallback.reason for place in places if place is not None}
        missing += sum(place is None for place in places)
    return found, missing


def of_profile(graphs: Sequence[Graph], operators: Sequence[OperatorTime]) -> Iterator[Overlay]:
    """Microseconds of each node and what ran it. Of several that a runtime fused, the first has the time."""
    index = Index(graphs)
    times, ran, unplaced = dict[Place, float](), dict[Place, str](), 0
    for operator in operators:
        places = [index.find([name]) for name in operator.nodes] or [None]
        if places[0] is None:
            places = [index.find([operator.name], operator.module), *places[1:]]
        known = [place for place in places if place is not None]
        unplaced += not known
        if known and operator.us is not None:
            times[known[0]] = times.get(known[0], 0.0) + operator.us
        what = " ".join(filter(None, (operator.placed, operator.precision)))
        ran |= {place: what for place in known if what}
    if times:
        yield Overlay(key="time", title="microseconds", values=times, gradient=_HEAT, unplaced=unplaced)
    if ran:
        yield words("ran-on", "ran on", ran, unplaced=0 if times else unplaced)


def words(key: str, title: str, values: Mapping[Place, float | str], *, unplaced: int = 0) -> Overlay:
    """An overlay of words, each in a colour of its own: what is as asked in green, the rest in the order it comes."""
    distinct = dict.fromkeys(str(value) for value in values.values() if value != AS_ASKED)
    colours = {word: _PALETTE[n % len(_PALETTE)] for n, word in enumerate(distinct)}
    if AS_ASKED in values.values():
        colours = dict.fromkeys(distinct, _BAD) | {AS_ASKED: _GOOD}
    return Overlay(key=key, title=title, values=values, colours=colours, unplaced=unplaced)


def _nodes(graphs: Sequence[Graph]) -> Iterator[tuple[Place, Node]]:
    for graph in graphs:
        for node in graph.nodes:
            yield (graph.id, node.id), node


def document(overlay: Overlay) -> dict[str, Json]:
    """Model Explorer's node data: by graph, the value of each node and how to paint it."""
    found: dict[str, Json] = {}
    for graph_id in dict.fromkeys(graph_id for graph_id, _ in overlay.values):
        results: dict[str, Json] = {
            node_id: _result(value, overlay.colours)
            for (of, node_id), value in overlay.values.items()
            if of == graph_id
        }
        data: dict[str, Json] = {"name": overlay.title, "results": results}
        if overlay.gradient:
            data["gradient"] = [dict(step) for step in overlay.gradient]
        if overlay.thresholds:
            data["thresholds"] = [{"value": value, "bgColor": colour} for value, colour in overlay.thresholds]
        found[graph_id] = data
    return found


def _result(value: float | str, colours: Mapping[str, str]) -> Json:
    if not isinstance(value, str):
        return {"value": round(value, _DECIMALS)}
    colour = colours.get(value)
    return {"value": value} if colour is None else {"value": value, "bgColor": colour}
