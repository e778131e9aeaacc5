"""Which engines this user of this machine has built: an engine is code, others' are loaded only with ``--trust``."""

from __future__ import annotations

from pathlib import Path

import msgspec

from edgekit.core import files
from edgekit.core.store import Store
from edgekit.errors import UntrustedEngineError
from edgekit.types import sha256_bytes, sha256_file

_NOTE = "engine-built"
RECORD = "engine.json"


class _Record(msgspec.Struct, frozen=True):
    """What of an engine's record is noted with it."""

    graph_sha256: str = ""


def remember(engine: Path, store: Store | None = None) -> None:
    """Note that ``engine`` was built here, or on a device for us, of the graph that its record names."""
    (store or Store()).remember(_NOTE, _identity(engine), True)


def refuse_others(engine: Path, *, trust: bool) -> None:
    """Raise :class:`UntrustedEngineError` for an engine that was built elsewhere, or of another graph than its record
    says, unless it is trusted."""
    if trust or Store().recall(_NOTE, _identity(engine)):
        return
    raise UntrustedEngineError(
        f"{engine} was not built here: an engine is code, and whoever made it decides what it does",
        hint="build it again from the graph (edgekit build … --device NAME), or pass --trust if you trust its maker",
    )


def _identity(engine: Path) -> str:
    """Of the engine and the graph that its record names: one that is ours beside somebody's graph is not."""
    try:
        record = msgspec.json.decode(files.read(engine.with_name(RECORD), most=1 << 20), type=_Record)
    except (OSError, msgspec.MsgspecError, RecursionError):
        record = _Record()  # whoever loads it says what is wrong with its record
    return sha256_bytes(f"{sha256_file(engine)} {record.graph_sha256}".encode())
