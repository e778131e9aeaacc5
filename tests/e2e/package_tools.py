"""Where ``tools/package_tools.sh`` put what the package tests need; each test skips with the reason without it."""

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
TRANSFORMERS = ROOT / "transformers"
REACT_NATIVE = ROOT / "react-native"
_PARTS = {
    "transformers": "transformers",
    "mediapipe": "mediapipe",
    "npm": "npm",
    "onnxruntime-jvm": "jvm",
    "react-native": "react_native",
}


def need(*what: str | Path) -> None:
    """Skip unless every program and file is there."""
    missing = [w for w in what if not (w.exists() if isinstance(w, Path) else shutil.which(w))]
    if missing:
        reasons = {_why(w) for w in missing} - {""}
        pytest.skip(
            f"missing {', '.join(map(str, missing))}: {'; '.join(sorted(reasons)) or 'make package-tools'}"
        )


def _why(what: str | Path) -> str:
    """Why the set-up could not install it, in the set-up's own words."""
    inside = isinstance(what, Path) and what.is_relative_to(ROOT)
    part = _PARTS[what.relative_to(ROOT).parts[0]] if inside and isinstance(what, Path) else "apt"
    try:
        return f"{part}: {(ROOT / 'why' / part).read_text().strip()}"
    except OSError:
        return ""
