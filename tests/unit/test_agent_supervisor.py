"""The supervisor: the lock, the journal, and that no task outlives its host."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from edgekit.devices import wire
from edgekit.devices.bench import BenchSettings, bench_artifact
from edgekit.devices.job import Task, report_device
from edgekit.devices.pack import pack_runner
from edgekit.devices.plan import Watch, run_plan
from edgekit.devices.runnable import Runnable
from edgekit.devices.transports.local import LocalTransport
from edgekit.errors import DeviceBusyError, DeviceError, LinkLostError, RuntimeCrashError

FAKE = Path(__file__).with_name("fake_runner.py")


@pytest.fixture(autouse=True)
def own_lock(monkeypatch, tmp_path):
    monkeypatch.setenv("EDGEKIT_LOCK", str(tmp_path)[-60:])


@pytest.fixture
def agent(tmp_path):
    return pack_runner(FAKE, "fake").write(tmp_path)


@pytest.fixture
def make(tmp_path, agent):
    """A plan's line for tasks of these behaviours, and its journal."""
    np.save(tmp_path / "in", np.ones(3, "f"))

    def job(behaviour):
        (tmp_path / behaviour).write_text(behaviour)
        return {
            "action": "run",
            "model": str(tmp_path / behaviour),
            "options": {},
            "inputs": {"path": str(tmp_path / "in.npy"), "names": ["x"], "count": 1},
            "outputs": {"path": str(tmp_path / "out"), "names": []},
        }

    def plan(*behaviours, timeout=20.0, **changes):
        tasks = [
            {"id": f"{i}", "argv": ["{python}", str(agent)], "job": job(b), "timeout": timeout}
            for i, b in enumerate(behaviours)
        ]
        settings = {"journal": str(tmp_path / "journal"), "heartbeat": 30, "lock": {"user": "ann", "pid": 7}}
        return {"tasks": tasks, "state_s": 0, **settings, **changes}

    return plan


def start(agent, plan):
    child = subprocess.Popen(
        [sys.executable, agent, "supervisor"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    child.stdin.write(json.dumps(plan).encode() + b"\n")
    child.stdin.flush()
    return child


def until(child, event, **wanted):
    """Read events until one matches."""
    for line in child.stdout:
        found = json.loads(line)
        if found["event"] == event and all(found.get(k) == v for k, v in wanted.items()):
            return found
    raise AssertionError(f"no {event}")


def running(child):
    """A task is at work: wait for its run phase; its process id."""
    while True:
        line = until(child, "line")["line"]
        if json.loads(line).get("name") == "run":
            break
    (pid,) = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
    return int(pid)


def gone(pid):
    for _ in range(100):
        if not Path(f"/proc/{pid}").exists():
            return True
        time.sleep(0.05)
    return False


def finish(child):
    child.stdin.close()
    child.stdout.read()
    child.stdout.close()
    return child.wait(10)


def test_tasks_run_in_order_and_are_journalled(agent, make, tmp_path):
    child = start(agent, make("good", "good"))
    assert until(child, "ended", id="0")["returncode"] == 0
    assert until(child, "ended", id="1")["returncode"] == 0
    assert until(child, "bye")["why"] == "done"
    assert finish(child) == 0
    entries = [json.loads(line) for line in (tmp_path / "journal").read_text().splitlines()]
    assert [e["id"] for e in entries] == ["0", "1"]


def test_the_same_plan_again_goes_on_from_the_journal(agent, make, tmp_path):
    first = start(agent, make("good", "hang"))
    until(first, "ended", id="0")
    running(first)
    finish(first)
    with (tmp_path / "journal").open("a") as journal:
        journal.write('{"id": "1", "lines": [')  # cut short by a power failure
    second = start(agent, make("good", "good"))
    assert until(second, "started")["replayed"] is True
    assert until(second, "started")["replayed"] is False
    assert until(second, "ended", id="1")["returncode"] == 0
    assert finish(second) == 0
    third = start(agent, make("good", "good"))  # the line that was cut short did no harm to the next
    assert [until(third, "started")["replayed"] for _ in range(2)] == [True, True]
    assert finish(third) == 0


@pytest.mark.parametrize("way", ["eof", "cancel", "silence", "killed"])
def test_no_task_outlives_its_host(agent, make, way):
    child = start(agent, make("hang", heartbeat=8 if way == "silence" else 60))
    pid = running(child)
    if way == "eof":
        child.stdin.close()
    elif way == "cancel":
        child.stdin.write(b"cancel\n")
        child.stdin.flush()
    elif way == "killed":
        child.kill()
    if way != "killed":
        why = {"eof": "host-gone", "cancel": "cancelled", "silence": "heartbeat-lost"}[way]
        assert until(child, "bye")["why"] == why
    assert gone(pid)
    child.stdout.close()
    child.stdin.close()
    assert child.wait(10) == (-9 if way == "killed" else 3)


def lasting(make, *behaviours, linger=20, **changes):
    return make(*behaviours, linger=linger, lock={"user": "ann", "pid": 7, "plan": "p"}, **changes)


def leave(child):
    """The link breaks: nobody sends, nobody reads."""
    child.stdin.close()
    child.stdout.close()


def test_what_takes_long_goes_on_without_its_host_and_is_waited_for(agent, make):
    first = start(agent, lasting(make, "sleep-3"))
    pid = running(first)
    leave(first)
    assert not gone_within(pid, 1.0)
    second = start(agent, lasting(make, "sleep-3"))
    assert until(second, "started")["replayed"] is True  # it was not begun again
    assert until(second, "ended")["returncode"] == 0
    assert until(second, "bye")["why"] == "done"
    finish(second)
    assert first.wait(10) == 3


def test_somebody_else_is_not_waited_for(agent, make):
    first = start(agent, lasting(make, "hang"))
    pid = running(first)
    leave(first)
    other = start(agent, make("good", linger=20, lock={"user": "ann", "pid": 7, "plan": "another"}))
    assert until(other, "busy")["holder"]["plan"] == "p"
    finish(other)
    first.kill()
    assert gone(pid)


@pytest.mark.parametrize("way", ["time", "folder", "cancel"])
def test_it_does_not_go_on_for_ever(agent, make, tmp_path, way):
    folder = tmp_path / "private"
    folder.mkdir()
    plan = lasting(make, "hang", linger=1 if way == "time" else 60, journal=str(folder / "journal"))
    first = start(agent, plan)
    pid = running(first)
    leave(first)
    if way == "folder":
        folder.rmdir()
    if way == "cancel":
        second = start(agent, plan)
        until(second, "beat")
        second.stdin.write(b"cancel\n")
        second.stdin.flush()
        assert until(second, "bye")["why"] == "cancelled"
        finish(second)
    assert gone(pid)
    assert first.wait(10) == 3


def gone_within(pid, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not Path(f"/proc/{pid}").exists():
            return True
        time.sleep(0.05)
    return False


def test_a_second_benchmark_is_told_who_holds_the_device(agent, make):
    first = start(agent, make("hang"))
    running(first)
    second = start(agent, make("good"))
    assert until(second, "busy")["holder"] == {"user": "ann", "pid": 7}
    assert finish(second) == 4
    finish(first)
    third = start(agent, make("good"))
    assert until(third, "bye")["why"] == "done"
    finish(third)


def test_a_time_limit_ends_the_task_only(agent, make):
    child = start(agent, make("hang", timeout=1.0))
    ended = until(child, "ended", id="0")
    assert ended["timed_out"] is True
    assert until(child, "bye")["why"] == "done"
    finish(child)


def test_a_crash_is_told_with_its_last_words(agent, make):
    plan = make("segfault")
    plan["tasks"][0]["job"]["inputs"]["count"] = 1
    plan["tasks"][0]["job"] |= {
        "action": "bench",
        "bench": {"warmup_s": 1, "seconds": 1, "iterations": 3, "max_iterations": 9},
    }
    child = start(agent, plan)
    ended = until(child, "ended")
    assert ended["returncode"] == -11
    assert "about to crash" in ended["stderr"]
    finish(child)


def _task(tmp_path, agent, behaviour, name="0"):
    (tmp_path / behaviour).write_text(behaviour)
    np.save(tmp_path / "in", np.ones(3, "f"))
    job = wire.Job(
        action="run",
        model=str(tmp_path / behaviour),
        inputs=wire.Stream(path=str(tmp_path / "in.npy"), names=("x",), count=1),
        outputs=wire.Stream(path=str(tmp_path / "out")),
    )
    return Task(id=name, backend="fake", agent=agent, job=job, result=wire.RunResult, timeout=20)


class Broken(LocalTransport):
    """A transport whose link breaks before the n-th line, so many times."""

    def __init__(self, after, times):
        super().__init__("flaky")
        self.after, self.times, self.reopened = after, times, 0

    def run(self, argv, *, stdin, on_line, patience):
        if self.times <= 0:
            return super().run(argv, stdin=stdin, on_line=on_line, patience=patience)
        self.times -= 1
        seen = 0

        def breaking(line):
            nonlocal seen
            seen += 1
            if seen > self.after:
                raise LinkLostError("the link is gone", hint="")
            on_line(line)

        return super().run(argv, stdin=stdin, on_line=breaking, patience=patience)

    def reopen(self):
        self.reopened += 1


@pytest.mark.parametrize("after", [0, 3, 7, 9, 12])
def test_a_broken_link_is_mended_and_nothing_is_lost(tmp_path, agent, after):
    transport = Broken(after, 2)
    tasks = [_task(tmp_path, agent, "good", str(i)) for i in range(3)]
    done = []
    try:
        found = run_plan(transport, tasks, Watch(on_done=lambda n, all_: done.append(n)))
    finally:
        transport.close()
    assert sorted(found) == ["0", "1", "2"]
    assert transport.reopened == 2
    assert done[-1] == 3


def test_a_link_that_stays_broken_is_an_error(tmp_path, agent):
    transport = Broken(0, 99)
    try:
        with pytest.raises(LinkLostError):
            run_plan(transport, [_task(tmp_path, agent, "good")], Watch())
    finally:
        transport.close()


def test_the_first_failure_ends_the_plan(tmp_path, agent):
    transport = LocalTransport()
    try:
        with pytest.raises(RuntimeCrashError):
            run_plan(
                transport, [_task(tmp_path, agent, "exit"), _task(tmp_path, agent, "good", "1")], Watch()
            )
    finally:
        transport.close()


def test_busy_names_the_holder(tmp_path, agent, make, monkeypatch):
    monkeypatch.setattr("edgekit.devices.pack.runner", lambda backend: FAKE)
    first = start(agent, make("hang"))
    running(first)
    (tmp_path / "m").write_text("good")
    variant = Runnable(backend="fake", main=tmp_path / "m", inputs={"x": np.ones(3, "f")})
    with pytest.raises(DeviceBusyError, match=r"ann .* \(process 7\)") as caught:
        bench_artifact(variant, settings=BenchSettings(processes=1))
    assert caught.value.exit_code == 7
    threading.Timer(1.5, finish, [first]).start()
    settings = BenchSettings(processes=1, seconds=0.01, warmup_s=0.01, wait_s=30)
    assert bench_artifact(variant, settings=settings).samples  # with patience it gets its turn


def test_a_look_at_the_device(agent, tmp_path, monkeypatch):
    sys_ = tmp_path / "sys"
    files = {
        "class/thermal/thermal_zone0/type": "cpu-thermal",
        "class/thermal/thermal_zone0/temp": "61234",
        "class/thermal/cooling_device0/type": "cpufreq-cpu0",
        "class/thermal/cooling_device0/cur_state": "2",
        "devices/system/cpu/cpu0/cpufreq/scaling_governor": "ondemand",
        "devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1500000",
        "devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq": "1800000",
        "class/thermal/thermal_zone0/trip_point_0_type": "passive",
        "class/thermal/thermal_zone0/trip_point_0_temp": "85000",
        "class/thermal/thermal_zone0/trip_point_1_type": "critical",
        "class/thermal/thermal_zone0/trip_point_1_temp": "110000",
        "bus/i2c/drivers/ina3221x/6-0040/iio:device0/rail_name_0": "POM_5V_IN",
        "bus/i2c/drivers/ina3221x/6-0040/iio:device0/in_power0_input": "2400",
        "class/hwmon/hwmon3/in1_label": "VDD_IN",
        "class/hwmon/hwmon3/in1_input": "5000",
        "class/hwmon/hwmon3/curr1_input": "1200",
        "devices/platform/soc/soc:firmware/get_throttled": "50005",
    }
    for name, text in files.items():
        (sys_ / name).parent.mkdir(parents=True, exist_ok=True)
        (sys_ / name).write_text(text + "\n")
    monkeypatch.setenv("EDGEKIT_SYS", str(sys_))
    transport = LocalTransport()
    try:
        seen = report_device(transport, agent)
    finally:
        transport.close()
    assert seen.facts.governors == ("ondemand",)
    assert seen.facts.max_khz == (1_800_000,)
    assert seen.facts.python.split(".")[:2] == [str(v) for v in sys.version_info[:2]]
    assert seen.facts.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert seen.state.celsius == {"cpu-thermal": 61.234}
    assert seen.state.cooling == {"cpufreq-cpu0 (cooling_device0)": 2}
    assert seen.facts.trips_celsius == {"cpu-thermal": 85.0}
    assert seen.state.governors == ("ondemand",)
    assert seen.state.rails_mw == {"POM_5V_IN": 2400.0, "VDD_IN": 6000.0}
    assert seen.state.throttled == 0x50005
    assert seen.state.battery is None


def test_a_look_at_a_device_without_an_agent(tmp_path):
    transport = LocalTransport()
    try:
        with pytest.raises(DeviceError, match="does not say what it is"):
            report_device(transport, tmp_path / "absent.pyz")
    finally:
        transport.close()


def test_the_lock_is_free_after_its_process(agent, make):
    child = start(agent, make("hang"))
    running(child)
    os.kill(child.pid, 9)
    child.wait()
    child.stdout.close()
    child.stdin.close()
    again = start(agent, make("good"))
    assert until(again, "bye")["why"] == "done"
    finish(again)
