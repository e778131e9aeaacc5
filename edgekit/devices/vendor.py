"""Programs of the runtimes' vendors that time a model, for devices on which no Python runs.

What each prints is read into a :class:`~edgekit.backends.base.Reading`; what it does not say is named there, never
guessed. Their inputs are random, so what they compute is not checked: an artifact is verified elsewhere.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import cast

from edgekit.backends.base import Reading, VendorTool
from edgekit.core import plugins
from edgekit.errors import UsageError


def tools() -> Mapping[str, VendorTool]:
    """The programs by backend, of those that have one."""
    offered = {name: _tool(name) for name in plugins.backends()}
    return {name: tool for name, tool in offered.items() if tool is not None}


def tool_of(backend: str) -> VendorTool:
    """The program that times a backend's artifacts. Raises :class:`UsageError` where there is none."""
    tool = _tool(backend)
    if tool is None:
        raise UsageError(
            f"no program of its vendor times {backend} artifacts without Python",
            hint=f"on such a device these can be timed: {', '.join(tools())}",
        )
    return tool


def _tool(backend: str) -> VendorTool | None:
    return cast("VendorTool | None", plugins.member(backend, "benchmark", VendorTool))


def merged_notes(tool: VendorTool, readings: Sequence[Reading]) -> tuple[str, ...]:
    """What to say of a measurement made with ``tool``."""
    missing = dict.fromkeys(word for reading in readings for word in reading.missing())
    silent = f"{tool.TOOL} does not tell: {', '.join(missing)}" if missing else ""
    return (*tool.NOTES, *([silent] if silent else []))


def median_of(values: Sequence[float | None]) -> float | None:
    """The median of what there is."""
    there = [v for v in values if v is not None]
    return statistics.median(there) if there else None
