"""Steps of the cache, shared between machines: what one node has made (an export, a calibration) others fetch.

A cell puts the steps that it made into an archive under each of its shared parts (:attr:`Cell.shared`), and fetches
those of others before it begins. The cache checks every file of them against its record, as it checks its own.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from edgekit.core import files
from edgekit.core.cache import PARTS, RECORD, STEPS
from edgekit.errors import EdgekitError
from edgekit.sweep.cells import Cell
from edgekit.sweep.storage import Storage, packed, unpacked

_PLACE = "cache"
_OWN = ("check", "fitting", "golden", "lower", "measure", "placed", "quantize", "speed", "verify")
"""Steps that are one target's, or one machine's: nobody else asks for them."""


class SharedCache:
    """This machine's cache at ``root``, and the steps in ``storage``."""

    def __init__(self, storage: Storage, root: Path) -> None:
        self._storage, self._root = storage, root
        self._began = time.time()

    def fetch(self, cell: Cell) -> None:
        """Steps that other machines made for the same source, recipe or calibration. What cannot be fetched is made."""
        seen = self._root / "fetched"
        for part in cell.shared:
            for name in self._storage.names(f"{_PLACE}/{part}"):
                mark = seen / part / name
                if mark.exists():
                    continue
                data = self._storage.get(f"{_PLACE}/{part}/{name}")
                with contextlib.suppress(EdgekitError, OSError), files.scratch(self._root / PARTS) as work:
                    unpacked(data or b"", work)
                    for step in sorted(work.glob(f"{STEPS}/*/*")):
                        self._take(step, self._root / step.relative_to(work))
                mark.parent.mkdir(parents=True, exist_ok=True)
                mark.touch()
        self._began = time.time()

    def _take(self, step: Path, final: Path) -> None:
        if not final.exists():
            final.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(OSError):  # another process of this machine was quicker
                step.rename(final)

    def give(self, cell: Cell) -> None:
        """What was made here since this object was: under the narrowest part that others may ask for."""
        made = [
            path
            for path in sorted((self._root / STEPS).glob("*/*"))
            if path.parent.name not in _OWN
            and (path / RECORD).is_file()
            and (path / RECORD).stat().st_ctime >= self._began
        ]
        if not made:
            return
        mark = self._root / "fetched" / cell.shared[0] / f"{cell.name}.tar"
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()  # it is here already
        self._storage.put(f"{_PLACE}/{cell.shared[0]}/{cell.name}.tar", packed(self._root, made))
