"""One artifact called in one process for minutes or hours: what its memory, its latency and the clock do meanwhile.

``agent/soak.py`` does it there, under the same supervisor, lock and heartbeat as a benchmark; here it is asked for, and
what comes back is read as trends. Whether they are allowed is :mod:`edgekit.artifact.soak`'s to say.
"""

from __future__ import annotations

import statistics
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import msgspec

from edgekit.core.files import temporary
from edgekit.devices import vendor, wire
from edgekit.devices.arrays import write_arrays
from edgekit.devices.bench import cool_down
from edgekit.devices.execute import model_job
from edgekit.devices.health import assess
from edgekit.devices.job import Task
from edgekit.devices.plan import Watch, mended
from edgekit.devices.replicates import impossible
from edgekit.devices.runnable import Runnable
from edgekit.devices.session import AgentSession
from edgekit.devices.transports.connect import connect, send_agent
from edgekit.devices.trend import FEWEST, Trend, later, trend
from edgekit.devices.wire_soak import Reload, SoakResult, Window
from edgekit.errors import UsageError
from edgekit.types import Device, Json

_WINDOWS = 240
"""At most: a slope of all pairs is quick with so many."""
_WINDOW_S = 0.25
"""At least, so that a window has a few calls."""
_STATES = 600
_WARMING = 0.25
"""The share of a run, and of the reloads, that is let pass before anything is judged."""
_MARGIN_S = 600.0
"""For loading, once and again, beside the calls themselves."""
SHORTEST_S = 2.0
LONGEST_S = 7 * 86_400.0
MOST_RELOADS = 2_000


@dataclass(frozen=True, kw_only=True)
class SoakSettings:
    """How long, and how often the model is loaded again.

    ``seconds`` of calls in one process, then ``reloads``; ``threads`` of the runtime (0: as the artifact was built);
    ``cpus`` to run on (none: all); ``governor``, ``wait_s`` and ``cancel`` as in
    :class:`~edgekit.devices.bench.BenchSettings`. ``on_progress`` gets the seconds that are done.
    """

    seconds: float = 600.0
    reloads: int = 50
    threads: int = 0
    cpus: tuple[int, ...] = ()
    governor: str = ""
    wait_s: float = 0.0
    cancel: threading.Event | None = None
    on_progress: Callable[[int], None] | None = None

    def __post_init__(self) -> None:
        if not SHORTEST_S <= self.seconds <= LONGEST_S:
            raise UsageError(
                f"a soak of {self.seconds:g} s shows nothing, or is more than is meant",
                hint="between 2 s and 7 days: --soak 10m",
            )
        if not 0 <= self.reloads <= MOST_RELOADS:
            raise UsageError(
                f"{self.reloads} reloads are not possible",
                hint=f"between 0 and {MOST_RELOADS:,}: --reloads 50",
            )

    @property
    def windows(self) -> int:
        """In how many parts its figures come."""
        return max(2 * FEWEST, min(_WINDOWS, int(self.seconds / _WINDOW_S)))


@dataclass(frozen=True, kw_only=True)
class Clock:
    """The fastest processor's frequency while the model was called, in kHz: lowest, median, highest; ``fell`` is the
    share that its last quarter is below its first (negative: above)."""

    lowest: int
    median: int
    highest: int
    fell: float


@dataclass(frozen=True, kw_only=True)
class Soaked:
    """What came of it. ``p50_ms`` and the others are medians over the windows, ``mad_ms`` of the windows' medians.

    ``memory`` is the trend of bytes over calls, ``latency`` that of the windows' medians (ms) over seconds, ``reload``
    that of bytes over reloads, all without the first quarter; ``None`` where it was not measured, and ``missing`` says
    why by name (``memory``, ``latency``, ``clock``, ``reload``). ``counted``: what the bytes are. ``reasons``: what the
    device's state says of the figures, ``slowed`` whether it says that it was throttled, ``busy`` which other work had
    the machine meanwhile. ``seconds_of`` import and loading, ``versions`` of what ran, ``about`` the device.
    """

    device: str
    seconds: float
    calls: int
    threads: int
    first_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    mad_ms: float
    windows: tuple[Window, ...]
    reloads: tuple[Reload, ...]
    counted: str
    memory: Trend | None
    latency: Trend | None
    clock: Clock | None
    reload: Trend | None
    slowed: bool
    busy: str
    reasons: tuple[str, ...]
    missing: Mapping[str, str] = field(default_factory=dict)
    seconds_of: Mapping[str, float] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    about: Mapping[str, Json] = field(default_factory=dict)


def soak(runnable: Runnable, device: Device, settings: SoakSettings) -> Soaked:
    """Call ``runnable`` on its ``inputs`` for so long, in one process.

    Raises what :func:`~edgekit.devices.bench.bench_artifact` does, and :class:`UsageError` for a device without Python.
    """
    with connect(device) as transport, temporary("soak") as folder:
        if vendor.applies(device):
            raise UsageError(
                f"{device.name} is timed by a vendor's program, which cannot be watched over a long run",
                hint="soak it on a device that has Python (edgekit devices check says so)",
            )
        agent = mended(transport, partial(send_agent, transport, runnable.backend, Path(folder)))
        session = AgentSession(transport=transport, agent=agent)
        samples = write_arrays(Path(folder) / "inputs", [runnable.bind(runnable.inputs)])
        sent = mended(transport, partial(model_job, transport, runnable, samples))
        threads = {"threads": settings.threads} if settings.threads else {}
        job = msgspec.structs.replace(
            sent,
            action="soak",
            options={**runnable.options, **threads},
            cpus=settings.cpus,
            soak=wire.SoakJob(seconds=settings.seconds, windows=settings.windows, reloads=settings.reloads),
        )
        task = Task(
            id="soak", backend=runnable.backend, agent=agent, job=job, result=SoakResult,
            timeout=2 * settings.seconds + _MARGIN_S,
        )  # fmt: skip
        before, hot = cool_down(session.report, device)
        watch = Watch[SoakResult](
            journal="journal-soak",
            state_s=max(1.0, settings.seconds / _STATES),
            cancel=settings.cancel,
            wait_s=settings.wait_s,
            governor=settings.governor,
            on_progress=settings.on_progress,
        )
        session.run([task], watch)
    done = watch.results["soak"]
    _refuse_lies(device.name, task.timeout, settings, done.result)
    return _read(device.name, done.result, before, watch.states, (hot,) if hot else (), done.versions)


def _refuse_lies(device: str, timeout: float, settings: SoakSettings, result: SoakResult) -> None:
    """Raise :class:`DeviceError` for figures that cannot be."""
    ends = [w.at for w in result.windows]
    if len(result.windows) != settings.windows or len(result.reloads) != settings.reloads:
        raise impossible(device, f"{len(result.windows)} windows and {len(result.reloads)} reloads")
    if (
        ends != sorted(ends)
        or ends[0] <= 0
        or ends[-1] > 1.01 * timeout
        or ends[-1] < 0.99 * settings.seconds
    ):
        raise impossible(device, f"{ends[-1]:.0f} s of calls where {settings.seconds:g} were asked for")
    if any(w.calls < 1 or w.p50_ms <= 0 or not w.p50_ms <= w.p90_ms <= w.p99_ms for w in result.windows):
        raise impossible(device, "a window without calls, or of calls that took no time")
    if result.steady[1] < result.steady[0]:
        raise impossible(device, "an end before its begin")


def _read(
    device: str,
    result: SoakResult,
    before: wire.DeviceReport,
    states: Sequence[wire.DeviceState],
    hot: tuple[str, ...],
    versions: Mapping[str, str],
) -> Soaked:
    windows = result.windows[later(result.windows, skipped=_WARMING) :]
    calls = _running(w.calls for w in result.windows)[-len(windows) :]
    tells = all(w.bytes >= 0 for w in result.windows)
    reloads = result.reloads[later(result.reloads, skipped=_WARMING) :]
    memory = trend(calls, [float(w.bytes) for w in windows]) if tells else None
    reload = trend(range(len(reloads)), [float(r.bytes) for r in reloads]) if tells else None
    latency = trend([w.at for w in windows], [w.p50_ms for w in windows])
    inside = [s for s in states if result.steady[0] <= s.time <= result.steady[1]]
    clock = _clock(inside)
    health = assess(before.facts, [before.state, *states], [result.steady])
    middle = statistics.median(w.p50_ms for w in windows)
    busy = _contended(result.contention)
    no_memory = "this system does not tell a process's memory" if not tells else ""
    few = (
        f"{len(reloads)} reloads are too few to say anything"
        if result.reloads
        else "nothing was loaded again"
    )
    missing = {
        "memory": "" if memory else no_memory or "the calls were too few",
        "latency": "" if latency else "the calls were too few",
        "clock": "" if clock else "this system does not tell its processors' frequency",
        "reload": "" if reload else no_memory or few,
    }
    return Soaked(
        device=device,
        seconds=result.windows[-1].at,
        calls=sum(w.calls for w in result.windows),
        threads=result.threads,
        first_ms=result.first_ms,
        p50_ms=middle,
        p90_ms=statistics.median(w.p90_ms for w in windows),
        p99_ms=statistics.median(w.p99_ms for w in windows),
        mad_ms=statistics.median(abs(w.p50_ms - middle) for w in windows),
        windows=result.windows,
        reloads=result.reloads,
        counted=result.counted,
        memory=memory,
        latency=latency,
        clock=clock,
        reload=reload,
        slowed=health.throttled,
        busy="; ".join(busy),
        reasons=(*hot, *health.invalid, *health.noisy, *busy),
        missing={name: why for name, why in missing.items() if why},
        seconds_of=dict(result.seconds),
        versions=dict(versions),
        about=msgspec.to_builtins(before.facts),
    )


def _running(values: Iterable[int]) -> list[float]:
    total, found = 0.0, []
    for value in values:
        total += value
        found.append(total)
    return found


def _clock(states: Sequence[wire.DeviceState]) -> Clock | None:
    """Of the fastest processor at each moment: the one that works."""
    khz = [max(s.khz) for s in states if s.khz]
    if len(khz) < FEWEST:
        return None
    quarter = len(khz) // 4
    first, last = statistics.median(khz[:quarter]), statistics.median(khz[-quarter:])
    return Clock(
        lowest=min(khz),
        median=int(statistics.median(khz)),
        highest=max(khz),
        fell=1 - last / first if first else 0.0,
    )


def _contended(found: wire.Contention) -> list[str]:
    """What else the machine was doing."""
    reasons = []
    if found.steal is not None and found.steal > 0.02:
        reasons.append(f"the hypervisor took {found.steal:.0%} of the time")
    if found.pressure is not None and found.pressure > 0.1:
        reasons.append(f"work waited for a CPU for {found.pressure:.0%} of the time (PSI)")
    return reasons
