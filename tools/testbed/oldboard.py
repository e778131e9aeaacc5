"""The old board: an environment of its own with tflite_runtime, which needs numpy 1.

``python tools/testbed/oldboard.py`` makes it (30 MB); tests skip without it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

PACKAGES = ("tflite-runtime==2.14.0", "numpy==1.26.4")


def root() -> Path:
    """Where the environment is kept between runs."""
    cache = os.environ.get("EDGEKIT_TESTBED") or Path(
        os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    )
    return Path(cache) / "edgekit-testbed" / "oldboard"


def python() -> Path:
    """Its interpreter."""
    return root() / "bin" / "python"


def problem() -> str:
    """Why there is none here; empty if there is."""
    return (
        "" if (root() / "ready").exists() else "the old board is not made: python tools/testbed/oldboard.py"
    )


def make() -> None:
    """A virtual environment of this interpreter (tflite-runtime has wheels up to Python 3.11)."""
    if not problem():
        return
    venv.create(root(), with_pip=True, clear=True)
    subprocess.run([python(), "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
    (root() / "ready").touch()


if __name__ == "__main__":
    try:
        make()
    except subprocess.CalledProcessError as error:
        sys.exit(f"old board: {error}")
    print(f"made: {root()}")
