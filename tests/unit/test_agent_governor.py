"""The frequency governor: set for the time of a plan, put back however it ends. Over a /sys of the test's own."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgekit.devices.bench import BenchSettings, bench_artifact
from edgekit.devices.pack import pack_runner
from edgekit.devices.runnable import Runnable
from edgekit.errors import DeviceError, UsageError

FAKE = Path(__file__).with_name("fake_runner.py")
QUICK = BenchSettings(processes=1, seconds=0.05, iterations=3, warmup_s=0.05, governor="performance")


@pytest.fixture
def policies(tmp_path, monkeypatch):
    """Two clusters with governors of their own, as on a big.LITTLE board."""
    monkeypatch.setenv("EDGEKIT_LOCK", str(tmp_path)[-60:])
    monkeypatch.setenv("EDGEKIT_SYS", str(tmp_path / "sys"))
    found = []
    for number, governor in ((0, "ondemand"), (4, "schedutil")):
        folder = tmp_path / f"sys/devices/system/cpu/cpufreq/policy{number}"
        folder.mkdir(parents=True)
        (folder / "scaling_available_governors").write_text("ondemand schedutil performance\n")
        (folder / "scaling_governor").write_text(governor + "\n")
        found.append(folder / "scaling_governor")
    return found


def now(policies):
    return [path.read_text().strip() for path in policies]


OWN, SET = ["ondemand", "schedutil"], ["performance", "performance"]


@pytest.fixture
def variant(tmp_path, monkeypatch):
    monkeypatch.setattr("edgekit.devices.pack.runner", lambda backend: FAKE)
    (tmp_path / "m").write_text("good")
    return Runnable(
        backend="fake", main=tmp_path / "m", inputs={"x": np.ones(3, "f")}, options={"threads": 1}
    )


def until(condition):
    for _ in range(2000):
        if condition():
            return
        time.sleep(0.05)
    pytest.fail("it did not come to that")


def test_it_is_put_back_after_a_run_and_after_a_crash(policies, variant, tmp_path):
    seen = []
    settings = replace(QUICK, processes=2, on_progress=lambda *_: seen.append(now(policies)))
    bench_artifact(variant, settings=settings)
    assert seen[0] == SET
    assert now(policies) == OWN
    (tmp_path / "m").write_text("segfault")
    with pytest.raises(Exception, match="SIGSEGV"):
        bench_artifact(variant, settings=QUICK)
    until(lambda: now(policies) == OWN)  # the error ends the supervisor; who holds the governors notices


@pytest.mark.parametrize("way", ["host gone", "supervisor killed", "group killed", "keeper terminated"])
def test_it_is_put_back_whoever_dies(way, policies, tmp_path):
    (tmp_path / "m").write_text("hang")
    np.save(tmp_path / "in", np.ones(3, "f"))
    agent = pack_runner(FAKE, "fake").write(tmp_path)
    job = {
        "action": "run",
        "model": str(tmp_path / "m"),
        "inputs": {"path": str(tmp_path / "in.npy"), "names": ["x"], "count": 1},
        "outputs": {"path": str(tmp_path / "out"), "names": []},
    }
    task = {"id": "0", "argv": ["{python}", str(agent)], "job": job, "timeout": 30}
    plan = {"tasks": [task], "journal": str(tmp_path / "j"), "heartbeat": 30, "governor": "performance"}
    child = subprocess.Popen(
        [sys.executable, agent, "supervisor"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    child.stdin.write(json.dumps(plan).encode() + b"\n")
    child.stdin.flush()
    until(lambda: now(policies) == SET)
    children = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
    keeper = next(c for c in children if b"governor" in Path(f"/proc/{c}/cmdline").read_bytes())
    if way == "host gone":
        child.stdin.close()
    elif way == "supervisor killed":
        child.kill()
    elif way == "group killed":
        os.killpg(child.pid, signal.SIGKILL)
    else:
        os.kill(int(keeper), signal.SIGTERM)
    until(lambda: now(policies) == OWN)
    child.stdin.close()
    child.wait()
    until(lambda: not Path(f"/proc/{keeper}").exists())


def test_a_governor_that_it_does_not_have(policies, variant):
    with pytest.raises(UsageError, match="turbo is none of its governors: ondemand, schedutil, performance"):
        bench_artifact(variant, settings=replace(QUICK, governor="turbo"))
    assert now(policies) == OWN


def test_a_governor_that_may_not_be_written(policies, variant):
    policies[1].unlink()
    policies[1].mkdir()  # cannot be opened for writing, not even by root
    with pytest.raises(DeviceError, match=r"policy4/scaling_governor") as caught:
        bench_artifact(variant, settings=QUICK)
    assert "sudo" in caught.value.hint
    assert now(policies[:1]) == OWN[:1]  # what was set already is put back


def test_a_machine_without_governors(variant, tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEKIT_SYS", str(tmp_path / "empty"))
    monkeypatch.setenv("EDGEKIT_LOCK", str(tmp_path)[-60:])
    with pytest.raises(DeviceError, match="no cpufreq"):
        bench_artifact(variant, settings=QUICK)


def test_without_the_flag_nothing_is_written(policies, variant):
    seen = []
    settings = replace(QUICK, governor="", on_progress=lambda *_: seen.append(now(policies)))
    measured = bench_artifact(variant, settings=settings)
    assert seen == [OWN]
    assert measured.facts["states"][0]["time"]
