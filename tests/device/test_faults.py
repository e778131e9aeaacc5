"""Every fault of a device, from the command line over a real sshd.

Each ends in a typed error with what to do and exit code 7, or the run survives it. In every case no process and no
folder is left on the device, and what was measured is kept.
"""

import contextlib
import errno
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgekit import cli
from edgekit.artifact import golden, manifest
from edgekit.artifact.measure import JOURNAL, PARTIAL, RAW
from edgekit.devices import catalogue, session
from edgekit.devices.bench import BenchSettings, bench_artifact
from edgekit.devices.execute import run_artifact
from edgekit.devices.job import R
from edgekit.devices.plan import Watch
from edgekit.devices.runnable import Runnable
from edgekit.devices.transports import ssh
from edgekit.errors import DeviceError, RunCancelledError
from edgekit.types import Precision, Sample, SourceRecord, Target, sha256_file

pytestmark = pytest.mark.device

FAKE = Path(__file__).parents[1] / "unit" / "fake_runner.py"
MIPS = b"\x7fELF\x02\x02\x01" + b"\0" * 9 + b"\0\x02\0\x08" + b"\0" * 200


@pytest.fixture(autouse=True)
def own_world(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("edgekit.devices.pack.runner", lambda backend: FAKE)


@pytest.fixture
def artifact(tmp_path):
    """An artifact of a runtime that is slow enough to be disturbed at its work."""
    return make_artifact(tmp_path / "artifact")


def make_artifact(folder, behaviour="slow"):
    folder.mkdir()
    (folder / "model.fake").write_text(behaviour)
    sample = Sample(inputs={"x": np.ones(3, "f")})
    golden.write([sample], [{"y": np.full(3, 2, "f")}], folder / golden.FILE)
    manifest.write(
        manifest.Manifest(
            edgekit="0",
            status="passed",
            target=Target(
                name="fake-fp32", backend="fake", precision=Precision.FP32, runs_on="cpu", file="model.fake"
            ),
            source=SourceRecord(text="m", kind="onnx", sha256="0"),
            files=manifest.file_records(folder, ("model.fake",)),
            golden=manifest.GoldenRecord(
                file=golden.FILE, samples=1, sha256=sha256_file(folder / golden.FILE)
            ),
            runtime={"threads": 1},
        ),
        folder,
    )
    return folder


def know(server, **changes):
    row = {"config": str(server.config), "python": server.python, **changes}
    catalogue.write(catalogue.Row(name="board", address=row.pop("address", "device"), **row))


@pytest.fixture
def call(monkeypatch, capsys, artifact):
    """``edgekit bench``: its exit code and its document."""

    def go(*arguments, folder=artifact):
        argv = [
            "edgekit",
            "bench",
            str(folder),
            "--device",
            "board",
            "--json",
            "--seconds",
            "0.2",
            *arguments,
        ]
        monkeypatch.setattr(sys, "argv", argv)
        monkeypatch.setattr("edgekit.cli._ending.prepare", lambda: None)  # it is for a process of its own
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            cli.main()
        out = capsys.readouterr()
        return left.value.code, json.loads(out.out or "{}"), out.err

    return go


def failed(answer, kind, message, hint):
    """It ended with exit code 7 and this one error."""
    code, document, text = answer
    assert code == 7, text
    (error,) = document["errors"]
    assert (error["type"], error["exit_code"]) == (kind, 7)
    assert re.search(message, error["message"]), error
    assert re.search(hint, error["hint"]), error
    return document


def at_third(monkeypatch, action):
    """``action`` happens once, when two processes have been measured."""
    told = []

    def done(*_):
        told.append(None)
        if len(told) == 2:
            action()

    @dataclass(kw_only=True)
    class Watched(Watch[R]):
        def __post_init__(self):
            self.mend_s, self.on_done = 2.0, done

    monkeypatch.setattr("edgekit.devices.bench.Watch", Watched)


def kept(folder, processes, of):
    """The artifact says that a run was cut short, and has its samples."""
    (entry,) = manifest.read(folder).manifest.measurements
    assert (entry.facts["partial"]["processes"], entry.facts["partial"]["of"]) == (processes, of)
    assert entry.validity != "VALID"
    assert f"cut short after {processes} of {of} processes" in entry.reasons[0]
    raw = json.loads((folder / RAW).read_text())[PARTIAL]["board"]
    assert len(raw["samples"]) == processes
    assert all(len(p) >= 3 for p in raw["samples"])
    assert not (folder / JOURNAL).exists()


# --- no connection ------------------------------------------------------------------------------------


def test_an_unknown_host_key(sshd, call):
    know(sshd)
    sshd.known_hosts.write_text("")
    failed(call(), "UnreachableError", "host key is not known", "edgekit devices trust board")
    assert sshd.known_hosts.read_text() == ""
    assert sshd.settled() == ([], [])


def test_a_changed_host_key(sshd, call):
    know(sshd)
    key = (sshd.base / "client.pub").read_text().split()[:2]
    sshd.known_hosts.write_text(f"[127.0.0.1]:{sshd.port} {' '.join(key)}\n")
    failed(call(), "UnreachableError", "host key has changed", "ssh-keygen -R")
    assert sshd.settled() == ([], [])


def test_an_unknown_host(sshd, call):
    know(sshd, address="no-such-host.invalid")
    failed(call(), "UnreachableError", "cannot be resolved", "spelling")


def test_the_last_words_of_ssh_are_read_however_late(sshd, call, monkeypatch):
    """The thread that reads them may come late on a busy machine: the cause is named all the same."""
    read = ssh._Errors._read

    def late(self):
        time.sleep(0.5)
        read(self)

    monkeypatch.setattr(ssh._Errors, "_read", late)
    know(sshd, address="no-such-host.invalid")
    failed(call(), "UnreachableError", "cannot be resolved", "spelling")


def test_ssh_that_waits_in_silence(sshd, call, monkeypatch):
    """As it does for a name server that never answers."""
    monkeypatch.setattr(ssh, "_PATIENCE_S", -13.0)  # with the 15 s of a connection
    with sshd.config.open("a") as config:
        config.write('Match originalhost waits exec "sleep 60"\n  HostName 127.0.0.1\n')
    know(sshd, address="waits")
    failed(call(), "UnreachableError", "neither connected nor failed within 2 s", "ssh -v")


def test_a_refused_log_in(sshd, call):
    know(sshd)
    (sshd.base / "authorized_keys").write_text("")
    failed(call(), "UnreachableError", "refuses the log-in", "ssh-copy-id")


def test_nobody_listens(sshd, call):
    know(sshd)
    sshd.stop()
    failed(call(), "UnreachableError", "nothing listens", "start sshd")


# --- what the device lacks ----------------------------------------------------------------------------


def test_python_is_missing(sshd, call):
    know(sshd, python="/nowhere/python3")
    failed(call(), "DeviceError", "has no /nowhere/python3", r"Python 3\.8")
    assert sshd.settled() == ([], [])


def test_a_python_for_another_architecture(sshd, call):
    program = sshd.base / "python-for-mips"
    program.write_bytes(MIPS)
    program.chmod(0o755)
    know(sshd, python=str(program))
    failed(call(), "DeviceError", "cannot execute", "another architecture")
    assert sshd.settled() == ([], [])


def test_the_runtime_is_missing(make_sshd, call):
    server = make_sshd(environment={"FAKE_RUNTIME": "missing"})
    know(server)
    failed(
        call(), "RuntimeMissingError", "not installed on board: No module", "edgekit devices prepare board"
    )
    assert server.settled() == ([], [])


def test_a_runtime_for_another_architecture(make_sshd, call):
    server = make_sshd(environment={"FAKE_RUNTIME": "foreign"})
    (server.base / "home" / "foreign_extension.so").write_bytes(MIPS)
    know(server)
    failed(call(), "RuntimeMissingError", "cannot be loaded on board", "another architecture")
    assert server.settled() == ([], [])


# --- disks --------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(make_sshd):
    if os.geteuid() != 0:
        pytest.skip("only root can make a small disk")
    server = make_sshd(tmp_size="1m")
    know(server)
    return server


def fill(server, leave=0):
    """Take the device's disk but for so many bytes."""
    with (server.disk / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"\0" * 4096)
    if leave:
        size = (server.disk / "filler").stat().st_size
        os.truncate(server.disk / "filler", size - leave)


def test_a_full_disk_at_the_upload(small_disk, call, artifact):
    folder = make_artifact(artifact.parent / "big", "slow" + " " * (2 << 20))
    answer = call(folder=folder)
    failed(answer, "DeviceError", f"cannot upload .*{os.strerror(errno.ENOSPC)}", "free some space")
    assert small_disk.settled() == ([], [])


def test_a_full_disk_from_the_start(small_disk, call):
    fill(small_disk)
    failed(call(), "DeviceError", f"cannot make a folder: {os.strerror(errno.ENOSPC)}", "free some space")
    assert small_disk.settled(1) == ([], ["filler"])


def test_a_disk_that_fills_up_costs_nothing_that_was_measured(small_disk, call, monkeypatch, artifact):
    at_third(monkeypatch, lambda: fill(small_disk))
    code, document, text = call("--processes", "4")
    assert code == 0, text
    assert len(json.loads((artifact / RAW).read_text())["board"]) == 4
    assert document["errors"] == []
    assert small_disk.settled(1) == ([], ["filler"])


def test_results_that_find_no_room(small_disk, tmp_path):
    model = tmp_path / "m"
    model.write_text("good")
    runnable = Runnable(backend="fake", main=model)
    with pytest.raises(DeviceError, match="cannot write") as caught:
        run_artifact(runnable, [{"x": np.ones(20_000, "f")}] * 5, device=catalogue.device("board"))
    assert caught.value.exit_code == 7
    assert "free some space" in caught.value.hint
    assert small_disk.settled() == ([], [])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a read-only folder of another user")
class TestReadOnly:
    def test_a_read_only_home_is_no_hindrance(self, make_sshd, call):
        server = make_sshd(read_only="home")
        know(server)
        code, _, text = call("--processes", "2")
        assert code == 0, text
        assert server.settled() == ([], [])

    def test_nothing_can_be_written(self, make_sshd, call):
        server = make_sshd(read_only="all")
        know(server)
        failed(call(), "DeviceError", "no folder can be written", "set TMPDIR")
        assert server.settled() == ([], [])


def test_a_corrupt_upload(sshd, call, monkeypatch):
    know(sshd)
    monkeypatch.setattr(ssh, "sha256_file", lambda path: "0" * 64)
    failed(call(), "DeviceError", "bytes came, sha256", "run it again")
    assert sshd.settled() == ([], [])


# --- while it runs ------------------------------------------------------------------------------------


def test_busy(sshd, call, tmp_path):
    know(sshd)
    (tmp_path / "m").write_text("slow")
    variant = Runnable(
        backend="fake", main=tmp_path / "m", inputs={"x": np.ones(3, "f")}, options={"threads": 1}
    )
    stop = threading.Event()
    settings = BenchSettings(processes=2, seconds=60, cancel=stop)

    def first():
        with pytest.raises(RunCancelledError) as caught:
            bench_artifact(variant, device=catalogue.device("board"), settings=settings)
        assert caught.value.exit_code == 7
        assert caught.value.hint

    other = threading.Thread(target=first)
    other.start()
    wait_for(lambda: any("agent-" in p and "supervisor" not in p for p in sshd.processes()))
    try:
        failed(call(), "DeviceBusyError", f"process {os.getpid()}", "wait for it")
    finally:
        stop.set()
        other.join()
    assert sshd.settled() == ([], [])


def wait_for(condition, seconds=120.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.05)


def test_a_time_out(sshd, call, tmp_path):
    know(sshd)
    folder = make_artifact(tmp_path / "hangs", "hang")
    answer = call("--timeout", "2", folder=folder)
    failed(answer, "DeviceTimeoutError", r"no answer within 2 s \(during first\)", "--timeout")
    assert sshd.settled() == ([], [])


@pytest.fixture
def link(sshd):
    """A link that can break, between us and the board."""
    from testbed.link import Link

    with Link(sshd.port) as link:
        config = sshd.base / "ssh_config_link"
        text = sshd.config.read_text().replace(f"Port {sshd.port}", f"Port {link.port}")
        config.write_text(text + f"  HostKeyAlias [127.0.0.1]:{sshd.port}\n")
        know(sshd, config=str(config))
        yield link


@pytest.mark.parametrize("fault", ["reset", "black hole"])
def test_a_link_that_breaks_is_mended_and_the_run_finishes(fault, sshd, link, call, monkeypatch, artifact):
    def cut():
        if fault == "reset":
            link.reset()
        else:
            link.black_hole()
            threading.Timer(3, link.mend).start()

    at_third(monkeypatch, cut)
    code, _, text = call("--processes", "5")
    assert code == 0, text
    (entry,) = manifest.read(artifact).manifest.measurements
    assert entry.facts["resumes"] == 1
    assert "partial" not in entry.facts
    assert len(json.loads((artifact / RAW).read_text())["board"]) == 5
    link.reset()  # of a black hole the old session's server would learn in hours
    assert sshd.settled(60) == ([], [])


def test_a_link_that_breaks_during_an_upload_is_mended(sshd, link, call, monkeypatch):
    real, cuts = ssh.SshTransport.put, []

    def put(self, source, name):
        if not cuts:
            cuts.append(name)
            link.reset()
        return real(self, source, name)

    monkeypatch.setattr(ssh.SshTransport, "put", put)
    code, _, text = call("--processes", "2")
    assert code == 0, text
    assert link.connections == 2
    assert sshd.settled() == ([], [])


def test_a_device_that_stays_away(sshd, link, call, monkeypatch, artifact):
    at_third(monkeypatch, sshd.stop)
    document = failed(call("--processes", "5"), "UnreachableError", "cannot connect to board", ".")
    assert document["measurements"][0]["measurement"]["facts"]["partial"]["processes"] == 2
    kept(artifact, 2, 5)
    assert sshd.settled()[0] == []


def test_a_restarted_device(make_sshd, call, monkeypatch, artifact):
    if os.geteuid() != 0:
        pytest.skip("only root can give a device a boot id of its own")
    server = make_sshd(own_boot_id=True)
    know(server)
    at_third(monkeypatch, server.restart)
    failed(call("--processes", "5"), "DeviceError", "was restarted", "power supply")
    kept(artifact, 2, 5)
    assert server.settled() == ([], [])


def test_a_crash_keeps_what_was_measured_before(sshd, call, monkeypatch, artifact):
    know(sshd)
    real = session.run_plan

    def break_third(transport, tasks, watch):
        job = msgspec.structs.replace(tasks[2].job, model="/nowhere")
        return real(transport, [*tasks[:2], replace(tasks[2], job=job), *tasks[3:]], watch)

    monkeypatch.setattr(session, "run_plan", break_third)
    code, document, _ = call("--processes", "5")
    assert (code, document["errors"][0]["type"]) == (6, "BackendError")
    kept(artifact, 2, 5)
    assert sshd.settled() == ([], [])


def test_ctrl_c_keeps_what_was_measured(sshd, artifact, tmp_path):
    know(sshd)
    host = start_host(artifact, tmp_path)
    wait_for(lambda: lines(artifact) >= 2)
    host.send_signal(signal.SIGINT)
    _, text = host.communicate(timeout=120)
    assert host.returncode == 130, text
    assert "of 50 processes on board are kept" in text
    (entry,) = manifest.read(artifact).manifest.measurements
    kept(artifact, entry.facts["partial"]["processes"], 50)
    assert entry.facts["partial"]["processes"] >= 2
    assert sshd.settled() == ([], [])


def test_a_killed_host(sshd, call, artifact, tmp_path):
    know(sshd)
    host = start_host(artifact, tmp_path)
    wait_for(lambda: lines(artifact) >= 2)
    host.kill()
    host.communicate()
    assert sshd.settled() == ([], [])
    measured = lines(artifact)
    assert measured >= 2
    sshd.stop()
    assert call()[0] == 7  # the next run, whatever comes of it, keeps what the killed one had measured
    raw = json.loads((artifact / RAW).read_text())[PARTIAL]["board"]
    assert len(raw["samples"]) == raw["processes"] == measured
    assert raw["why"] == "the run was killed"


def test_a_killed_host_leaves_the_governor_as_it_was(make_sshd, artifact, tmp_path):
    server = make_sshd(environment={"EDGEKIT_SYS": "{base}/sys"})
    governor = server.base / "sys/devices/system/cpu/cpufreq/policy0/scaling_governor"
    governor.parent.mkdir(parents=True)
    governor.write_text("ondemand")
    governor.chmod(0o666)
    know(server)
    host = start_host(artifact, tmp_path, "--governor", "performance", "--cpus", "0")
    wait_for(lambda: lines(artifact) >= 1)
    assert governor.read_text() == "performance"
    host.kill()
    host.communicate()
    assert server.settled() == ([], [])
    assert governor.read_text() == "ondemand"
    entry = json.loads((artifact / JOURNAL).read_text().splitlines()[0])
    assert entry["result"]["affinity"] == [0]


def start_host(artifact, tmp_path, *options):
    """``edgekit bench`` with the fake runtime, in a process that can be interrupted."""
    argv = ["edgekit", "bench", str(artifact), "--device", "board", "--processes", "50", *options]
    script = tmp_path / "host.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\nfrom edgekit import cli\nfrom edgekit.devices import pack\n"
        f"pack.runner = lambda backend: Path({str(FAKE)!r})\n"
        f"sys.argv = {argv!r}\n"
        "cli.main()\n"
    )
    return subprocess.Popen([sys.executable, script], stderr=subprocess.PIPE, text=True)


def lines(artifact):
    journal = artifact / JOURNAL
    return journal.read_bytes().count(b"\n") if journal.exists() else 0
