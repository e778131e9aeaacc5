"""Long runs: a leak that was put there is found, a clean runtime is not said to leak, what is not known is said."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgekit.artifact import soak as judged
from edgekit.devices import soak
from edgekit.devices.execute import LOCAL
from edgekit.devices.runnable import Runnable
from edgekit.devices.soak import Clock, Soaked, SoakSettings
from edgekit.devices.trend import trend
from edgekit.devices.wire import Contention, DeviceState
from edgekit.errors import DeviceError, RuntimeCrashError, UsageError
from edgekit.types import Device, Verdict

FAKE = Path(__file__).with_name("fake_runner.py")
QUICK = SoakSettings(seconds=2, reloads=16, threads=1)


@pytest.fixture
def variant(tmp_path, monkeypatch):
    monkeypatch.setattr("edgekit.devices.pack.runner", lambda backend: FAKE)

    def make(behaviour="good"):
        model = tmp_path / f"{behaviour}.fake"
        model.write_text(behaviour)
        return Runnable(backend="fake", main=model, inputs={"x": np.ones(3, "f")}, options={"threads": 1})

    return make


def verdicts(figures: Soaked) -> dict[str, Verdict]:
    return {g.name: g.verdict for g in judged.gates(figures)}


def test_a_clean_runtime_is_not_called_leaking(variant):
    done = soak.soak(variant("sleep-0.001"), LOCAL, QUICK)
    found = verdicts(done)
    assert found["memory-slope"] is Verdict.PASS
    assert found["reload-slope"] is Verdict.PASS
    assert done.seconds >= 2
    assert done.calls == sum(w.calls for w in done.windows)
    assert len(done.windows) == QUICK.windows
    assert len(done.reloads) == 16
    assert done.counted in ("own", "resident")
    assert done.versions == {"fake": "1.0"}


def test_a_leak_a_call_is_found(variant):
    done = soak.soak(variant("leaks"), LOCAL, QUICK)
    gate = next(g for g in judged.gates(done) if g.name == "memory-slope")
    assert gate.verdict is Verdict.FAIL, gate
    assert gate.value == pytest.approx(50_000, rel=0.2)
    assert done.memory.low <= gate.value <= done.memory.high
    assert "memory grows and does not stop" in gate.message
    # What a call leaks is leaked by the one call of each reload, too: less than what would have been noise.
    assert verdicts(done)["reload-slope"] is Verdict.PASS


def test_a_leak_a_reload_is_found(variant):
    found = judged.gates(soak.soak(variant("leaks-when-loaded"), LOCAL, QUICK))
    by_name = {g.name: g for g in found}
    assert by_name["memory-slope"].verdict is Verdict.PASS
    assert by_name["reload-slope"].verdict is Verdict.FAIL
    assert by_name["reload-slope"].value == pytest.approx(400_000, rel=0.2)


def test_a_crash_is_a_crash(variant):
    with pytest.raises(RuntimeCrashError, match="SIGSEGV"):
        soak.soak(variant("segfault"), LOCAL, QUICK)


def test_where_nothing_is_loaded_again_that_is_said(variant):
    done = soak.soak(variant("sleep-0.001"), LOCAL, replace(QUICK, reloads=0))
    gate = next(g for g in judged.gates(done) if g.name == "reload-slope")
    assert (gate.verdict, gate.message) == (Verdict.NOT_RUN, "not measured: nothing was loaded again")


def test_progress_is_told_in_seconds(variant):
    told = []
    soak.soak(variant("sleep-0.001"), LOCAL, replace(QUICK, on_progress=told.append))
    assert told == sorted(told)
    assert told[-1] == 2


@pytest.mark.parametrize("change", [{"seconds": 1}, {"seconds": 1e9}, {"reloads": -1}, {"reloads": 10**6}])
def test_settings_are_checked(change):
    with pytest.raises(UsageError):
        SoakSettings(**change)


def test_a_device_without_python_is_told(variant):
    with pytest.raises(UsageError, match="cannot be watched over a long run"):
        soak.soak(variant(), Device(name="local", options={"binary": "benchmark_model"}), QUICK)


# --- verdicts -------------------------------------------------------------------------------------------------------


def figures(memory=None, latency=None, reload=None, **more) -> Soaked:
    count = 120
    base = {
        "device": "here", "seconds": 600.0, "calls": 60_000, "threads": 1, "first_ms": 1.0, "p50_ms": 10.0,
        "p90_ms": 11.0, "p99_ms": 12.0, "mad_ms": 0.1, "windows": (), "reloads": (), "counted": "own",
        "clock": None, "slowed": False, "busy": "", "reasons": (), "missing": {"clock": "no cpufreq"},
    }  # fmt: skip
    flat = [5e7] * count
    return Soaked(
        memory=trend([500.0 * i for i in range(count)], memory or flat),
        latency=trend([5.0 * i for i in range(count)], latency or [10.0] * count),
        reload=trend(range(40), reload or flat[:40]),
        **{**base, **more},
    )


def test_what_allocators_do_is_no_leak():
    """Noise, a step, a ramp that ends, a file that is given back: none of it grows in both halves."""
    draw = random.Random(0)
    for _ in range(200):
        held, at, values = 5e7, draw.randrange(120), []
        for i in range(120):
            held += draw.choice((0, 4096, -4096)) * draw.randint(0, 8)
            held += (draw.choice((2e6, 2e7)) if i == at else 0) + (
                60_000 if i < draw.choice((0, 20, 50)) else 0
            )
            values.append(held - (held % 4096))
        settled = [v if i > 60 else values[60] for i, v in enumerate(values)]
        assert verdicts(figures(settled))["memory-slope"] is Verdict.PASS
    step = [5e7] * 60 + [9e7] * 60
    assert verdicts(figures(step))["memory-slope"] is Verdict.PASS


@pytest.mark.parametrize("leak", [40.0, 1_000.0, 1e6])
def test_a_leak_is_found_below_noise_of_twenty_pages(leak):
    draw = random.Random(1)
    for _ in range(50):
        values = [5e7 + leak * 500 * i + draw.gauss(0, 80_000) for i in range(120)]
        found = figures(values)
        assert verdicts(found)["memory-slope"] is Verdict.FAIL
        assert found.memory.slope == pytest.approx(leak, rel=0.1)


def test_less_than_a_mebibyte_is_not_judged():
    values = [5e7 + 4096 * (i // 4) for i in range(120)]
    gate = judged.gates(figures(values))[0]
    assert gate.verdict is Verdict.PASS
    assert "would have been seen" in gate.message


def test_latency_that_drifts():
    slower = [10.0 + 0.03 * i for i in range(120)]
    assert verdicts(figures(latency=slower))["latency-drift"] is Verdict.FAIL
    assert verdicts(figures(latency=slower[::-1]))["latency-drift"] is Verdict.PASS
    busy = figures(latency=slower, busy="work waited for a CPU for 80% of the time (PSI)")
    gate = judged.gates(busy)[1]
    assert gate.verdict is Verdict.UNPROVEN
    assert "other work had the machine" in gate.message
    draw = random.Random(2)
    for _ in range(50):
        noisy = [10.0 * draw.lognormvariate(0, 0.2) for _ in range(120)]
        assert verdicts(figures(latency=noisy))["latency-drift"] is Verdict.PASS


def test_throttling_is_named():
    slower = [10.0 + 0.03 * i for i in range(120)]
    clock = Clock(lowest=1_500_000, median=2_000_000, highest=2_400_000, fell=0.3)
    found = {g.name: g for g in judged.gates(figures(latency=slower, clock=clock, slowed=True))}
    assert "the clock fell by 30%" in found["latency-drift"].message
    assert found["clock"].verdict is Verdict.SHOWN
    assert "2.00 GHz (1.50 to 2.40), 30% lower at the end" in found["clock"].message
    assert "it was slowed" in found["clock"].message


def test_the_clock_is_the_busy_processors():
    states = [DeviceState(time=float(i), khz=(800_000, 2_400_000 - 10_000 * i)) for i in range(40)]
    clock = soak._clock(states)
    assert (clock.highest, clock.lowest) == (2_400_000, 2_010_000)
    assert clock.fell == pytest.approx(0.126, abs=0.01)
    assert soak._clock(states[:3]) is None
    assert soak._clock([DeviceState(time=1.0)] * 40) is None


def test_what_is_not_measured_is_said():
    found = judged.gates(figures())
    clock = next(g for g in found if g.name == "clock")
    assert (clock.verdict, clock.message) == (Verdict.NOT_RUN, "not measured: no cpufreq")
    nothing = replace(
        figures(), memory=None, missing={"memory": "this system does not tell a process's memory"}
    )
    assert judged.gates(nothing)[0].message == "not measured: this system does not tell a process's memory"


def test_busy_is_steal_or_pressure():
    assert soak._contended(Contention(steal=0.2, pressure=0.5))[0].startswith("the hypervisor took 20%")
    assert soak._contended(Contention(steal=0.01, pressure=0.05)) == []


def test_figures_are_json():
    document = judged.summary(figures(), judged.gates(figures()))
    assert json.loads(json.dumps(document))["memory"]["slope"] == 0


# --- lies -----------------------------------------------------------------------------------------------------------


def test_figures_that_cannot_be_are_refused(variant, monkeypatch):
    real = soak.AgentSession.run

    def lie(change):
        def run(self, tasks, watch):
            real(self, tasks, watch)
            done = watch.results["soak"]
            watch.results["soak"] = replace(done, result=change(done.result))

        return run

    import msgspec

    for change in (
        lambda r: msgspec.structs.replace(r, windows=r.windows[:-1]),
        lambda r: msgspec.structs.replace(r, reloads=r.reloads[:-1]),
        lambda r: msgspec.structs.replace(r, windows=r.windows[::-1]),
        lambda r: msgspec.structs.replace(
            r, windows=(msgspec.structs.replace(r.windows[0], calls=0), *r.windows[1:])
        ),
        lambda r: msgspec.structs.replace(r, steady=(2.0, 1.0)),
    ):
        monkeypatch.setattr(soak.AgentSession, "run", lie(change))
        with pytest.raises(DeviceError, match="that cannot be"):
            soak.soak(variant("sleep-0.001"), LOCAL, replace(QUICK, reloads=1))
