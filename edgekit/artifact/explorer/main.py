"""The adapter: ``model-explorer FILE --extensions=edgekit.artifact.explorer`` opens a model file as edgekit sees it.

Model Explorer imports this module by its name, ``main``, and registers the class; nothing of edgekit imports it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dacite import from_dict
from model_explorer import Adapter, AdapterMetadata, ModelExplorerGraphs
from model_explorer.graph_builder import GraphCollection

from edgekit.artifact import manifest
from edgekit.artifact.explorer.write import draw


class EdgekitAdapter(Adapter):  # type: ignore[misc]  # its package has no types
    """Graphs of model files; of an artifact's file, with what its manifest says of the nodes."""

    metadata = AdapterMetadata(
        id="edgekit",
        name="edgekit",
        description="Operators with types, multiply-accumulates, PyTorch modules and placement",
        source_repo="https://github.com/edgekit-deploy/edgekit",
        fileExts=["onnx", "tflite", "xml"],
    )

    def convert(self, model_path: str, settings: Mapping[str, Any]) -> ModelExplorerGraphs:
        """The graphs of the file at ``model_path``; ``settings`` are of the viewer."""
        del settings
        path = Path(model_path)
        beside = path.parent / manifest.FILE_NAME
        record = manifest.read(path.parent) if beside.is_file() else None
        if record is not None and record.model.resolve() != path.resolve():
            record = None  # another file of the folder
        drawn = draw(path, None if record is None else record.manifest)
        return {"graphCollections": [from_dict(data_class=GraphCollection, data=drawn.document())]}
