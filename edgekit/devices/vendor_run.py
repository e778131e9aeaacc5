"""Times artifacts with a maker's program on a device: fresh processes, interleaved, watched, one at a time.

The program runs under a small shell that ends it when the host is gone; what phones say of heat and battery is
looked at between processes.
"""

from __future__ import annotations

import os
import socket
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from edgekit.backends.base import Reading, Timing, VendorTool
from edgekit.core.files import temporary
from edgekit.devices.health import Health, assess, hottest
from edgekit.devices.plan import Look, Task, Watch, look, run_plan
from edgekit.devices.statistics import summarize
from edgekit.devices.transports import android
from edgekit.devices.transports.connect import connect, send_agent, send_model, without_python
from edgekit.devices.transports.process import Patience
from edgekit.devices.vendor import median_of, merged_notes, tool_of
from edgekit.errors import DeviceBusyError, DeviceError, RuntimeCrashError, UsageError
from edgekit.types import Measurement

if TYPE_CHECKING:
    import threading

    from edgekit.devices.runnable import Runnable
    from edgekit.devices.transports.transport import Transport
    from edgekit.types import Device

_COOL_DOWN_S = 300.0
_LINES = 4000

_WATCHED = """
exec 3<&0
"$@" </dev/null 3<&- &
p=$!
(exec <&3 3<&- >/dev/null 2>&1; while read -r x; do :; done; kill -9 $p) &
w=$!
exec 3<&-
wait $p; s=$?
kill -9 $w 2>/dev/null
exit $s
"""
"""Ends the program when stdin does: the host is gone. The watcher keeps neither of our outputs open (a redirection of
the whole group would, in mksh), and is a shell without children: nothing of it stays behind."""

_HOLD = """
lock=$1/edgekit-lock; read -r boot process rest < "$2/.edgekit"
if ! mkdir "$lock" 2>/dev/null; then
  read -r its_boot its_process who < "$lock/holder"
  if [ "$its_boot" = "$boot" ] && [ -d "/proc/$its_process" ]; then echo "held $who"; exit 0; fi
  rm -rf "$lock"; mkdir "$lock" || exit 1
fi
echo "$boot $process $3" > "$lock/holder"
echo "ours"
"""
"""A folder is the lock; it is free when the shell of the session that made it is no more."""


@dataclass(frozen=True, kw_only=True)
class VendorSettings:
    """As :class:`edgekit.devices.bench.BenchSettings`, what a maker's program can be told of it."""

    seconds: float
    iterations: int
    warmup_s: float
    timeout: float
    threads: int = 0
    cpus: tuple[int, ...] = ()
    on_progress: Callable[[int, int], None] | None = None
    cancel: threading.Event | None = None


def applies(device: Device) -> bool:
    """Whether the device is timed this way: it has no Python, or the user named a program."""
    return without_python(device) or bool(device.options.get("binary"))


def measure(
    device: Device, runnables: Sequence[Runnable], order: str, settings: VendorSettings
) -> dict[str, Measurement]:
    """Fresh processes in ``order``, whose letters A and B stand for ``runnables``; by letter.

    Raises :class:`UsageError` when no program is known, :class:`RuntimeCrashError`,
    :class:`~edgekit.errors.BackendError` when its output cannot be read, and :class:`DeviceError`.
    """
    with connect(device) as transport, temporary("program") as folder:
        run = _Run(transport=transport, device=device, settings=settings, folder=Path(folder))
        found = run.bare(runnables, order) if without_python(device) else run.supervised(runnables, order)
    health = assess(found.facts, found.states)
    health = replace(health, noisy=(*health.noisy, found.hot)) if found.hot else health
    return {
        letter: _measurement(device, prepared, found, health) for letter, prepared in found.prepared.items()
    }


@dataclass(frozen=True, kw_only=True)
class _Prepared:
    tool: VendorTool
    backend: str
    argv: tuple[str, ...]
    file: str
    threads: int


@dataclass(frozen=True, kw_only=True)
class _Found:
    """What came of a run: readings by letter, and the device before, between and after. ``hot``: it began so."""

    prepared: Mapping[str, _Prepared]
    readings: Mapping[str, list[Reading]]
    facts: Mapping[str, Any]
    states: Sequence[Mapping[str, Any]]
    hot: str


@dataclass(frozen=True, kw_only=True)
class _Run:
    transport: Transport
    device: Device
    settings: VendorSettings
    folder: Path

    def bare(self, runnables: Sequence[Runnable], order: str) -> _Found:
        """Without Python there: one shell command after the other."""
        with _held(self.transport, self.device):
            before, hot = _cooled(self.device, partial(android.look, self.transport))
            mask = sum(1 << cpu for cpu in self.settings.cpus)
            bound = ("taskset", f"{mask:x}") if mask else ()
            prepared = self._all(runnables, before.facts)
            readings: dict[str, list[Reading]] = {letter: [] for letter in prepared}
            states = [before.state]
            for done, letter in enumerate(order, 1):
                readings[letter].append(self.once(prepared[letter], bound))
                states.append(android.sample(self.transport))
                if self.settings.on_progress is not None:
                    self.settings.on_progress(done, len(order))
        return _Found(prepared=prepared, readings=readings, facts=before.facts, states=states, hot=hot)

    def supervised(self, runnables: Sequence[Runnable], order: str) -> _Found:
        """With Python there: the agent runs the program, with its lock, heartbeat and journal."""
        agents = {r.backend: send_agent(self.transport, r.backend, self.folder) for r in runnables}
        agent = agents[runnables[0].backend]
        before, hot = _cooled(self.device, partial(look, self.transport, agent))
        prepared = self._all(runnables, before.facts)
        tasks = [
            Task(
                id=f"{number}-{letter}",
                backend=prepared[letter].backend,
                agent=agents[prepared[letter].backend],
                job={
                    "action": "program",
                    "scratch": str(self.transport.root),
                    "argv": prepared[letter].argv,
                    "file": str(self.transport.root / prepared[letter].file),
                    "cpus": self.settings.cpus,
                },
                timeout=self.settings.timeout,
            )
            for number, letter in enumerate(order)
        ]
        watch = Watch(on_done=self.settings.on_progress, cancel=self.settings.cancel)
        results = run_plan(self.transport, tasks, watch)
        readings: dict[str, list[Reading]] = {letter: [] for letter in prepared}
        for task in tasks:
            said, letter = results[task.id].result, task.id[-1]
            readings[letter].append(prepared[letter].tool.read(said["text"], said["file"]))
        states = [before.state, *watch.states]
        return _Found(prepared=prepared, readings=readings, facts=before.facts, states=states, hot=hot)

    def _all(self, runnables: Sequence[Runnable], facts: Mapping[str, Any]) -> dict[str, _Prepared]:
        return {x: self.prepare(x, runnable, facts) for x, runnable in zip("AB", runnables, strict=False)}

    def prepare(self, letter: str, runnable: Runnable, facts: Mapping[str, Any]) -> _Prepared:
        """Put the program and the model there. As many threads as processors, as our own runners have them."""
        tool = tool_of(runnable.backend)
        path = self._program(tool, facts)
        model = str(send_model(self.transport, runnable, folder=letter))
        file = f"{letter}-times"
        asked = self.settings.threads or int(runnable.options.get("threads", 0))
        threads = asked or len(self.settings.cpus) or int(facts.get("usable_processors", 1))
        timing = Timing(
            seconds=self.settings.seconds,
            iterations=self.settings.iterations,
            warmup_s=self.settings.warmup_s,
            threads=threads,
        )
        argv = [path, *tool.argv(model, runnable.options, timing, str(self.transport.root / file))]
        return _Prepared(tool=tool, backend=runnable.backend, argv=tuple(argv), file=file, threads=threads)

    def _program(self, tool: VendorTool, facts: Mapping[str, Any]) -> str:
        """The path there of the program that the user named: sent, or with ``device:`` there already."""
        named = str(self.device.options.get("binary") or self.device.options.get(tool.TOOL) or "")
        if not named:
            raise UsageError(
                f"{self.device.name} has no Python, and no {tool.TOOL} was named to time with",
                hint=f"--binary PATH to {tool.TOOL} for its ABI ({facts.get('abi') or facts['arch']}), or "
                f"{tool.TOOL} = … in the device's row; device:PATH is one that is there already",
            )
        if named.startswith("device:"):
            return named.removeprefix("device:")
        here = Path(named).expanduser()
        if not here.is_file():
            raise UsageError(f"there is no {here}", hint=f"give the path of {tool.TOOL} on this machine")
        there = str(self.transport.put(here, tool.TOOL))
        if self.transport.remote:
            _short(self.transport, ["chmod", "700", there])
        return there

    def once(self, prepared: _Prepared, bound: Sequence[str]) -> Reading:
        """One fresh process, ``bound`` to processors."""
        lines: list[str] = []
        argv = ["sh", "-c", _WATCHED, "edgekit", *bound, *prepared.argv]
        patience = Patience(whole=self.settings.timeout, cancel=self.settings.cancel)
        # Some print their figures on stderr: both are read.
        done = self.transport.run(argv, stdin=b"", on_line=lines.append, patience=patience)
        text = "\n".join([*lines[-_LINES:], done.stderr])
        if done.returncode or done.timed_out:
            how = (
                f"gave no answer within {self.settings.timeout:g} s"
                if done.timed_out
                else f"ended with {done.returncode}"
            )
            raise RuntimeCrashError(
                f"{prepared.tool.TOOL} on {self.device.name} {how}; its last output:\n{text.strip()[-1500:]}",
                hint="run it by hand there; a program for another version of the runtime may refuse the model",
            )
        return prepared.tool.read(text, self._file(prepared.file))

    def _file(self, name: str) -> str:
        lines: list[str] = []
        path = str(self.transport.root / name)
        argv = ["sh", "-c", 'if [ -f "$1" ]; then cat "$1"; echo; rm -f "$1"; fi', "edgekit", path]
        self.transport.run(argv, stdin=b"", on_line=lines.append, patience=Patience(whole=60))
        return "\n".join(lines)


def _measurement(device: Device, prepared: _Prepared, found: _Found, health: Health) -> Measurement:
    letter = next(x for x, p in found.prepared.items() if p is prepared)
    readings = found.readings[letter]
    samples = [r.steady_ms for r in readings]
    summary = summarize(samples)
    noisy = [
        *health.noisy,
        *([f"the processes' medians scatter by {summary.cv:.0%}"] if summary.cv > 0.1 else []),
    ]
    validity = "INVALID" if health.invalid else "NOISY" if noisy else "VALID"
    raw = all(r.samples_ms for r in readings)
    p90 = summary.p90 if raw else median_of([r.p90_ms for r in readings])
    costs = median_of([r.model_memory for r in readings])
    peaks = median_of([r.peak_memory for r in readings])
    notes = merged_notes(prepared.tool, readings)
    if p90 is None:
        notes = (*notes, "p90 is that of the processes' figures")
    return Measurement(
        device=device.name,
        threads=prepared.threads,
        samples=tuple(samples),
        import_ms=0.0,
        load_ms=median_of([r.load_ms for r in readings]) or 0.0,
        first_ms=median_of([r.first_ms for r in readings]) or 0.0,
        p50_ms=summary.p50,
        p90_ms=summary.p90 if p90 is None else p90,
        p99_ms=summary.p99 if raw else median_of([r.p99_ms for r in readings]),
        mad_ms=summary.mad,
        peak_memory=None if peaks is None else int(peaks),
        model_memory=None if costs is None else int(costs),
        validity=validity,
        reasons=(*health.invalid, *noisy, *notes),
        facts={
            "device": dict(found.facts),
            "states": [dict(s) for s in found.states],
            "program": prepared.tool.TOOL,
            "p50_interval_ms": [summary.interval.low, summary.interval.high],
            "p50_interval_method": summary.interval.method,
            "process_cv": summary.cv,
            "mean_ms": statistics.fmean(v for s in samples for v in s),
        },
    )


def _cooled(device: Device, seen_now: Callable[[], Look]) -> tuple[Look, str]:
    """Wait until it is as cool as its row wants, five minutes at most; what there is to say of it."""
    limit, end = device.options.get("cool_down_celsius"), time.monotonic() + _COOL_DOWN_S
    known = {"emulated": True} if device.options.get("emulated") else {}
    while True:
        seen = seen_now()
        heat = hottest(seen.state)
        cool = limit is None or heat is None or heat <= float(limit)
        if cool or time.monotonic() > end:
            told = replace(seen, facts={**seen.facts, **known})
            return told, "" if cool else f"it began at {heat:.0f} °C and would not cool to {limit} °C"
        time.sleep(5)


@contextmanager
def _held(transport: Transport, device: Device) -> Iterator[None]:
    """The device for ourselves; raises :class:`DeviceBusyError` that says who has it."""
    base = str(PurePosixPath(transport.root).parent)
    user = os.environ.get("USER") or str(os.getuid())
    who = f"{user} on {socket.gethostname()} since {time.strftime('%H:%M:%S')}"
    said = _short(transport, ["sh", "-c", _HOLD, "edgekit", base, str(transport.root), who])
    if said.startswith("held"):
        raise DeviceBusyError(
            f"{device.name} is busy: {said.removeprefix('held').strip()} is benchmarking",
            hint="wait for it to finish, or choose another device",
        )
    try:
        yield
    finally:
        with suppress(DeviceError):
            _short(transport, ["rm", "-rf", f"{base}/edgekit-lock"])


def _short(transport: Transport, argv: Sequence[str]) -> str:
    lines: list[str] = []
    done = transport.run(argv, stdin=b"", on_line=lines.append, patience=Patience(whole=60))
    if done.returncode or done.timed_out:
        raise DeviceError(
            f"{transport.name}: {argv[0]} failed: {done.stderr.strip()[-300:]}", hint="run it again"
        )
    return "\n".join(lines)
