"""One job of a fresh process: the runtime imported, the model loaded, the samples read, failures by their kind."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, BinaryIO, Dict, Iterator, List, Optional, Protocol

from . import memory
from .channel import Channel, Message
from .contention import affinity, usable_processors
from .failure import JobError, failing_as

if TYPE_CHECKING:
    from .arrays import Array


class Session(Protocol):
    """A loaded model, as a backend's ``runner.load`` gives it. ``device_memory``, ``gpu_times`` and ``profile`` may
    be missing."""

    inputs: List[Message]
    outputs: List[Message]

    def prepare(self, arrays: Dict[str, Array]) -> None:
        """Take one sample."""

    def invoke(self) -> None:
        """Run it."""

    def results(self) -> Dict[str, Array]:
        """The outputs by name."""

    def placement(self) -> Message:
        """What was executed where."""

    def device_memory(self) -> Message:
        """Bytes on a GPU or NPU."""

    def gpu_times(self, runs: int) -> List[float]:
        """Milliseconds of GPU time of each of some inferences."""

    def profile(self, runs: int) -> Message:
        """The time of each operator."""


class Runner(Protocol):
    """A backend's ``runner.py``."""

    def versions(self) -> Dict[str, str]:
        """Of the runtime and of numpy; imports them."""

    def probe(self) -> Message:
        """Whether the runtime can be used here, and why not."""

    def load(self, path: str, options: Message) -> Session:
        """Load a model."""


def milliseconds(since: int) -> float:
    """From a value of ``perf_counter_ns`` until now."""
    return (time.perf_counter_ns() - since) / 1e6


class Job:
    """The way of one job, from import to result. ``asked`` is the host's message."""

    def __init__(self, channel: Channel, asked: Message) -> None:
        self.channel = channel
        self.asked = asked
        if asked.get("scratch"):  # what a runtime leaves behind when it crashes goes with the private folder
            os.environ["TMPDIR"] = asked["scratch"]
        self.seconds: Dict[str, float] = {}
        self.phases = memory.Phases()

    def bind(self) -> None:
        """Keep to the processors that ``cpus`` names (none: all). Before the import: a runtime's threads inherit it."""
        cpus = self.asked.get("cpus")
        if not cpus:
            return
        try:
            os.sched_setaffinity(0, cpus)
        except (AttributeError, OSError) as error:
            raise JobError("processors", str(getattr(error, "strerror", None) or error)) from error
        lacking = sorted(set(cpus) - set(affinity()))  # Linux takes those that exist and says nothing
        if lacking:
            raise JobError("processors", "there is no processor %s" % ", ".join(map(str, lacking)))

    def phase(self, name: str) -> None:
        """Say what comes next, so that a crash can be placed."""
        self.channel.send("phase", name=name)

    def options(self) -> Message:
        """The runner's options; ``threads`` 0 or absent becomes the number of usable processors.

        ``placement`` tells the runner to load so that ``Session.placement`` can tell.
        """
        options = dict(self.asked.get("options") or {})
        options["threads"] = int(options.get("threads") or 0) or usable_processors()
        if self.asked.get("placement"):
            options["placement"] = True
        if self.asked["action"] == "profile":
            options["profiling"] = True
        return options

    def runtime(self) -> Runner:
        """Import the runner and its runtime."""
        self.phase("import")
        start = time.perf_counter_ns()
        try:
            # The first two are put beside this module when it is packed.
            from . import backend, runner, runtimes  # type: ignore[attr-defined]

            runtimes.use(backend.NAME)
            versions = runner.versions()
        except ModuleNotFoundError as error:
            raise JobError("missing", str(error)) from error
        except (
            ImportError
        ) as error:  # it is there and cannot be loaded: for another processor, a library lacks
            raise JobError("unloadable", str(error)) from error
        self.seconds["import"] = milliseconds(start) / 1e3
        self.phases.end("import")
        self.channel.send("versions", versions=versions)
        found: Runner = runner
        return found

    def load(self, runner: Runner) -> Session:
        """Load the model."""
        probe = runner.probe()
        if not probe.get("usable"):
            raise JobError("unusable", str(probe.get("why_not", "the runtime cannot be used here")))
        self.phase("load")
        start = time.perf_counter_ns()
        with failing_as("load"):
            session = runner.load(self.asked["model"], self.options())
        for kind, specs in (("inputs", session.inputs), ("outputs", session.outputs)):
            names = [s["name"] for s in specs]
            if len(set(names)) < len(names):
                raise JobError("load", "it has several %s of one name, and nothing tells them apart" % kind)
        self.seconds["load"] = milliseconds(start) / 1e3
        self.phases.end("load")
        return session

    def samples(
        self, session: Session, file: BinaryIO, fed: Optional[Dict[str, Array]] = None
    ) -> Iterator[Dict[str, Array]]:
        """The job's samples as dictionaries by the model's own input names. What ``fed`` holds when a sample is asked
        for is in place of the sample's own."""
        from . import arrays  # after the runtime's import, which may bring a numpy of its own

        stream = self.asked["inputs"]
        specs = arrays.resolve(session.inputs, stream["names"], "input")
        absent = {s["name"] for s in session.inputs} - {s["name"] for s in specs.values()}
        if absent:
            raise JobError("input", "no array was given for input %s" % ", ".join(sorted(absent)))
        quantize = bool(self.asked.get("quantize"))
        for sample in arrays.read_stream(file, stream["names"], stream["count"]):
            sample.update(fed or {})
            yield {specs[n]["name"]: arrays.fit(a, specs[n], quantize) for n, a in sample.items()}

    def first_sample(self, session: Session) -> None:
        """Prepare the session with the first sample."""
        with open(self.asked["inputs"]["path"], "rb") as file:
            sample = next(self.samples(session, file))
        with failing_as("input"):
            session.prepare(sample)
