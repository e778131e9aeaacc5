"""Which engines this user of this machine has built: an engine is code, others' are loaded only with ``--trust``."""

from __future__ import annotations

from pathlib import Path

from edgekit.core.store import Store
from edgekit.errors import UntrustedEngineError
from edgekit.types import sha256_file

_NOTE = "engine-built"


def remember(engine: Path, store: Store | None = None) -> None:
    """Note that ``engine`` was built here, or on a device for us."""
    (store or Store()).remember(_NOTE, sha256_file(engine), True)


def refuse_others(engine: Path, *, trust: bool) -> None:
    """Raise :class:`UntrustedEngineError` for an engine that was built elsewhere, unless it is trusted."""
    if trust or Store().recall(_NOTE, sha256_file(engine)):
        return
    raise UntrustedEngineError(
        f"{engine} was not built here: an engine is code, and whoever made it decides what it does",
        hint="build it again from the graph (edgekit build … --device NAME), or pass --trust if you trust its maker",
    )
