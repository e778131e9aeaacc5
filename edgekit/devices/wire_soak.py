"""What the agent's ``soak`` job answers (``agent/soak.py``)."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from edgekit.devices.wire import Contention, Count, Memory, Message, Processors, Text, Threads, Time

_FEW = Meta(max_length=4096)
_Bytes = Annotated[int, Meta(ge=-1, le=1 << 50)]
"""-1 where the kernel does not tell."""


class Window(Message, frozen=True):
    """So many calls until ``at`` (seconds since the first), median and percentiles of the last 4,096 of them,
    and the process's memory after them."""

    at: Time
    calls: Count
    p50_ms: Time
    p90_ms: Time
    p99_ms: Time
    bytes: _Bytes


class Reload(Message, frozen=True):
    """The model loaded once more, called, and let go: how long loading took, and the memory afterwards."""

    load_ms: Time
    bytes: _Bytes


class SoakResult(Message, frozen=True):
    """Of the action ``soak``. ``counted``: what the bytes are, the process's own memory or all that is resident."""

    first_ms: Time
    windows: Annotated[tuple[Window, ...], Meta(min_length=1, max_length=4096)]
    reloads: Annotated[tuple[Reload, ...], Meta(max_length=4096)]
    steady: tuple[Time, Time]
    contention: Contention
    memory: Memory
    seconds: Annotated[dict[Text, Time], _FEW]
    threads: Threads
    affinity: Processors = ()
    counted: Literal["", "own", "resident"] = ""
