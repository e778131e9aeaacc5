"""A tensor's place in a file of an artifact."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Span:
    """A tensor's bytes in one file of the artifact. ``channels_last``: the last axis is the input channel.

    ``palette``: the values are indices into the earlier tensor of that name.
    """

    file: str
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int
    channels_last: bool = False
    palette: str = ""
