"""LiteRT's ``benchmark_model`` (tflite/tools/benchmark), as its sources and public logs show it."""

from __future__ import annotations

import re
from collections.abc import Mapping

from edgekit.backends.base import NUMBER, Reading, Timing, last, unread
from edgekit.types import Option

TOOL = "benchmark_model"
NOTES = ("benchmark_model feeds random inputs",)


def argv(model: str, options: Mapping[str, Option], timing: Timing, file: str) -> list[str]:
    """Steady state for at least so long and so often."""
    del file
    return [
        f"--graph={model}",
        f"--num_threads={timing.threads}",
        f"--use_xnnpack={'true' if options.get('xnnpack', True) else 'false'}",
        f"--num_runs={timing.iterations}",
        f"--min_secs={timing.seconds:g}",
        "--warmup_runs=1",
        f"--warmup_min_secs={timing.warmup_s:g}",
        "--report_peak_memory_footprint=true",
    ]


def read(text: str, file: str = "") -> Reading:
    """Microseconds: the line that sums up, and the last line of statistics (newer ones have a median)."""
    del file
    line = last(r"nference timings in us: (.*)", text)
    if line is None:
        raise unread(TOOL, text)
    figures = {key.strip(): float(value) for key, value in re.findall(rf"([A-Za-z ()]+): {NUMBER}", line)}
    counted = dict(re.findall(rf"(\w+)={NUMBER}", last(r"^(count=.*)$", text) or ""))
    mean = figures.get("Inference (avg)", figures.get("no stats"))
    first = figures.get("First inference")
    memory = last(rf"(?:Memory footprint delta|Peak memory footprint)[^:\n]*: .*overall={NUMBER}", text)
    return Reading(
        median_ms=float(counted["median"]) / 1e3 if "median" in counted else None,
        mean_ms=None if mean is None else mean / 1e3,
        load_ms=figures["Init"] / 1e3 if "Init" in figures else None,
        first_ms=None if first is None else first / 1e3,
        model_memory=None if memory is None else int(float(memory) * (1 << 20)),
    )
