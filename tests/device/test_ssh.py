"""A device over SSH, with a real sshd: what works, and every fault with its typed error and nothing left."""

import errno
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from edgekit.devices.bench import BenchSettings, bench_artifact, compare_artifacts
from edgekit.devices.execute import run_artifact
from edgekit.devices.runnable import Runnable
from edgekit.devices.transports import ssh
from edgekit.devices.transports.connect import connect, open_transport
from edgekit.devices.transports.process import Patience
from edgekit.errors import (
    DeviceBusyError,
    DeviceError,
    RuntimeCrashError,
    UnreachableError,
    UsageError,
)
from edgekit.types import Device

pytestmark = pytest.mark.device

FAKE = Path(__file__).parents[1] / "unit" / "fake_runner.py"
X = np.arange(3, dtype=np.float32)
QUICK = BenchSettings(processes=2, seconds=0.05, iterations=3, warmup_s=0.05)


@pytest.fixture(autouse=True)
def fake_runtime(monkeypatch):
    monkeypatch.setattr("edgekit.devices.pack.runner", lambda backend: FAKE)


def board(server, **options):
    return Device(
        name="board",
        transport="ssh",
        address="device",
        options={"config": str(server.config), "python": server.python, **options},
    )


def run(device, tmp_path, behaviour="good", **settings):
    return run_artifact(variant(tmp_path, behaviour), [{"x": X}], device=device, **settings)


def variant(tmp_path, behaviour="good"):
    model = tmp_path / f"{behaviour}.fake"
    model.write_text(behaviour)
    return Runnable(backend="fake", main=model, inputs={"x": X}, options={"threads": 1})


def test_a_run_comes_back_and_leaves_nothing(sshd, tmp_path):
    with run(board(sshd), tmp_path) as result:
        np.testing.assert_array_equal(next(iter(result.outputs))["y"], X * 2)
        assert result.versions == {"fake": "1.0"}
    assert sshd.settled() == ([], [])


def test_a_benchmark_tells_device_and_state(sshd, tmp_path):
    found = compare_artifacts(
        variant(tmp_path), variant(tmp_path, "int8x"), device=board(sshd), settings=QUICK
    )
    assert found.first.device == "board"
    assert len(found.first.samples) == len(found.second.samples) == 2
    assert found.first.facts["device"]["boot_id"]
    assert found.first.facts["states"]
    assert sshd.settled() == ([], [])


def test_what_log_in_scripts_print_does_no_harm(make_sshd, tmp_path):
    server = make_sshd(login_noise='Welcome! {"seq": 3}')
    with run(board(server), tmp_path) as result:
        assert len(result.outputs) == 1
    bench_artifact(variant(tmp_path), device=board(server), settings=QUICK)
    assert server.settled() == ([], [])


def test_a_crash_there_is_a_crash_here(sshd, tmp_path):
    with pytest.raises(RuntimeCrashError, match="SIGSEGV"):
        bench_artifact(variant(tmp_path, "segfault"), device=board(sshd), settings=QUICK)
    with pytest.raises(RuntimeCrashError, match="no answer within 1 s"):
        run(board(sshd), tmp_path, "hang", timeout=1)
    assert sshd.settled() == ([], [])


def test_files_go_there_and_back_checked(sshd, tmp_path, monkeypatch):
    data = os.urandom(3_000_000)
    (tmp_path / "up").write_bytes(data)
    with connect(board(sshd)) as transport:
        there = transport.put(tmp_path / "up", "folder/name with 'quotes' and $(id)")
        assert Path(str(there)).read_bytes() == data
        assert oct(Path(str(transport.root)).stat().st_mode & 0o777) == "0o700"
        transport.get("folder/name with 'quotes' and $(id)", tmp_path / "down", 1 << 30)
        assert (tmp_path / "down").read_bytes() == data
        with pytest.raises(DeviceError, match="cannot read absent"):
            transport.get("absent", tmp_path / "x", 1 << 30)
        for bad in ("../x", "/etc/x", "-rf", ""):
            with pytest.raises(UsageError):
                transport.put(tmp_path / "up", bad)
        monkeypatch.setattr(ssh, "sha256_file", lambda path: "0" * 64)
        with pytest.raises(DeviceError, match="3000000 of 3000000 bytes came, sha256"):
            transport.put(tmp_path / "up", "corrupt")
        assert not list(Path(str(transport.root)).glob("corrupt*"))
    assert sshd.settled() == ([], [])


def test_arguments_reach_the_device_unchanged(sshd):
    words = ["a b", "$(touch /tmp/x)", "it's", '"', "*", ";", "-n", "é"]
    heard = []
    code = 'import json,sys; print(\'{"seq":1,"a":%s}\' % json.dumps(sys.argv[1:]))'
    with connect(board(sshd)) as transport:
        argv = [transport.python, "-c", code, *words]
        transport.run(argv, stdin=b"", on_line=heard.append, patience=Patience(whole=20))
    import json

    assert json.loads(heard[0])["a"] == words


@pytest.mark.parametrize("address", ["-oProxyCommand=touch /tmp/x", "", "a b", "host\nname"])
def test_addresses_that_are_none(address):
    with pytest.raises(UsageError):
        open_transport(Device(name="d", transport="ssh", address=address))


# --- faults ------------------------------------------------------------------------------------------


def unreachable(device):
    with pytest.raises(UnreachableError) as caught:
        open_transport(device)
    assert caught.value.exit_code == 7
    return f"{caught.value.message} | {caught.value.hint}"


def test_an_unknown_host_key_is_never_waved_through(sshd):
    sshd.known_hosts.write_text("")
    assert "host key is not known" in unreachable(board(sshd))
    assert sshd.known_hosts.read_text() == ""


def test_a_changed_host_key(sshd):
    key = (sshd.base / "client.pub").read_text().split()[:2]
    sshd.known_hosts.write_text(f"[127.0.0.1]:{sshd.port} {' '.join(key)}\n")
    assert "host key has changed" in unreachable(board(sshd))


def test_a_refused_log_in(sshd):
    (sshd.base / "authorized_keys").write_text("")
    assert "refuses the log-in" in unreachable(board(sshd))


def test_nobody_listens(sshd):
    sshd.stop()
    assert "nothing listens" in unreachable(board(sshd))


def test_an_unknown_name(sshd):
    device = Device(
        name="b", transport="ssh", address="no-such-host.invalid", options={"config": str(sshd.config)}
    )
    assert "cannot be resolved" in unreachable(device)


def test_no_python(sshd):
    with pytest.raises(DeviceError, match="has no /nowhere/python3") as caught:
        open_transport(board(sshd, python="/nowhere/python3"))
    assert "3.8" in caught.value.hint


def test_a_program_for_another_architecture(sshd):
    program = sshd.base / "python-for-mips"
    program.write_bytes(b"\x7fELF\x02\x02\x01" + b"\0" * 9 + b"\0\x02\0\x08" + b"\0" * 200)
    program.chmod(0o755)
    with pytest.raises(DeviceError, match="cannot execute"):
        open_transport(board(sshd, python=str(program)))


def test_an_old_python(sshd):
    program = sshd.base / "python3.6"
    program.write_text(
        '#!/bin/sh\necho \'{"edgekit": 1, "python": [3, 6, 15], "boot_id": "", "root": "/x"}\'\n'
    )
    program.chmod(0o755)
    with pytest.raises(DeviceError, match=r"Python 3\.6\.15"):
        open_transport(board(sshd, python=str(program)))


def test_a_full_disk(make_sshd, tmp_path):
    if os.geteuid() != 0:
        pytest.skip("only root can make a small disk")
    server = make_sshd(tmp_size="256k")
    (tmp_path / "big").write_bytes(os.urandom(1 << 20))
    with connect(board(server)) as transport:
        with pytest.raises(DeviceError, match=os.strerror(errno.ENOSPC)) as caught:
            transport.put(tmp_path / "big", "big")
        assert "free some space" in caught.value.hint


def test_a_device_is_busy_for_the_second(sshd, tmp_path):
    slow = BenchSettings(processes=1, seconds=5, iterations=3, warmup_s=0.05)
    first = threading.Thread(
        target=bench_artifact,
        args=(variant(tmp_path, "slow"),),
        kwargs={"device": board(sshd), "settings": slow},
    )
    first.start()
    for _ in range(2000):
        if any("supervisor" in line for line in sshd.processes()):
            break
        time.sleep(0.05)
    time.sleep(0.5)
    with pytest.raises(DeviceBusyError, match=f"process {os.getpid()}"):
        bench_artifact(variant(tmp_path), device=board(sshd), settings=QUICK)
    first.join()
    assert sshd.settled() == ([], [])


def _later(seconds, action):
    timer = threading.Timer(seconds, action)
    timer.start()
    return timer


LONG = BenchSettings(processes=6, seconds=0.5, iterations=3, warmup_s=0.05)


@pytest.fixture
def link(sshd):
    from testbed.link import Link

    with Link(sshd.port) as link:
        yield link


def through(sshd, link):
    """The board as seen through the link (its host key is known under the server's own address)."""
    config = sshd.base / "ssh_config_link"
    text = sshd.config.read_text().replace(f"Port {sshd.port}", f"Port {link.port}")
    config.write_text(text + f"  HostKeyAlias [127.0.0.1]:{sshd.port}\n")
    return board(sshd, config=str(config))


def on_third(done, action):
    """A progress callback that acts once, when two processes have been measured."""

    def tell(n, _):
        done.append(n)
        if n == 2 and done.count(2) == 1:
            action()

    return tell


@pytest.mark.parametrize("fault", ["reset", "sessions-killed"])
def test_a_broken_link_is_mended_and_the_run_goes_on(fault, sshd, link, tmp_path):
    from dataclasses import replace

    action = link.reset if fault == "reset" else sshd.drop_sessions
    done = []
    settings = replace(LONG, on_progress=on_third(done, action))
    found = bench_artifact(variant(tmp_path), device=through(sshd, link), settings=settings)
    assert len(found.samples) == 6
    assert found.facts["resumes"] == 1
    assert link.connections == 2
    assert sshd.settled() == ([], [])


def test_a_restarted_device_is_told(sshd, tmp_path):
    transport = open_transport(board(sshd))
    try:
        (Path(str(transport.root)) / ".edgekit").unlink()  # what a power cut does to a RAM disk
        with pytest.raises(DeviceError, match="restarted"):
            transport.reopen()
    finally:
        transport.close()


def test_a_killed_host_leaves_no_process(sshd, tmp_path):
    (tmp_path / "hang").write_text("hang")
    script = tmp_path / "host.py"
    script.write_text(
        "import numpy as np\nfrom pathlib import Path\n"
        "from edgekit.devices import pack\nfrom edgekit.devices.execute import run_artifact\n"
        "from edgekit.devices.runnable import Runnable\n"
        "from edgekit.types import Device\n"
        f"pack.runner = lambda backend: Path({str(FAKE)!r})\n"
        f"board = Device(name='board', transport='ssh', address='device', options={dict(board(sshd).options)!r})\n"
        f"runnable = Runnable(backend='fake', main=Path({str(tmp_path / 'hang')!r}))\n"
        "run_artifact(runnable, [{'x': np.ones(3)}], device=board)\n"
    )
    host = subprocess.Popen([sys.executable, script], stderr=subprocess.DEVNULL)
    for _ in range(2000):
        if any("agent-" in line and "supervisor" not in line for line in sshd.processes()):
            break
        time.sleep(0.05)
    else:
        pytest.fail("the run did not start")
    host.kill()
    host.wait()
    assert sshd.settled() == ([], [])


def test_what_a_lost_session_left_goes_with_the_next_once_it_is_stale(sshd):
    lost = open_transport(board(sshd))
    sshd.drop_sessions()  # this host never comes back
    for _ in range(600):
        if not sshd.processes():
            break
        time.sleep(0.1)
    folders = sshd.left_over()
    assert len(folders) == 1
    open_transport(board(sshd)).close()
    assert sshd.left_over() == folders  # it might come back
    os.utime(sshd.tmp / folders[0] / ".edgekit", (0, 0))
    open_transport(board(sshd)).close()
    assert sshd.left_over() == []
    lost.close()


def test_a_session_that_hears_nothing_ends(sshd, monkeypatch, tmp_path):
    """A laptop that went to sleep: its connection stands, and says nothing."""
    monkeypatch.setattr(ssh, "_BEAT_S", 3600.0)
    (tmp_path / "connect.py").write_text((ssh._REMOTE / "connect.py").read_text().replace("= 45", "= 1"))
    for name in ("remove.py", "receive.py"):
        (tmp_path / name).write_text((ssh._REMOTE / name).read_text())
    monkeypatch.setattr(ssh, "_REMOTE", tmp_path)
    transport = open_transport(board(sshd))
    for _ in range(600):
        if not sshd.processes():
            break
        time.sleep(0.1)
    assert sshd.processes() == []
    assert len(sshd.left_over()) == 1  # it may wake up
    transport.reopen()
    transport.close()
    assert sshd.settled() == ([], [])


def test_folders_of_others_are_left_alone(sshd):
    names = {"edgekit-not-ours": None, "edgekit-fresh": '{"boot": "BOOT"}', "other": '{"boot": "old"}'}
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    for name, marker in names.items():
        (sshd.tmp / name).mkdir()
        if marker:
            (sshd.tmp / name / ".edgekit").write_text(marker.replace("BOOT", boot))
        os.chown(sshd.tmp / name, sshd.tmp.stat().st_uid, sshd.tmp.stat().st_gid)
    open_transport(board(sshd)).close()
    assert set(sshd.left_over()) == set(names)
