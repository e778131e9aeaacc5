"""The aarch64 board: ``with Arm64() as board``."""

from __future__ import annotations

from dataclasses import dataclass

from testbed.boards import ARM64, Board, Kind


@dataclass(kw_only=True)
class Arm64(Board):
    """A :class:`Board` of kind ``ARM64``."""

    kind: Kind = ARM64
