"""Programs of the runtimes' makers that time a model, for devices on which no Python runs.

What each prints is read into a :class:`Reading`; what it does not tell is named there, never guessed. Their inputs
are random, so what they compute is not checked: an artifact is verified elsewhere.

Formats: LiteRT's ``benchmark_model`` (tflite/tools/benchmark), ONNX Runtime's ``onnxruntime_perf_test``
(onnxruntime/test/perftest) and TensorRT's ``trtexec`` (samples/trtexec), as their sources and public logs show them.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from edgekit.errors import BackendError, UsageError
from edgekit.types import Option

_NUMBER = r"([-+\d.eE]+)"
_MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Timing:
    """What a program is asked for: steady state in seconds and iterations (at least), warm-up in seconds."""

    seconds: float
    iterations: int
    warmup_s: float
    threads: int


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What one process told, in milliseconds and bytes; ``None``: it does not tell.

    ``samples_ms`` are the single inferences where it gives them. ``model_memory`` is what the model added,
    ``peak_memory`` the process's peak.
    """

    median_ms: float | None = None
    mean_ms: float | None = None
    p90_ms: float | None = None
    p99_ms: float | None = None
    samples_ms: tuple[float, ...] = ()
    load_ms: float | None = None
    first_ms: float | None = None
    peak_memory: int | None = None
    model_memory: int | None = None

    @property
    def steady_ms(self) -> tuple[float, ...]:
        """The samples, else the one figure that stands for them."""
        one = self.median_ms if self.median_ms is not None else self.mean_ms
        return self.samples_ms or (() if one is None else (one,))

    def missing(self) -> tuple[str, ...]:
        """What it did not tell, in words."""
        figures = {
            "single inferences": self.samples_ms or None,
            "a median (the mean stands for it)": self.samples_ms or self.median_ms,
            "the time to load": self.load_ms,
            "the first inference": self.first_ms,
            "memory": self.peak_memory if self.peak_memory is not None else self.model_memory,
        }
        return tuple(name for name, value in figures.items() if value is None)


@dataclass(frozen=True, kw_only=True)
class Program:
    """``argv`` gives what follows the program's path: for a model's path, its runtime options, what is asked for,
    and a file that it may write; ``read`` takes its output and that file's text."""

    name: str
    backend: str
    argv: Callable[[str, Mapping[str, Option], Timing, str], list[str]]
    read: Callable[[str, str], Reading]
    notes: tuple[str, ...] = ()


def program_of(backend: str) -> Program:
    """The program that times a backend's artifacts. Raises :class:`UsageError` where there is none."""
    if backend not in PROGRAMS:
        raise UsageError(
            f"no program of its maker times {backend} artifacts without Python",
            hint=f"on such a device these can be timed: {', '.join(PROGRAMS)}",
        )
    return PROGRAMS[backend]


# --- LiteRT: benchmark_model ----------------------------------------------------------------------------


def _benchmark_model(model: str, options: Mapping[str, Option], timing: Timing, file: str) -> list[str]:
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


def read_benchmark_model(text: str, file: str = "") -> Reading:
    """Microseconds: the line that sums up, and the last line of statistics (newer ones have a median)."""
    del file
    line = _last(r"nference timings in us: (.*)", text)
    if line is None:
        raise _unread("benchmark_model", text)
    told = dict(re.findall(rf"([A-Za-z ()]+): {_NUMBER}", line))
    told = {key.strip(): float(value) for key, value in told.items()}
    counted = dict(re.findall(rf"(\w+)={_NUMBER}", _last(r"^(count=.*)$", text) or ""))
    mean = told.get("Inference (avg)", told.get("no stats"))
    first = told.get("First inference")
    memory = _last(rf"(?:Memory footprint delta|Peak memory footprint)[^:]*: .*overall={_NUMBER}", text)
    return Reading(
        median_ms=float(counted["median"]) / 1e3 if "median" in counted else None,
        mean_ms=None if mean is None else mean / 1e3,
        load_ms=told["Init"] / 1e3 if "Init" in told else None,
        first_ms=None if first is None else first / 1e3,
        model_memory=None if memory is None else int(float(memory) * _MIB),
    )


# --- ONNX Runtime: onnxruntime_perf_test ----------------------------------------------------------------


def _perf_test(model: str, options: Mapping[str, Option], timing: Timing, file: str) -> list[str]:
    levels = {"disabled": 0, "basic": 1, "extended": 2, "all": 99}
    level = levels.get(str(options.get("graph_optimization", "all")), 99)
    # -I makes random inputs (axes without a size are 1); a duration of whole seconds.
    argv = ["-I", "-e", "cpu", "-m", "duration", "-t", str(max(1, round(timing.seconds)))]
    return [*argv, "-x", str(timing.threads), "-y", "1", "-o", str(level), model, file]


def read_perf_test(text: str, file: str = "") -> Reading:
    """The figures it prints, and each run's seconds from the file it writes (model, seconds, … a line)."""
    mean = _last(rf"Average inference time cost[^:]*: *{_NUMBER} *ms", text)
    if mean is None:
        raise _unread("onnxruntime_perf_test", text)
    load = _last(rf"Session creation time cost: *{_NUMBER} *s", text)
    first = _last(rf"First inference time cost: *{_NUMBER} *ms", text)
    peak = _last(rf"Peak working set size: *{_NUMBER} *bytes", text)
    quantiles = {q: _last(rf"P{q} Latency(?: is)?:? *{_NUMBER} *s", text) for q in (50, 90, 99)}
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
    found = []
    for line in file.splitlines():
        try:
            first, second = (float(v) for v in line.split(",")[1:3])
        except ValueError:
            continue
        found.append(1e3 * (second if 0 < second < 1e5 and second >= first else first))
    return tuple(found)


# --- TensorRT: trtexec ----------------------------------------------------------------------------------


def _trtexec(model: str, options: Mapping[str, Option], timing: Timing, file: str) -> list[str]:
    del options
    return [
        f"--loadEngine={model}",
        f"--warmUp={round(timing.warmup_s * 1e3)}",
        f"--duration={max(1, round(timing.seconds))}",
        f"--iterations={timing.iterations}",
        f"--exportTimes={file}",
    ]


def read_trtexec(text: str, file: str = "") -> Reading:
    """GPU compute time, without copies from and to the host: that is what our own runner times."""
    line = _last(r"GPU Compute Time: (.*)", text)
    if line is None:
        raise _unread("trtexec", text)
    told = {k: float(v) for k, v in re.findall(rf"([a-z]+(?:\(\d+%\))?)\s*=?\s*{_NUMBER} ms", line)}
    load = _last(rf"Engine (?:deserialized|loaded) in {_NUMBER} s", text)
    return Reading(
        median_ms=told.get("median"),
        mean_ms=told.get("mean"),
        p90_ms=told.get("percentile(90%)"),
        p99_ms=told.get("percentile(99%)"),
        samples_ms=_times(file),
        load_ms=None if load is None else float(load) * 1e3,
    )


def _times(file: str) -> tuple[float, ...]:
    try:
        rows = json.loads(file) if file else []
        return tuple(float(row["computeMs"]) for row in rows)
    except (ValueError, KeyError, TypeError):
        return ()


PROGRAMS: Mapping[str, Program] = {
    p.backend: p
    for p in (
        Program(
            name="benchmark_model",
            backend="tflite",
            argv=_benchmark_model,
            read=read_benchmark_model,
            notes=("benchmark_model feeds random inputs",),
        ),
        Program(
            name="onnxruntime_perf_test",
            backend="onnxruntime",
            argv=_perf_test,
            read=read_perf_test,
            notes=("onnxruntime_perf_test feeds random inputs",),
        ),
        Program(
            name="trtexec",
            backend="tensorrt",
            argv=_trtexec,
            read=read_trtexec,
            notes=("trtexec: GPU compute time, without copies",),
        ),
    )
}
"""By backend."""


def merged_notes(program: Program, readings: Sequence[Reading]) -> tuple[str, ...]:
    """What to say of a measurement made by ``program``."""
    missing = dict.fromkeys(word for reading in readings for word in reading.missing())
    told = f"{program.name} does not tell: {', '.join(missing)}" if missing else ""
    return (*program.notes, *([told] if told else []))


def median_of(values: Sequence[float | None]) -> float | None:
    """The median of what there is."""
    there = [v for v in values if v is not None]
    return statistics.median(there) if there else None


def _last(pattern: str, text: str) -> str | None:
    found = re.findall(pattern, text, re.MULTILINE)
    return found[-1] if found else None


def _unread(program: str, text: str) -> BackendError:
    return BackendError(
        f"{program} printed no times:\n{text.strip()[-1500:]}",
        hint="run it by hand on the device with the same arguments; report the output if it should have been read",
    )
