"""One loaded model called for minutes or hours, and loaded again and again: memory and latency over the time.

What is kept of it is a few figures a window, in arrays that are there before the first call, so that nothing of ours
grows meanwhile. Garbage is collected between the windows, not within: no pause of ours is charged to the runtime, and
what is only not collected yet is no leak.
"""

from __future__ import annotations

import gc
import time
from array import array
from typing import List

from . import memory
from .channel import Message
from .contention import Contention, affinity
from .failure import failing_as
from .job import Job, Runner, Session, milliseconds

_KEPT = 4096
"""Of a window's calls the last so many have a say in its figures."""


def soak(job: Job, runner: Runner) -> None:
    """Do what the job's ``soak`` settings say (``seconds``, ``windows``, ``reloads``), and send the result."""
    settings = job.asked["soak"]
    session = job.load(runner)
    job.first_sample(session)
    job.phase("first")
    start = time.perf_counter_ns()
    with failing_as("invoke"):
        session.invoke()
    first = milliseconds(start)
    job.phases.end("first")
    job.phase("soak")
    begun, contention = time.time(), Contention()
    windows = _windows(job, session, float(settings["seconds"]), int(settings["windows"]))
    load, ended = contention.stop(), time.time()
    job.phases.end("soak")
    del session
    gc.collect()
    reloads = _reloads(job, runner, int(settings["reloads"]))
    job.channel.send(
        "result",
        first_ms=first,
        windows=windows,
        reloads=reloads,
        steady=[begun, ended],
        contention=load,
        memory=job.phases.summary(),
        seconds=job.seconds,
        threads=job.options()["threads"],
        affinity=affinity(),
        counted=memory.growing()[0],
    )


def _windows(job: Job, session: Session, seconds: float, count: int) -> List[Message]:
    """Figures of ``count`` windows that together take ``seconds``: each has one call at least."""
    clock = time.perf_counter_ns
    times, calls = array("q", bytes(8 * _KEPT)), array("q", bytes(8 * count))
    ends, held = array("d", bytes(8 * count)), array("q", bytes(8 * count))
    figures = array("d", bytes(24 * count))
    start, invoke = clock(), session.invoke
    whole = int(seconds * 1e9)
    for window in range(count):
        limit = start + whole * (window + 1) // count
        done = 0
        gc.collect()
        gc.disable()
        after = clock()
        while done == 0 or after < limit:
            before = clock()
            invoke()
            after = clock()
            times[done % _KEPT] = after - before
            done += 1
        gc.enable()
        gc.collect()
        ends[window], calls[window] = (after - start) / 1e9, done
        figures[3 * window : 3 * window + 3] = _summary(times, min(done, _KEPT))
        held[window] = memory.growing()[1]
        job.channel.send("progress", done=int(ends[window]))
    return [
        {
            "at": ends[i],
            "calls": calls[i],
            "p50_ms": figures[3 * i],
            "p90_ms": figures[3 * i + 1],
            "p99_ms": figures[3 * i + 2],
            "bytes": held[i],
        }
        for i in range(count)
    ]


def _summary(times: array[int], count: int) -> array[float]:
    """Median, 90th and 99th percentile of the first ``count`` values, in milliseconds."""
    ordered = sorted(times[:count])
    return array("d", [ordered[min(count - 1, count * share // 100)] / 1e6 for share in (50, 90, 99)])


def _reloads(job: Job, runner: Runner, count: int) -> List[Message]:
    """The model loaded, called once and let go, so often: memory after each, and how long loading took."""
    found: List[Message] = []
    for number in range(count):
        job.phase("reload %d" % (number + 1))
        start = time.perf_counter_ns()
        with failing_as("load"):
            session = runner.load(job.asked["model"], job.options())
        taken = milliseconds(start)
        job.first_sample(session)
        with failing_as("invoke"):
            session.invoke()
        del session
        gc.collect()
        found.append({"load_ms": taken, "bytes": memory.growing()[1]})
    return found
