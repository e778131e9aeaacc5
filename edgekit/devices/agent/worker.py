"""One fresh process: import the runtime, load one model, run or time it, report, end.

The job is one JSON line on stdin (``wire.Job`` on the host); the answers are JSON lines on stdout. stdin stays open:
when it ends, the host is gone and so is this process, whatever a runtime is doing at that moment.

Events: ``phase`` (what is being tried, so that a crash can be placed), ``versions``, ``progress``, ``result`` (last
line of a job that went well), ``error`` (last line of one that did not, with its ``kind``).
"""

from __future__ import annotations

import errno
import json
import os
import sys
import threading
import time
from typing import TYPE_CHECKING, Dict

from . import building, profiling, program, soak, timing
from .channel import Channel
from .failure import JobError, describe, failing_as, trace
from .job import Job, Session

if TYPE_CHECKING:
    from .arrays import Array

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, None)  # None: of numpy's tofile, cut short


def main() -> int:
    """Read the job from stdin, do it, report it."""
    channel = Channel()
    try:
        line = sys.stdin.readline()
        if not line:
            return 2
        threading.Thread(target=_die_with_host, daemon=True).start()
        work(Job(channel, json.loads(line)))
    except JobError as error:
        cause = trace(error.__cause__) if error.__cause__ else ""
        channel.send("error", kind=error.kind, message=error.message, traceback=cause)
        return 1
    except BaseException as error:  # noqa: BLE001 - the host must hear of it, whatever it was
        full = isinstance(error, OSError) and error.errno in _DISK
        kind = "disk" if full else "internal"
        channel.send("error", kind=kind, message=describe(error), traceback=trace(error))
        return 1
    return 0


def _die_with_host() -> None:
    # The raw descriptor: the text layer may hold the job's line and would not see the end by itself.
    while os.read(0, 4096):
        pass
    os._exit(3)


def work(job: Job) -> None:
    """Do what the job's ``action`` says."""
    action = job.asked["action"]
    job.bind()
    if action in ("program", "identify", "build"):
        (program if action == "program" else building).run(job)
        return
    runner = job.runtime()
    if action == "probe":
        job.channel.send("result", probe=runner.probe(), versions=runner.versions())
        return
    if job.asked["action"] == "soak":
        soak.soak(job, runner)
        return
    session = job.load(runner)
    {"run": run, "profile": profiling.profile, "bench": timing.bench}[action](job, session)


def run(job: Job, session: Session) -> None:
    """Run every sample and write the outputs, sample by sample."""
    from . import arrays  # after the runtime's import, which may bring a numpy of its own

    names = job.asked["outputs"]["names"] or [s["name"] for s in session.outputs]
    specs = arrays.resolve(session.outputs, names, "output")
    quantize = bool(job.asked.get("quantize"))
    fed: Dict[str, Array] = {}
    job.phase("run")
    start = reported = time.perf_counter()
    done, placement = 0, None
    # Nested, not parenthesized: Python 3.8 reads this.
    with open(job.asked["inputs"]["path"], "rb") as source:  # noqa: SIM117
        with open(job.asked["outputs"]["path"], "wb") as sink:
            for sample in job.samples(session, source, fed):
                with failing_as("input", "sample %d: " % done):
                    session.prepare(sample)
                with failing_as("invoke", "sample %d: " % done):
                    session.invoke()
                results = session.results()
                if placement is None and job.asked.get("placement"):
                    placement = session.placement()
                outputs = {n: results[specs[n]["name"]] for n in names}
                if quantize:
                    outputs = {n: arrays.dequantize(a, specs[n]) for n, a in outputs.items()}
                arrays.write_sample(sink, names, outputs)
                fed.update({f["input"]: arrays.next_state(f, outputs) for f in job.asked.get("fed") or ()})
                done += 1
                if time.perf_counter() - reported > 0.5:
                    reported = time.perf_counter()
                    job.channel.send("progress", done=done)
    job.seconds["run"] = time.perf_counter() - start
    read = arrays.resolve(session.inputs, job.asked["inputs"]["names"], "input")
    job.channel.send(
        "result",
        done=done,
        names=names,
        placement=placement,
        seconds=job.seconds,
        inputs={name: arrays.port(spec) for name, spec in read.items()},
        outputs={name: arrays.port(specs[name]) for name in names},
    )
