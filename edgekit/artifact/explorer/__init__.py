"""A model's graph as Model Explorer shows it, and what edgekit knows of its nodes laid over it.

In comes a model file or an artifact; out goes the JSON that Model Explorer opens by itself, and node data beside it:
multiply-accumulates, types and placement, what a profile measured, what a comparison by layers found. Model Explorer is
not needed to write them. With it, :mod:`edgekit.artifact.explorer.main` opens model files in it directly.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from edgekit.artifact.explorer.graph import Graph as Graph
from edgekit.artifact.explorer.graph import Node as Node
from edgekit.errors import UsageError

_READERS = {".onnx": "onnx_graph", ".tflite": "tflite_graph", ".xml": "openvino_graph"}

KINDS = tuple(_READERS)
"""Ends of the names of files that have a graph."""


def graphs(path: Path) -> tuple[Graph, ...]:
    """The graphs of a model file, the main one first.

    Raises:
        UsageError: files of its kind have no graph that can be read.
        SourceError: it is damaged, or not there.
        MissingExtraError: the package that knows its format is not installed.
    """
    from edgekit.artifact.inspect import inspect_file

    name = _READERS.get(path.suffix.lower())
    if name is None:
        raise UsageError(
            f"{path.name} has no graph that can be shown",
            hint=f"name a model in one of {', '.join(KINDS)}, or an artifact that has one",
        )
    inspect_file(path)  # which refuses what is damaged, in words
    found: tuple[Graph, ...] = importlib.import_module(f"{__name__}.{name}").read(path)
    return found
