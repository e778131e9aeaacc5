"""ONNX Runtime's ``onnxruntime_perf_test`` (onnxruntime/test/perftest), as its sources and public logs show it."""

from __future__ import annotations

from collections.abc import Mapping

from edgekit.backends.base import NUMBER, Reading, Timing, last, unread
from edgekit.types import Option

TOOL = "onnxruntime_perf_test"
NOTES = ("onnxruntime_perf_test feeds random inputs",)


def argv(model: str, options: Mapping[str, Option], timing: Timing, file: str) -> list[str]:
    """A duration of whole seconds, one run at a time, on the CPU."""
    levels = {"disabled": 0, "basic": 1, "extended": 2, "all": 99}
    level = levels.get(str(options.get("graph_optimization", "all")), 99)
    # -I makes random inputs (axes without a size are 1).
    fixed = ["-I", "-e", "cpu", "-m", "duration", "-t", str(max(1, round(timing.seconds)))]
    return [*fixed, "-x", str(timing.threads), "-y", "1", "-o", str(level), model, file]


def read(text: str, file: str = "") -> Reading:
    """The figures it prints, and each run's seconds from the file it writes (model, seconds, … a line)."""
    mean = last(rf"Average inference time cost[^:\n]*: *{NUMBER} *ms", text)
    if mean is None:
        raise unread(TOOL, text)
    load = last(rf"Session creation time cost: *{NUMBER} *s", text)
    first = last(rf"First inference time cost: *{NUMBER} *ms", text)
    peak = last(rf"Peak working set size: *{NUMBER} *bytes", text)
    quantiles = {q: last(rf"P{q} Latency(?: is)?:? *{NUMBER} *s", text) for q in (50, 90, 99)}
    half, tenth, hundredth = (None if v is None else float(v) * 1e3 for v in quantiles.values())
    return Reading(
        median_ms=half,
        mean_ms=float(mean),
        p90_ms=tenth,
        p99_ms=hundredth,
        samples_ms=_runs(file),
        load_ms=None if load is None else float(load) * 1e3,
        first_ms=None if first is None else float(first),
        peak_memory=None if peak is None else int(float(peak)),
    )


def _runs(file: str) -> tuple[float, ...]:
    """Milliseconds a run. Newer versions write when a run was submitted, then how long it took; a number as large
    as a memory size is none of both."""
    milliseconds = []
    for line in file.splitlines():
        try:
            first, second = (float(v) for v in line.split(",")[1:3])
        except ValueError:
            continue
        milliseconds.append(1e3 * (second if 0 < second < 1e5 and second >= first else first))
    return tuple(milliseconds)
