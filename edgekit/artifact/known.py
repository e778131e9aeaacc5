"""Which artifacts this user built on this machine: gates that cannot be repeated without the source's data are believed
of these, and of no others."""

from __future__ import annotations

from edgekit.artifact.manifest import Manifest
from edgekit.core.store import Store

_NOTE = "artifact"


def remember(manifest: Manifest) -> None:
    """This one was built, or first run, here."""
    Store().remember(_NOTE, manifest.digest, True)


def is_known(manifest: Manifest) -> bool:
    """Whether it is as it was when it was built here; where the cache was cleared since, it is not known."""
    return bool(Store().recall(_NOTE, manifest.digest))
