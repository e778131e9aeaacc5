"""JSON lines with sequence numbers, on a stdout that no runtime can write into."""

from __future__ import annotations

import json
import os
import sys
import threading
from typing import Any, Dict, Optional

Message = Dict[str, Any]
"""What a line of JSON holds. The host reads each by type (``wire.py``); here it is as it came."""


class Channel:
    """Sends events as JSON lines. Thread-safe: a heartbeat may write between two events.

    The process's own stdout is moved away first and replaced by stderr, so that a runtime that prints
    (all of them do) cannot break the protocol.
    """

    def __init__(self, descriptor: Optional[int] = None) -> None:
        if descriptor is None:
            sys.stdout.flush()
            descriptor = os.dup(1)
            os.dup2(2, 1)
        self._file = os.fdopen(descriptor, "w", encoding="utf-8", newline="\n")
        self._lock = threading.Lock()
        self._sequence = 0

    def send(self, event: str, **fields: object) -> None:
        """Write one event. Fields must be JSON-able; non-finite numbers are sent as null."""
        with self._lock:
            self._sequence += 1
            line: Message = {"seq": self._sequence, "event": event}
            line.update(fields)
            self._file.write(encode(line) + "\n")
            self._file.flush()


def encode(value: object) -> str:
    """Strict JSON on one line; NaN and infinities, which JSON lacks, become null."""
    try:
        return json.dumps(value, allow_nan=False, separators=(",", ":"))
    except ValueError:
        return json.dumps(_finite(value), allow_nan=False, separators=(",", ":"))


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return value
