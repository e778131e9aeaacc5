"""Pickles of plain tensors, read without executing anything that they say."""

from __future__ import annotations

from pathlib import Path
from typing import IO

import torch

from edgekit.core.foreign import attempted
from edgekit.errors import SourceError


class NotTensorsError(SourceError):
    """A pickle holds more than tensors in plain containers, or cannot be read."""


def read_tensors(file: Path | IO[bytes]) -> object:
    """Tensors in dicts, lists and tuples, as ``torch.save`` wrote them. Raises :class:`NotTensorsError` for others."""
    # The unpickler runs a program that the file gives it, and raises whatever that program's operations do.
    read: object = attempted(lambda: torch.load(file, map_location="cpu", weights_only=True))
    if isinstance(read, Exception):
        raise NotTensorsError(
            "the pickle holds more than tensors, or is damaged",
            hint="save a state dict of plain tensors with torch.save",
        ) from read
    return read
