"""Phones are timed with the makers' programs: here scripts that print what those print, on the stand-in of adbd."""

import json
import os
import platform
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

from edgekit.cli import cli
from edgekit.devices import catalogue
from edgekit.devices.bench import BenchSettings, bench_artifact, compare_artifacts
from edgekit.devices.runnable import Runnable
from edgekit.errors import BackendError, DeviceBusyError, LinkLostError, RuntimeCrashError, UsageError
from edgekit.types import Device

pytestmark = pytest.mark.device

SCRIPT = """#!/bin/sh
for a in "$@"; do case $a in --graph=*) graph=${a#--graph=};; esac; done
[ -f "$graph" ] || exit 9
us=$(cat "$graph")
BODY
echo "count=50 first=9 curr=9 min=9 max=9 avg=$us std=1 p5=1 median=$us p95=9"
echo "Inference timings in us: Init: 800, First inference: 5000, Warmup (avg): 9, Inference (avg): $us"
echo "Memory footprint delta from the start of the tool (MB): init=1 overall=2"
"""


@pytest.fixture(scope="module")
def server():
    from testbed import adbd
    from testbed.sshd import MissingToolError

    try:
        with adbd.server() as port:
            yield port
    except MissingToolError as error:
        pytest.skip(str(error))


@pytest.fixture
def phone(server):
    from testbed.adbd import Adbd

    with Adbd() as one:
        yield one


def program(tmp_path, body=""):
    path = tmp_path / "benchmark_model"
    path.write_text(SCRIPT.replace("BODY", body))
    path.chmod(0o755)
    return str(path)


def device(phone, server, **options):
    options = {"folder": str(phone.tmp), "server_port": server, "connect_s": 5, **options}
    return Device(name="pixel", transport="adb", address=phone.serial, options=options)


def variant(tmp_path, us, backend="tflite"):
    model = tmp_path / f"{us}.tflite"
    model.write_text(str(us))
    return Runnable(backend=backend, main=model, inputs={"x": np.ones(1)})


SETTINGS = BenchSettings(processes=4, seconds=0.1, iterations=3)


def settled(phone, seconds=10):
    end = time.monotonic() + seconds
    while time.monotonic() < end and (phone.processes() or phone.left_over()):
        time.sleep(0.1)
    return phone.processes(), phone.left_over()


def test_a_phone_is_timed_and_what_is_not_told_is_said(phone, server, tmp_path):
    where = device(phone, server, benchmark_model=program(tmp_path))
    found = bench_artifact(variant(tmp_path, 2500), device=where, settings=SETTINGS)
    assert (found.p50_ms, found.load_ms, found.first_ms) == (2.5, 0.8, 5.0)
    assert len(found.samples) == 4
    assert found.model_memory == 2 * 1024 * 1024
    assert found.validity == "VALID"
    assert any("does not tell: single inferences" in r for r in found.reasons)
    assert found.facts["device"]["model"] == "Google Pixel 8"
    assert found.facts["states"][0]["battery"]["percent"] == 87
    assert settled(phone) == ([], [])


def test_two_are_interleaved_and_compared(phone, server, tmp_path):
    where = device(phone, server, binary=program(tmp_path, "us=$((us + $$ % 7))"))
    settings = replace(SETTINGS, processes=10)
    first, second = variant(tmp_path, 9000), variant(tmp_path, 5000)
    found = compare_artifacts(first, second, device=where, settings=settings)
    assert found.difference.verdict == "faster"
    assert settled(phone) == ([], [])


def test_heat_spoils_it(server, tmp_path):
    from testbed.adbd import Adbd

    with Adbd(thermal="Thermal Status: 3\n") as phone:
        where = device(phone, server, binary=program(tmp_path))
        found = bench_artifact(variant(tmp_path, 2500), device=where, settings=SETTINGS)
    assert found.validity == "INVALID"
    assert any("severe" in r for r in found.reasons)


def test_a_phone_that_does_not_cool_down_is_measured_all_the_same(phone, server, tmp_path, monkeypatch):
    monkeypatch.setattr("edgekit.devices.bench.COOL_DOWN_S", 0.0)
    where = device(phone, server, binary=program(tmp_path), cool_down_celsius=30)
    found = bench_artifact(variant(tmp_path, 2500), device=where, settings=SETTINGS)
    assert found.validity == "NOISY"
    assert any("would not cool to 30" in r for r in found.reasons)


def test_without_a_program_it_says_which(phone, server, tmp_path):
    with pytest.raises(UsageError, match="no benchmark_model was named") as caught:
        bench_artifact(variant(tmp_path, 1), device=device(phone, server), settings=SETTINGS)
    assert "arm64-v8a" in caught.value.hint
    absent = device(phone, server, binary="/nowhere/benchmark_model")
    with pytest.raises(UsageError, match="there is no /nowhere"):
        bench_artifact(variant(tmp_path, 1), device=absent, settings=SETTINGS)
    where = device(phone, server, binary=program(tmp_path))
    with pytest.raises(UsageError, match="openvino"):
        bench_artifact(variant(tmp_path, 1, "openvino"), device=where, settings=SETTINGS)
    assert settled(phone) == ([], [])


@pytest.mark.parametrize(
    ("body", "error", "said"),
    [
        ("echo 'cannot load' >&2; exit 3", RuntimeCrashError, "cannot load"),
        ("echo nothing; exit 0", BackendError, "printed no times"),
        ("kill -SEGV $$", RuntimeCrashError, "ended with 139"),
    ],
)
def test_a_program_that_fails(body, error, said, phone, server, tmp_path):
    where = device(phone, server, binary=program(tmp_path, body))
    with pytest.raises(error, match=said):
        bench_artifact(variant(tmp_path, 1), device=where, settings=SETTINGS)
    assert settled(phone) == ([], [])


def test_a_program_that_hangs_is_ended(phone, server, tmp_path):
    where = device(phone, server, binary=program(tmp_path, "sleep 600"))
    with pytest.raises(RuntimeCrashError, match="no answer within 1 s"):
        bench_artifact(variant(tmp_path, 1), device=where, settings=replace(SETTINGS, timeout=1))
    processes, folders = settled(phone)
    assert [p for p in processes if "benchmark_model" in p] == []
    assert folders == []


def test_an_unplugged_phone_is_a_lost_link_and_nothing_runs_on(phone, server, tmp_path):
    where = device(phone, server, binary=program(tmp_path, "sleep 600"))
    threading.Timer(1.5, phone.unplug).start()
    with pytest.raises(LinkLostError):
        bench_artifact(variant(tmp_path, 1), device=where, settings=SETTINGS)
    end = time.monotonic() + 10
    while time.monotonic() < end and any("benchmark_model" in p for p in phone.processes()):
        time.sleep(0.1)
    assert not any("benchmark_model" in p for p in phone.processes())


def test_one_benchmark_a_phone(phone, server, tmp_path):
    where = device(phone, server, binary=program(tmp_path, "sleep 1"))
    first = threading.Thread(
        target=bench_artifact, args=(variant(tmp_path, 1),), kwargs={"device": where, "settings": SETTINGS}
    )
    first.start()
    for _ in range(200):
        if "edgekit-lock" in phone.left_over():
            break
        time.sleep(0.05)
    time.sleep(0.3)
    with pytest.raises(DeviceBusyError, match="is benchmarking"):
        bench_artifact(variant(tmp_path, 1), device=where, settings=SETTINGS)
    first.join()
    assert settled(phone) == ([], [])
    (phone.tmp / "edgekit-lock").mkdir()  # what a host that was killed leaves
    (phone.tmp / "edgekit-lock" / "holder").write_text("another-boot 1 somebody\n")
    where = device(phone, server, binary=program(tmp_path))
    assert bench_artifact(variant(tmp_path, 1), device=where, settings=SETTINGS).p50_ms == 0.001
    assert settled(phone) == ([], [])


def test_the_command(phone, server, tmp_path, monkeypatch):
    import torch

    from edgekit import Options, build

    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(server))
    monkeypatch.chdir(tmp_path)
    # The stand-in is this machine: a row that says otherwise would be refused.
    row = catalogue.Row(
        name="pixel", address=phone.serial, kind="pixel", folder=str(phone.tmp), arch=platform.machine()
    )
    catalogue.write(row)
    result = build(
        torch.nn.Linear(4, 2).eval(), torch.ones(1, 4), targets="tflite-fp32", out=tmp_path / "out"
    )
    (made,) = result.raise_for_failures().artifacts
    script = program(tmp_path, "us=1500")
    words = [
        "bench",
        str(made.directory),
        "--device",
        "pixel",
        "--binary",
        script,
        "--processes",
        "2",
        "--json",
    ]
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 0, (result.output, result.exception)
    (entry,) = json.loads(result.stdout)["measurements"]
    assert entry["measurement"]["p50_ms"] == 1.5
    assert entry["measurement"]["device"] == "pixel"
    kept = json.loads((made.directory / "manifest.json").read_text())["measurements"]
    assert [m["device"] for m in kept] == ["pixel"]
    options = Options(device="pixel", speed_gate=False)
    result = build(torch.nn.Linear(4, 2).eval(), torch.ones(1, 4), targets="tflite-fp32", options=options)
    (again,) = result.raise_for_failures().artifacts
    assert again.manifest.status == "passed"  # here: the phone cannot tell what it computed
    assert "device" not in again.manifest.machine
    refused = CliRunner().invoke(cli, ["verify", str(made.directory), "--device", "pixel"])
    assert refused.exit_code == 7
    assert "has no Python" in refused.stderr


def test_a_program_on_this_machine(tmp_path):
    where = Device(name="local", options={"binary": program(tmp_path)})
    found = bench_artifact(variant(tmp_path, 2500), device=where, settings=SETTINGS)
    assert found.p50_ms == 2.5
    assert found.threads == len(os.sched_getaffinity(0))
    where = Device(name="local", options={"binary": program(tmp_path, "echo cannot load; exit 3")})
    with pytest.raises(RuntimeCrashError, match="ended with 3") as caught:
        bench_artifact(variant(tmp_path, 1), device=where, settings=SETTINGS)
    assert "cannot load" in caught.value.message


def test_a_program_over_ssh_runs_under_the_agents_lock(sshd, tmp_path, monkeypatch):
    """As on a Jetson whose Python has no TensorRT: trtexec is there already."""
    # As if its engine had been built there.
    monkeypatch.setattr("edgekit.devices.engines.ready", lambda transport, runnable: runnable)
    tool = sshd.base / "trtexec"
    line = "median = 7.5 ms, mean = 7.6 ms, percentile(90%) = 9 ms, percentile(99%) = 12 ms"
    script = f"""#!/bin/sh
for a in "$@"; do case $a in --exportTimes=*) out=${{a#--exportTimes=}};; esac; done
echo '[{{"computeMs": 7.0}}, {{"computeMs": 8.0}}]' > "$out"
sleep 0.3
echo "[I] GPU Compute Time: min = 7 ms, max = 8 ms, {line}"
"""
    tool.write_text(script)
    tool.chmod(0o755)
    options = {"config": str(sshd.config), "python": sshd.python, "binary": f"device:{tool}"}
    board = Device(name="board", transport="ssh", address="device", options=options)
    subject = variant(tmp_path, 1, "tensorrt")
    results = {}

    def first():
        results["first"] = bench_artifact(subject, device=board, settings=replace(SETTINGS, processes=8))

    thread = threading.Thread(target=first)
    thread.start()
    for _ in range(200):
        if any("trtexec" in line for line in sshd.processes()):
            break
        time.sleep(0.05)
    with pytest.raises(DeviceBusyError):
        bench_artifact(subject, device=board, settings=SETTINGS)
    thread.join()
    assert results["first"].samples == ((7.0, 8.0),) * 8
    assert any("without copies" in reason for reason in results["first"].reasons)
    assert sshd.settled() == ([], [])
