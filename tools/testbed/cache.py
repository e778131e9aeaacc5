"""Where the parts of the test-bed that take a while to make are kept, and why one of them could not be made."""

from __future__ import annotations

import os
from pathlib import Path


def folder() -> Path:
    """``EDGEKIT_TESTBED``, or the user's cache."""
    own = os.environ.get("EDGEKIT_TESTBED")
    if own and own != "none":
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgekit-testbed"


def why_not(part: str, what: str, command: str) -> str:
    """A part that is not there: what the set-up said, or how to make it."""
    try:
        said = (folder() / "why" / part).read_text().strip()
    except OSError:
        said = ""
    return f"{what} could not be made: {said}" if said else f"{what} is not made: {command}"
