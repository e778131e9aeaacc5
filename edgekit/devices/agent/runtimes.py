"""Where ``edgekit devices prepare`` puts runtimes on a device, and how the worker finds them."""

from __future__ import annotations

import os
import sys


def root() -> str:
    """``$EDGEKIT_RUNTIMES``, else ``edgekit/runtimes`` in the user's data folder."""
    data = os.environ.get("XDG_DATA_HOME") or os.path.join(os.path.expanduser("~"), ".local", "share")
    return os.environ.get("EDGEKIT_RUNTIMES") or os.path.join(data, "edgekit", "runtimes")


def folder(backend: str) -> str:
    """One folder a backend and version of Python."""
    return os.path.join(root(), "cp%d%d" % sys.version_info[:2], backend)


def use(backend: str) -> None:
    """Put what was prepared for ``backend`` before everything else that is installed."""
    prepared = folder(backend)
    if backend and os.path.isfile(os.path.join(prepared, "edgekit.json")):
        sys.path.insert(0, prepared)
