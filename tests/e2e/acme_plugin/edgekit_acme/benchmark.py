"""The engine's own benchmark tool: prints ``acme: 1.5 ms``."""

from collections.abc import Mapping

from edgekit.backends.base import NUMBER, Reading, Timing, last, unread
from edgekit.types import Option

TOOL = "acme_bench"
NOTES = ("acme_bench feeds zeros",)


def argv(model: str, options: Mapping[str, Option], timing: Timing, file: str) -> list[str]:
    return [model, f"--runs={timing.iterations}"]


def read(text: str, file: str = "") -> Reading:
    median = last(rf"acme: {NUMBER} ms", text)
    if median is None:
        raise unread(TOOL, text)
    return Reading(median_ms=float(median))
