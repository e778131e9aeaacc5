"""Sources that a file names: an artifact's manifest may come from anywhere, and a factory is Python that is executed.

Such a source is opened when this user has built from it on this machine, or says that it is trusted. A source that the
user typed needs no such permission.
"""

from __future__ import annotations

from pathlib import Path

from edgekit.core.store import Store
from edgekit.errors import UntrustedSourceError
from edgekit.load.spec import parse
from edgekit.types import SourceRecord, SourceSpec

_NOTE = "built-from"
_ASKS_ITSELF = frozenset({"pt2", "pt", "onnx", "hf", "savedmodel", "keras", "plan"})
"""Kinds whose loaders execute nothing from the source without ``trust``. A plug-in's loader is not relied upon."""


def remember(store: Store, spec: SourceSpec, record: SourceRecord) -> None:
    """Note that this user built from the source ``spec`` here; ``record`` is what the manifest says of it."""
    store.remember(_NOTE, _identity(spec, record), True)


def named(record: SourceRecord, store: Store, *, trust: bool, owner: str) -> SourceSpec:
    """The source that the manifest of ``owner`` names, where opening it is allowed.

    Raises:
        UntrustedSourceError: opening it would execute code, nothing was built from it here, and ``trust`` is false.
        SourceError: there is no such source here.
    """
    spec = parse(record.text)
    if trust or spec.kind in _ASKS_ITSELF or store.recall(_NOTE, _identity(spec, record)):
        return spec
    raise UntrustedSourceError(
        f"{owner} was not built here, and its manifest names Python code to run: {record.text}",
        hint="read that code, then pass --trust; or name a source of your own",
    )


def _identity(spec: SourceSpec, record: SourceRecord) -> dict[str, str]:
    """The place counts: the same text in another folder is somebody else's code."""
    place = spec.path.resolve() if spec.path is not None else Path.cwd()
    return {"text": record.text, "kind": spec.kind, "sha256": record.sha256, "place": str(place)}
