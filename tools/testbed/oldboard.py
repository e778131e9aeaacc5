"""The old board: an environment of its own with tflite_runtime, which needs numpy 1.

``python tools/testbed/oldboard.py`` makes it (30 MB); tests skip without it.
"""

from __future__ import annotations

import sys
import venv
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from testbed.cache import folder, why_not
from testbed.sshd import MissingToolError, call

PACKAGES = ("tflite-runtime==2.14.0", "numpy==1.26.4")


def root() -> Path:
    """Where the environment is kept between runs."""
    return folder() / "oldboard"


def python() -> Path:
    """Its interpreter."""
    return root() / "bin" / "python"


def problem() -> str:
    """Why there is none here; empty if there is."""
    if (root() / "ready").exists():
        return ""
    return why_not("oldboard", "the old board", "python tools/testbed/oldboard.py")


def make() -> None:
    """A virtual environment of this interpreter (tflite-runtime has wheels up to Python 3.11)."""
    if not problem():
        return
    if sys.version_info >= (3, 12):
        raise MissingToolError("tflite-runtime has no wheels for Python 3.12 and newer")
    venv.create(root(), with_pip=True, clear=True)
    call(python(), "-m", "pip", "install", "--quiet", "--timeout=30", "--retries=1", *PACKAGES)
    (root() / "ready").touch()


if __name__ == "__main__":
    try:
        make()
    except MissingToolError as error:
        sys.exit(str(error))
    print(f"made: {root()}")
