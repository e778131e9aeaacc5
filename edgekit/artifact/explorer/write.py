"""Writes what Model Explorer opens: a graph, and files of node data beside it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgekit.artifact import explorer
from edgekit.artifact import manifest as manifests
from edgekit.artifact.explorer import overlay
from edgekit.artifact.explorer.graph import Graph, document
from edgekit.artifact.explorer.overlay import Overlay
from edgekit.artifact.manifest import Manifest
from edgekit.artifact.profile import module_of
from edgekit.core import files
from edgekit.core.structure import structure
from edgekit.types import Json, sha256_file

FILE = "graph.json"
_DIGITS = 8


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A model's graphs, and what its file and its manifest tell of their nodes."""

    label: str
    graphs: tuple[Graph, ...]
    overlays: tuple[Overlay, ...]

    def document(self) -> dict[str, Json]:
        """The graphs in Model Explorer's form, every overlay's value among the attributes of its node."""
        more: dict[str, dict[str, dict[str, str]]] = {}
        for one in self.overlays:
            if one.key in ("macs", "precision"):  # the nodes say it already
                continue
            for (graph_id, node_id), value in one.values.items():
                more.setdefault(graph_id, {}).setdefault(node_id, {})[one.key] = (
                    value if isinstance(value, str) else f"{value:.4g}"
                )
        return {"label": self.label, "graphs": [document(g, more.get(g.id, {})) for g in self.graphs]}


def draw(model: Path, manifest: Manifest | None = None) -> Drawn:
    """Read the graphs of ``model``, that of an artifact with its ``manifest``. Nothing is executed.

    The ids of graphs carry the model's digest: node data of another model finds no node in them.

    Raises what :func:`edgekit.artifact.explorer.graphs` does.
    """
    read = explorer.graphs(model)
    digest = sha256_file(model)[:_DIGITS]
    modules = {} if manifest is None else _modules(manifest)
    ids = {graph.id: f"{model.name} {digest}" + (f" {graph.id}" if n else "") for n, graph in enumerate(read)}
    graphs = tuple(
        Graph(id=ids[graph.id], nodes=tuple(_named(node, ids, modules) for node in graph.nodes))
        for graph in read
    )
    overlays = [*overlay.of_file(graphs)]
    if manifest is not None:
        overlays += overlay.of_manifest(graphs, manifest)
    return Drawn(label=model.name, graphs=graphs, overlays=tuple(overlays))


def draw_named(path: Path) -> Drawn:
    """That of an artifact's folder (or its manifest), or of a model file. Raises what :func:`draw` does."""
    if path.is_dir() or path.name == manifests.FILE_NAME:
        artifact = manifests.read(path)
        return draw(artifact.model, artifact.manifest)
    return draw(path)


def _modules(manifest: Manifest) -> dict[str, str]:
    return structure(dict[str, str], manifest.details.get("modules", {}), where="modules")


def _named(node: explorer.Node, ids: Mapping[str, str], modules: Mapping[str, str]) -> explorer.Node:
    bodies = tuple(ids[body] for body in node.bodies)
    return replace(
        node, bodies=bodies, module=node.module or (module_of(node.names, modules) if modules else "")
    )


def write(drawn: Drawn, folder: Path, more: Iterable[Overlay] = ()) -> tuple[Path, ...]:
    """Write the graph and the overlays of ``drawn``, and ``more`` of them, into ``folder``.

    Returns:
        The graph's file, then those of node data for it: those written, and those of earlier calls that are of the same
        model.

    Raises:
        UsageError: the files cannot be written.
    """
    graph = folder / FILE
    files.put(graph, _text(drawn.document()))
    names = []
    # What was just found takes the place of what the manifest has from earlier.
    for one in {one.key: one for one in (*drawn.overlays, *more)}.values():
        names.append(f"{one.key}.json")
        files.put(folder / names[-1], _text(overlay.document(one)))
    names += [name for name in _EARLIER if name not in names and _is_of(folder / name, drawn)]
    return graph, *(folder / name for name in names)


_EARLIER = ("placement.json", "time.json", "ran-on.json", "snr.json", "beyond-rounding.json")
_MOST_BYTES = 1 << 28


def _is_of(path: Path, drawn: Drawn) -> bool:
    """Whether a file of node data is of one of the graphs."""
    try:
        if not path.is_file() or path.stat().st_size > _MOST_BYTES:
            return False
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and any(graph.id in found for graph in drawn.graphs)


def command(written: Sequence[Path]) -> list[str]:
    """What opens the files, as words of a command line."""
    data = ",".join(map(str, written[1:]))
    return ["model-explorer", str(written[0]), *([f"--node_data_paths={data}"] if data else [])]


def _text(document: Mapping[str, Json]) -> bytes:
    return json.dumps(document, allow_nan=False).encode()
