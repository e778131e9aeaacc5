"""One fresh process: import the runtime, load one model, run or time it, report, end.

The job is one JSON line on stdin; the answers are JSON lines on stdout. stdin stays open: when it ends,
the host is gone and so is this process, whatever a runtime is doing at that moment.

Events: ``phase`` (what is being tried, so that a crash can be placed), ``ready`` (versions, inputs and
outputs), ``result`` (last line of a job that went well), ``error`` (last line of one that did not; its
``kind`` is processors, program, missing, unusable, load, input, invoke, disk or internal).
"""

from __future__ import annotations

import errno
import json
import os
import sys
import threading
import time
import traceback
from typing import Any, Dict, List

from . import memory
from .channel import Channel
from .contention import affinity, usable_processors

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, None)  # None: of numpy's tofile, cut short


class JobError(Exception):
    """A failure with its kind, to be reported to the host."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message


def main() -> int:
    """Read the job from stdin, do it, report it."""
    channel = Channel()
    line = sys.stdin.readline()
    if not line:
        return 2
    threading.Thread(target=_die_with_host, daemon=True).start()
    try:
        Worker(channel, json.loads(line)).work()
    except JobError as error:
        trace = _trace(error.__cause__) if error.__cause__ else ""
        channel.send("error", kind=error.kind, message=error.message, traceback=trace)
        return 1
    except BaseException as error:  # noqa: BLE001 - the host must hear of it, whatever it was
        full = isinstance(error, OSError) and error.errno in _DISK
        kind = "disk" if full else "internal"
        channel.send("error", kind=kind, message=_describe(error), traceback=_trace(error))
        return 1
    return 0


def _die_with_host() -> None:
    # The raw descriptor: the text layer may hold the job's line and would not see the end by itself.
    while os.read(0, 4096):
        pass
    os._exit(3)


def _trace(error: BaseException) -> str:
    return "".join(traceback.format_exception(type(error), error, error.__traceback__))[-8000:]


def _describe(error: BaseException) -> str:
    return "%s: %s" % (type(error).__name__, error)


def _milliseconds(since: int) -> float:
    return (time.perf_counter_ns() - since) / 1e6


class Worker:
    """The way of one job, from import to result."""

    def __init__(self, channel: Channel, job: Dict[str, Any]) -> None:
        self.channel = channel
        self.job = job
        if job.get("scratch"):  # what a runtime leaves behind when it crashes goes with the private folder
            os.environ["TMPDIR"] = job["scratch"]
        self.seconds: Dict[str, float] = {}
        self.phases = memory.Phases()

    def work(self) -> None:
        """Do what the job's ``action`` says, on the processors that its ``cpus`` names (none: as it is)."""
        if self.job.get("cpus"):
            self._bind(self.job["cpus"])
        if self.job["action"] == "program":
            from . import program

            program.run(self)
            return
        runner = self._import()
        if self.job["action"] == "probe":
            self.channel.send("result", probe=runner.probe(), versions=runner.versions())
            return
        session = self._load(runner)
        if self.job["action"] == "run":
            self._run(session)
        elif self.job["action"] == "profile":
            from . import profiling

            profiling.profile(self, session)
        else:
            from . import timing

            timing.bench(self, session)

    def _bind(self, cpus: List[int]) -> None:
        """Before the import: the threads that a runtime makes inherit it."""
        try:
            os.sched_setaffinity(0, cpus)
        except (AttributeError, OSError) as error:
            raise JobError("processors", str(getattr(error, "strerror", None) or error)) from error
        lacking = sorted(set(cpus) - set(affinity()))  # Linux takes those that exist and says nothing
        if lacking:
            raise JobError("processors", "there is no processor %s" % ", ".join(map(str, lacking)))

    def phase(self, name: str) -> None:
        """Say what comes next."""
        self.channel.send("phase", name=name)

    def options(self) -> Dict[str, Any]:
        """The runner's options; ``threads`` 0 or absent becomes the number of usable processors.

        ``placement`` tells the runner to load so that ``Session.placement`` can tell.
        """
        options = dict(self.job.get("options") or {})
        options["threads"] = int(options.get("threads") or 0) or usable_processors()
        if self.job.get("placement"):
            options["placement"] = True
        if self.job["action"] == "profile":
            options["profiling"] = True
        return options

    def _import(self) -> Any:
        self.phase("import")
        start = time.perf_counter_ns()
        try:
            # The first two are put beside this module when it is packed.
            from . import backend, runner, runtimes  # type: ignore[attr-defined]

            runtimes.use(backend.NAME)
            versions = runner.versions()
        except ImportError as error:
            raise JobError("missing", str(error)) from error
        self.seconds["import"] = _milliseconds(start) / 1e3
        self.phases.end("import")
        self.channel.send("versions", versions=versions)
        return runner

    def _load(self, runner: Any) -> Any:
        probe = runner.probe()
        if not probe.get("usable"):
            raise JobError("unusable", str(probe.get("why_not", "the runtime cannot be used here")))
        self.phase("load")
        options = self.options()
        start = time.perf_counter_ns()
        try:
            session = runner.load(self.job["model"], options)
        except Exception as error:
            raise JobError("load", _describe(error)) from error
        self.seconds["load"] = _milliseconds(start) / 1e3
        self.phases.end("load")
        self.channel.send("ready", inputs=session.inputs, outputs=session.outputs, options=options)
        return session

    def samples(self, session: Any, file: Any) -> Any:
        """The job's samples as dictionaries by the model's own input names."""
        from . import arrays

        names = self.job["inputs"]["names"]
        try:
            specs = arrays.resolve(session.inputs, names, "input")
            absent = {s["name"] for s in session.inputs} - {s["name"] for s in specs.values()}
            if absent:
                raise arrays.InputError("no array was given for input %s" % ", ".join(sorted(absent)))
            for sample in arrays.read_stream(file, names, self.job["inputs"]["count"]):
                yield {
                    specs[n]["name"]: arrays.fit(a, specs[n], bool(self.job.get("quantize")))
                    for n, a in sample.items()
                }
        except arrays.InputError as error:
            raise JobError("input", str(error)) from error

    def step(self, session: Any, sample: Dict[str, Any], index: int) -> None:
        """Prepare and invoke once, failures attributed to the sample."""
        try:
            session.prepare(sample)
        except Exception as error:
            raise JobError("input", "sample %d: %s" % (index, _describe(error))) from error
        try:
            session.invoke()
        except Exception as error:
            raise JobError("invoke", "sample %d: %s" % (index, _describe(error))) from error

    def _run(self, session: Any) -> None:
        from . import arrays

        wanted = self.job["outputs"]["names"] or [s["name"] for s in session.outputs]
        try:
            specs = arrays.resolve(session.outputs, wanted, "output")
        except arrays.InputError as error:
            raise JobError("input", str(error)) from error
        self.phase("run")
        start = told = time.perf_counter()
        done, placement = 0, None
        # Nested, not parenthesized: Python 3.8 reads this.
        with open(self.job["inputs"]["path"], "rb") as source:  # noqa: SIM117
            with open(self.job["outputs"]["path"], "wb") as sink:
                for sample in self.samples(session, source):
                    self.step(session, sample, done)
                    results = session.results()
                    if placement is None and self.job.get("placement"):
                        placement = session.placement()
                    arrays.write_sample(sink, wanted, {n: self._result(results, specs[n]) for n in wanted})
                    done += 1
                    if time.perf_counter() - told > 0.5:
                        told = time.perf_counter()
                        self.channel.send("progress", done=done)
        self.seconds["run"] = time.perf_counter() - start
        self.channel.send("result", done=done, names=wanted, placement=placement, seconds=self.seconds)

    def _result(self, results: Dict[str, Any], spec: Dict[str, Any]) -> Any:
        from . import arrays

        array = results[spec["name"]]
        return arrays.dequantize(array, spec) if self.job.get("quantize") else array
