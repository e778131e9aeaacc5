"""The benchmark's host side over a fake runtime, and its judgement of a run."""

import json
import os
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest

from edgekit.devices import bench, session
from edgekit.devices.bench import BenchSettings, bench_artifact, compare_artifacts
from edgekit.devices.health import Health, assess
from edgekit.devices.replicates import Replicate, judge, model_memory, peak_memory
from edgekit.devices.runnable import Runnable
from edgekit.devices.wire import Contention, DeviceFacts, DeviceState, Memory, Warmup
from edgekit.errors import BackendError, RuntimeCrashError, UsageError
from edgekit.types import Device

FAKE = Path(__file__).with_name("fake_runner.py")
QUICK = BenchSettings(processes=2, seconds=0.01, iterations=3, warmup_s=0.01)
GOOD = Replicate(
    samples_ms=(1.0, 1.0),
    import_ms=1.0,
    load_ms=1.0,
    first_ms=1.0,
    threads=1,
    contention=Contention(cpu_per_wall=0.99, steal=0.0, pressure=0.01),
    warmup=Warmup(stable=True, windows_ms=(1.0, 1.0)),
)


@pytest.fixture
def variant(tmp_path, monkeypatch):
    monkeypatch.setattr("edgekit.devices.pack.runner", lambda backend: FAKE)

    def make(behaviour="good"):
        model = tmp_path / f"{behaviour}.fake"
        model.write_text(behaviour)
        return Runnable(backend="fake", main=model, inputs={"x": np.ones(3, "f")}, options={"threads": 1})

    return make


def test_a_measurement_keeps_raw_samples_phases_and_facts(variant):
    measured = bench_artifact(variant(), settings=QUICK)
    assert len(measured.samples) == 2
    assert all(len(p) >= 3 for p in measured.samples)
    assert measured.threads == 1
    assert 0 < measured.p50_ms <= measured.p90_ms
    assert measured.p99_ms is None or measured.p99_ms >= measured.p90_ms
    assert measured.import_ms > 0
    assert measured.first_ms > 0
    assert measured.validity in ("VALID", "NOISY", "INVALID")
    assert set(measured.facts["memory"][0]["phases"]) == {"import", "load", "first", "steady"}
    assert measured.facts["versions"] == {"fake": "1.0"}
    assert measured.facts["device"]["processors"] >= 1


def test_two_variants_are_interleaved(variant, monkeypatch):
    order = []
    real = session.run_plan

    def spy(transport, tasks, watch):
        order.extend(Path(task.job.model).stem for task in tasks)
        return real(transport, tasks, watch)

    monkeypatch.setattr(session, "run_plan", spy)
    found = compare_artifacts(variant("good"), variant("int8x"), settings=replace(QUICK, processes=4))
    assert order == [{"A": "good", "B": "int8x"}[x] for x in "ABBABAAB"]
    assert len(found.first.samples) == len(found.second.samples) == 4
    assert found.difference.detectable > 0


def test_progress_is_told(variant):
    seen = []
    bench_artifact(
        variant(), settings=replace(QUICK, on_progress=lambda done, all_: seen.append((done, all_)))
    )
    assert seen == [(1, 2), (2, 2)]


def test_a_crash_in_a_replicate_is_a_crash(variant):
    with pytest.raises(RuntimeCrashError, match="SIGSEGV during warm-up"):
        bench_artifact(variant("segfault"), settings=QUICK)


def test_settings_are_checked():
    with pytest.raises(UsageError):
        BenchSettings(processes=0)


@pytest.mark.parametrize(
    ("change", "cv", "verdict", "reason"),
    [
        ({}, 0.01, "VALID", ""),
        ({"cpu_per_wall": 0.8}, 0.01, "NOISY", "80% of a CPU"),
        ({"cpu_per_wall": 0.3}, 0.01, "INVALID", "30% of a CPU"),
        ({"steal": 0.05}, 0.01, "NOISY", "hypervisor"),
        ({"steal": 0.2}, 0.01, "INVALID", "hypervisor"),
        ({"pressure": 0.5}, 0.01, "NOISY", "PSI"),
        ({}, 0.2, "NOISY", "scatter"),
        ({"steal": None, "pressure": None, "cpu_per_wall": None}, 0.01, "VALID", ""),
    ],
)
def test_validity(change, cv, verdict, reason):
    replicates = [replace(GOOD, contention=msgspec.structs.replace(GOOD.contention, **change))] * 3
    found, reasons = judge(replicates, cv, Health())
    assert found == verdict
    assert reason in "".join(reasons)


@pytest.fixture
def sys_(tmp_path, monkeypatch):
    """A /sys of our own: a thermal zone, a cooling device and a power rail; the files can be changed."""
    files = {
        "class/thermal/thermal_zone0/type": "cpu-thermal",
        "class/thermal/thermal_zone0/temp": "40000",
        "class/thermal/cooling_device0/type": "cpufreq-cpu0",
        "class/thermal/cooling_device0/cur_state": "0",
        "class/hwmon/hwmon0/in1_label": "VDD_IN",
        "class/hwmon/hwmon0/in1_input": "5000",
        "class/hwmon/hwmon0/curr1_input": "1000",
    }
    for name, text in files.items():
        (tmp_path / "sys" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "sys" / name).write_text(text)
    monkeypatch.setenv("EDGEKIT_SYS", str(tmp_path / "sys"))
    return tmp_path / "sys"


def test_a_throttled_run_is_done_again_twice_and_then_invalid(variant, sys_):
    (sys_ / "class/thermal/cooling_device0/cur_state").write_text("3")
    measured = bench_artifact(variant(), settings=QUICK)
    assert measured.facts["attempts"] == 3
    assert measured.validity == "INVALID"
    assert any("cooling slowed the processor" in r for r in measured.reasons)


def test_what_throttled_is_done_again_once_it_has_cooled(variant, sys_, monkeypatch):
    zone, fan = sys_ / "class/thermal/thermal_zone0/temp", sys_ / "class/thermal/cooling_device0/cur_state"
    waits = []

    def heat(*_):
        if not waits:
            zone.write_text("85000")
            fan.write_text("2")

    def cool(seconds):
        waits.append(seconds)
        fan.write_text("0")
        zone.write_text("60000" if len(waits) == 1 else "40000")

    monkeypatch.setattr(bench, "time", SimpleNamespace(sleep=cool, monotonic=time.monotonic))
    settings = replace(QUICK, processes=2, seconds=1.2, on_progress=heat)
    measured = bench_artifact(variant("slow"), settings=settings)
    assert measured.facts["attempts"] == 2
    assert len(waits) == 2  # until it was as cool as at first
    assert not any("cooling" in r for r in measured.reasons)


def test_a_run_starts_when_the_device_is_cool(variant, sys_, monkeypatch):
    zone = sys_ / "class/thermal/thermal_zone0/temp"
    zone.write_text("70000")
    waits = []

    def cool(seconds):
        waits.append(seconds)
        if len(waits) == 3:
            zone.write_text("44000")

    monkeypatch.setattr(bench, "time", SimpleNamespace(sleep=cool, monotonic=time.monotonic))
    device = Device(name="local", options={"cool_down_celsius": 45})
    measured = bench_artifact(variant(), device=device, settings=QUICK)
    assert len(waits) == 3
    assert measured.facts["states"][0]["celsius"] == {"cpu-thermal": 44.0}


def test_a_device_that_will_not_cool_is_told(variant, sys_, monkeypatch):
    (sys_ / "class/thermal/thermal_zone0/temp").write_text("70000")
    monkeypatch.setattr(bench, "COOL_DOWN_S", 0.0)
    device = Device(name="local", options={"cool_down_celsius": 45})
    measured = bench_artifact(variant(), device=device, settings=QUICK)
    assert "it began at 70 °C and would not cool to 45 °C" in measured.reasons
    assert measured.validity != "VALID"


def test_a_device_that_gets_hot_while_it_runs(variant, sys_):
    zone = sys_ / "class/thermal/thermal_zone0"
    (zone / "trip_point_0_type").write_text("passive")
    (zone / "trip_point_0_temp").write_text("80000")
    (zone / "trip_point_1_type").write_text("active")  # a fan starts: nothing is slowed
    (zone / "trip_point_1_temp").write_text("30000")
    assert not any("slows" in r for r in bench_artifact(variant(), settings=QUICK).reasons)
    heat = lambda *_: (zone / "temp").write_text("81000")  # noqa: E731
    settings = replace(QUICK, processes=2, seconds=1.2, on_progress=heat)
    measured = bench_artifact(variant("slow"), settings=settings)
    assert any("cpu-thermal came to 81 °C: from 80 °C on the kernel slows" in r for r in measured.reasons)


def test_processors_and_threads_are_part_of_the_measurement(variant):
    settings = replace(QUICK, cpus=(0,), threads=3)
    measured = bench_artifact(variant(), settings=settings)
    assert measured.facts["affinity"] == [0]
    assert measured.threads == 3
    assert "3 threads shared 1 processor" in measured.reasons
    assert bench_artifact(variant(), settings=QUICK).facts["affinity"] == sorted(os.sched_getaffinity(0))


@pytest.mark.parametrize("cpus", [(9999,), (0, 9999)])
def test_processors_that_it_does_not_have(cpus, variant):
    with pytest.raises(UsageError, match="processors") as caught:
        bench_artifact(variant(), settings=replace(QUICK, cpus=cpus))
    assert "--cpus" in caught.value.hint


def test_what_was_measured_before_a_crash_is_told_and_kept(variant, tmp_path, monkeypatch):
    real = session.run_plan

    def break_third(transport, tasks, watch):
        broken = replace(tasks[2], job=msgspec.structs.replace(tasks[2].job, model="/nowhere"))
        return real(transport, [*tasks[:2], broken, *tasks[3:]], watch)

    monkeypatch.setattr(session, "run_plan", break_third)
    partial = []
    settings = replace(QUICK, processes=4, on_partial=partial.append, keep=tmp_path / "journal")
    with pytest.raises(BackendError, match="load"):
        bench_artifact(variant(), settings=settings)
    (found,) = partial
    assert found.facts["partial"]["processes"] == len(found.samples) == 2
    assert found.reasons[0].startswith("cut short after 2 of 4 processes")
    lines = [json.loads(x) for x in (tmp_path / "journal").read_text().splitlines()]
    assert [tuple(x["result"]["samples_ms"]) for x in lines] == list(found.samples)
    with pytest.raises(BackendError):  # A B | B: one pair is no comparison, but there is something of B
        compare_artifacts(variant(), variant("int8x"), settings=settings)
    assert len(partial[1].samples) == 1


def test_energy_is_power_times_latency(variant, sys_):
    measured = bench_artifact(variant("slow"), settings=replace(QUICK, seconds=2.5, processes=1))
    rail = measured.facts["energy"]["VDD_IN"]
    assert rail["mean_mw"] == rail["idle_mw"] == 5000.0
    times = [t for process in measured.samples for t in process]
    assert rail["mj_per_inference"] == pytest.approx(5.0 * sum(times) / len(times))


@pytest.mark.parametrize(
    ("facts", "state", "invalid", "noisy"),
    [
        ({}, {}, "", ""),
        ({}, {"throttled": 0x50000}, "", ""),  # long ago
        ({}, {"throttled": 0x50005}, "under-voltage", ""),
        ({}, {"cooling": {"pwm-fan (cooling_device0)": 2}}, "", ""),  # a fan slows nothing
        ({"max_khz": [2_000_000]}, {"cap_khz": [1_000_000]}, "", "capped at 50%"),
        ({"max_khz": [2_000_000]}, {"cap_khz": [2_000_000]}, "", ""),
        ({"max_khz": [2_000_000, 1_000_000]}, {"khz": [600_000, 600_000], "time": 5}, "", "faster than 60%"),
        (
            {"max_khz": [2_000_000, 1_000_000]},
            {"khz": [600_000, 600_000], "time": 11},
            "",
            "",
        ),  # idle by then
        ({"max_khz": [2_000_000, 1_000_000]}, {"khz": [1_600_000, 600_000], "time": 5}, "", ""),
        ({"trips_celsius": {"a": 80.0}}, {"celsius": {"a": 80.0, "b": 99.0}}, "", "a came to 80"),
        ({"trips_celsius": {"a": 80.0}}, {"celsius": {"a": 79.0}}, "", ""),
        ({}, {"battery": {"status": "Discharging", "percent": 50}}, "", "battery"),
        ({"emulated": True}, {}, "emulated", ""),
    ],
)
def test_health(facts, state, invalid, noisy):
    states = [DeviceState(), msgspec.convert(state, DeviceState)]
    health = assess(msgspec.convert(facts, DeviceFacts), states, [(4.0, 6.0)])
    assert invalid in "".join(health.invalid)
    assert bool(invalid) == bool(health.invalid)
    assert noisy in "".join(health.noisy)
    assert bool(noisy) == bool(health.noisy)


def test_cpu_share_is_judged_for_one_thread_only():
    replicate = replace(GOOD, threads=4, contention=Contention(cpu_per_wall=0.3))
    assert judge([replicate], 0.0, Health())[0] == "VALID"


@pytest.mark.parametrize(("unstable", "verdict"), [(1, "VALID"), (2, "NOISY"), (3, "INVALID")])
def test_warm_ups_that_do_not_settle(unstable, verdict):
    bad = replace(GOOD, warmup=Warmup(stable=False))
    assert judge([bad] * unstable + [GOOD] * (3 - unstable), 0.0, Health())[0] == verdict


def test_memory_is_the_peak_less_the_import():
    phases = {
        "import": {"rss": 50, "peak": 90},
        "load": {"peak": 130},
        "first": {"peak": 110},
        "steady": {"peak": 100},
    }
    memory = msgspec.convert({"phases": phases, "resettable": True}, Memory)
    assert peak_memory(memory) == 130
    assert model_memory(memory) == 80
    assert model_memory(msgspec.structs.replace(memory, resettable=False)) is None
    assert peak_memory(Memory()) is None
