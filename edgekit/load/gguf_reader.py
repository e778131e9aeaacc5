"""The gguf package's reader, which believes what a file says: lengths that lead out of it are an error here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from gguf import GGUFReader


def open_gguf(path: Path) -> GGUFReader:
    """A reader of the file, which is mapped. Raises ``ValueError`` and others where it is damaged.

    A list may state 2**62 members: the package would ask for each of them, beyond the end of the file too.
    """
    import gguf

    class Reader(gguf.GGUFReader):  # type: ignore[misc]  # the package has no types
        def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
            end = int(offset) + int(np.dtype(dtype).itemsize) * int(count)
            if not 0 <= int(offset) <= end <= len(self.data):
                raise ValueError("a length in it leads out of the file")
            return super()._get(offset, dtype, count, override_order)

    reader: GGUFReader = Reader(str(path))
    return reader
