"""TensorRT's ``trtexec`` (samples/trtexec), as its sources and public logs show it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from edgekit.backends.base import NUMBER, Reading, Timing, last, unread
from edgekit.types import Option

TOOL = "trtexec"
NOTES = ("trtexec: GPU compute time, without copies",)


def argv(model: str, options: Mapping[str, Option], timing: Timing, file: str) -> list[str]:
    """Time an engine that is there; whole seconds."""
    del options
    return [
        f"--loadEngine={model}",
        f"--warmUp={round(timing.warmup_s * 1e3)}",
        f"--duration={max(1, round(timing.seconds))}",
        f"--iterations={timing.iterations}",
        f"--exportTimes={file}",
    ]


def read(text: str, file: str = "") -> Reading:
    """GPU compute time, without copies from and to the host: that is what our own runner times."""
    line = last(r"GPU Compute Time: (.*)", text)
    if line is None:
        raise unread(TOOL, text)
    figures = {k: float(v) for k, v in re.findall(rf"([a-z]+(?:\(\d+%\))?)\s*=?\s*{NUMBER} ms", line)}
    load = last(rf"Engine (?:deserialized|loaded) in {NUMBER} s", text)
    return Reading(
        median_ms=figures.get("median"),
        mean_ms=figures.get("mean"),
        p90_ms=figures.get("percentile(90%)"),
        p99_ms=figures.get("percentile(99%)"),
        samples_ms=_times(file),
        load_ms=None if load is None else float(load) * 1e3,
    )


def _times(file: str) -> tuple[float, ...]:
    try:
        rows = json.loads(file) if file else []
        return tuple(float(row["computeMs"]) for row in rows)
    except (ValueError, KeyError, TypeError):
        return ()
