"""Where ``make package-tools`` put what the package tests need; each test skips with the reason without it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
ROOT = Path(os.environ.get("EDGEKIT_PACKAGE_TOOLS") or _CACHE / "edgekit" / "package-tools")
MEDIAPIPE = ROOT / "mediapipe" / "bin" / "python"
NODE_MODULES = ROOT / "npm" / "node_modules"
ORT_JVM = ROOT / "onnxruntime-jvm" / "onnxruntime.jar"


def need(*what: str | Path) -> None:
    """Skip unless every program and file is there."""
    missing = [str(w) for w in what if not (w.exists() if isinstance(w, Path) else shutil.which(w))]
    if missing:
        pytest.skip(f"missing {', '.join(missing)}: make package-tools")
