"""The latency of one loaded model in this process: first inference, warm-up, steady state.

Inputs are filled outside the timer, and once: what is timed is ``invoke`` alone. Raw samples are kept;
nothing is dropped. Garbage collection is off while the clock runs, so that no pause of ours is charged
to the runtime.
"""

from __future__ import annotations

import gc
import statistics
import time
from typing import Callable, List

from .channel import Message
from .contention import Contention, affinity
from .failure import failing_as
from .job import Job, Session, milliseconds

_ON_GPU = 200
"""So many inferences more are timed by the GPU's own events: apart, since the events are launched, too."""


def bench(job: Job, session: Session) -> None:
    """Time ``session`` as the job's ``bench`` settings say, and send the result.

    Settings: ``warmup_s`` (at most), ``seconds`` (of steady state, at least), ``iterations`` (at least) and
    ``max_iterations``.
    """
    settings = job.asked["bench"]
    job.first_sample(session)
    job.phase("first")
    start = time.perf_counter_ns()
    with failing_as("invoke"):
        session.invoke()
    first = milliseconds(start)
    job.phases.end("first")
    gc.collect()
    gc.disable()
    job.phase("warm-up")
    warm = warm_up(session.invoke, float(settings["warmup_s"]))
    job.phase("steady")
    begun = time.time()
    contention = Contention()
    times = steady(session.invoke, settings)
    load = contention.stop()
    ended = time.time()
    gc.enable()
    job.phases.end("steady")
    on_gpu = session.gpu_times(min(_ON_GPU, len(times))) if hasattr(session, "gpu_times") else []
    on_device = session.device_memory() if hasattr(session, "device_memory") else None
    job.channel.send(
        "result",
        first_ms=first,
        samples_ms=times,
        warmup=warm,
        contention=load,
        steady=[begun, ended],
        memory=dict(job.phases.summary(), device=on_device),
        seconds=job.seconds,
        threads=job.options()["threads"],
        affinity=affinity(),
        gpu_ms=on_gpu,
    )


def warm_up(invoke: Callable[[], None], limit_s: float) -> Message:
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


def steady(invoke: Callable[[], None], settings: Message) -> List[float]:
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
