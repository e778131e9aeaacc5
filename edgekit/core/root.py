"""Where edgekit's own files are. Whoever needs the package's folder asks here, so that a module can move."""

from __future__ import annotations

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
"""The folder of the package ``edgekit``, symbolic links resolved."""

OWN = f"{PACKAGE}{os.sep}"
"""What the path of each of its files begins with. (That of a folder ``edgekit-models`` next to it does not.)"""
