"""The latency of one loaded model in this process: first inference, warm-up, steady state.

Inputs are filled outside the timer, and once: what is timed is ``invoke`` alone. Raw samples are kept;
nothing is dropped. Garbage collection is off while the clock runs, so that no pause of ours is charged
to the runtime.
"""

from __future__ import annotations

import gc
import statistics
import time
from typing import Any, Callable, Dict, List

from .contention import Contention, affinity
from .worker import JobError, Worker, _describe, _milliseconds


def bench(worker: Worker, session: Any) -> None:
    """Time ``session`` as the job's ``bench`` settings say, and send the result.

    Settings: ``warmup_s`` (at most), ``seconds`` (of steady state, at least), ``iterations`` (at least) and
    ``max_iterations``.
    """
    settings = worker.job["bench"]
    with open(worker.job["inputs"]["path"], "rb") as file:
        sample = next(worker.samples(session, file))
    session.prepare(sample)
    worker.phase("first")
    start = time.perf_counter_ns()
    try:
        session.invoke()
    except Exception as error:
        raise JobError("invoke", _describe(error)) from error
    first = _milliseconds(start)
    worker.phases.end("first")
    gc.collect()
    gc.disable()
    worker.phase("warm-up")
    warm = warm_up(session.invoke, float(settings["warmup_s"]))
    worker.phase("steady")
    begun = time.time()
    contention = Contention()
    times = steady(session.invoke, settings)
    load = contention.stop()
    ended = time.time()
    gc.enable()
    worker.phases.end("steady")
    worker.channel.send(
        "result",
        first_ms=first,
        samples_ms=times,
        warmup=warm,
        contention=load,
        steady=[begun, ended],
        memory=dict(worker.phases.summary(), device=_device_memory(session)),
        seconds=worker.seconds,
        threads=worker.options()["threads"],
        affinity=affinity(),
    )


def _device_memory(session: Any) -> Any:
    """Memory of a GPU or NPU, where the runner can tell."""
    return session.device_memory() if hasattr(session, "device_memory") else None


def warm_up(invoke: Callable[[], None], limit_s: float) -> Dict[str, Any]:
    """Invoke until two neighbouring windows agree, or for ``limit_s`` seconds.

    A window is as many invocations as take 50 ms, at least 5. Stable means that the medians of two
    windows in a row differ by less than 2 %. The windows' medians are reported.
    """
    clock = time.perf_counter_ns
    medians: List[float] = []
    end = clock() + int(limit_s * 1e9)
    while True:
        window: List[int] = []
        start = clock()
        while len(window) < 5 or clock() - start < 50_000_000:
            before = clock()
            invoke()
            window.append(clock() - before)
        medians.append(statistics.median(window) / 1e6)
        stable = len(medians) >= 2 and abs(medians[-1] - medians[-2]) <= 0.02 * medians[-2]
        if stable or clock() >= end:
            return {"stable": stable, "windows_ms": medians}


def steady(invoke: Callable[[], None], settings: Dict[str, Any]) -> List[float]:
    """Milliseconds of each invocation: ``iterations`` and ``seconds`` at least, ``max_iterations`` at most."""
    clock = time.perf_counter_ns
    least, most = int(settings["iterations"]), int(settings["max_iterations"])
    times: List[int] = []
    append = times.append
    end = clock() + int(float(settings["seconds"]) * 1e9)
    while True:
        before = clock()
        invoke()
        after = clock()
        append(after - before)
        if len(times) >= most or (after >= end and len(times) >= least):
            return [t / 1e6 for t in times]
