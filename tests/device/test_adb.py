"""The real adb client against a stand-in of adbd (tools/testbed/adbd.py): no phone was seen by these tests."""

import json
import os
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from edgekit.cli import cli
from edgekit.devices import catalogue
from edgekit.devices.bench import BenchSettings, bench_artifact
from edgekit.devices.checkup import check
from edgekit.devices.execute import run_artifact
from edgekit.devices.runnable import Runnable
from edgekit.devices.transports import adb, adb_client, android
from edgekit.devices.transports.adb import AdbOptions, AdbTransport
from edgekit.devices.transports.connect import connect
from edgekit.devices.transports.process import Patience
from edgekit.errors import DeviceError, LinkLostError, ToolMissingError, UnreachableError, UsageError
from edgekit.types import Device

pytestmark = pytest.mark.device

FAKE = Path(__file__).parents[1] / "unit" / "fake_runner.py"


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
def make_phone(server):
    from testbed.adbd import Adbd

    running = []

    def start(**settings):
        running.append(Adbd(**settings).__enter__())
        return running[-1]

    yield start
    for phone in running:
        phone.__exit__()


@pytest.fixture
def phone(make_phone):
    return make_phone()


def device(phone, server, **options):
    options = {"folder": str(phone.tmp), "server_port": server, "connect_s": 5, **options}
    return Device(name="phone", transport="adb", address=phone.serial, options=options)


def with_python(phone, server):
    return device(phone, server, python=sys.executable)


def settled(phone, seconds=10):
    end = time.monotonic() + seconds
    while time.monotonic() < end and (phone.processes() or phone.left_over()):
        time.sleep(0.1)
    return phone.processes(), phone.left_over()


def run(transport, argv, stdin=b""):
    lines = []
    done = transport.run(argv, stdin=stdin, on_line=lines.append, patience=Patience(whole=20))
    return done, lines


def test_words_streams_and_exit_codes_are_kept_apart(phone, server):
    words = ["a b", "$(touch /tmp/x)", "it's", '"', "*", ";", "-n", "é", "", "~", "back\\slash"]
    with connect(device(phone, server)) as transport:
        done, lines = run(transport, ["printf", "[%s]\\n", *words])
        assert lines == [f"[{w}]" for w in words]
        done, lines = run(transport, ["sh", "-c", "read -r x; echo got $x; echo oops >&2; exit 7"], b"line\n")
        assert (done.returncode, lines, done.stderr.strip()) == (7, ["got line"], "oops")
        big = "x" * 300_000
        done, lines = run(transport, ["sh", "-c", f"head -c {len(big)} /dev/zero | tr '\\0' x; echo"])
        assert lines == [big]
    assert settled(phone) == ([], [])


def test_files_go_there_and_back_checked(phone, server, tmp_path, monkeypatch):
    data = os.urandom(3_000_000)
    (tmp_path / "up").write_bytes(data)
    with connect(device(phone, server)) as transport:
        there = transport.put(tmp_path / "up", "folder/name with 'quotes' and $(id)")
        assert Path(str(there)).read_bytes() == data
        assert oct(Path(str(transport.root)).stat().st_mode & 0o777) == "0o700"
        transport.get("folder/name with 'quotes' and $(id)", tmp_path / "down", 1 << 30)
        assert (tmp_path / "down").read_bytes() == data
        with pytest.raises(DeviceError, match="reading absent failed"):
            transport.get("absent", tmp_path / "x", 1 << 30)
        assert not list(tmp_path.glob("x*"))
        for bad in ("../x", "/etc/x", "-rf", ""):
            with pytest.raises(UsageError):
                transport.put(tmp_path / "up", bad)
        monkeypatch.setattr(adb, "sha256_file", lambda path: "0" * 64)
        with pytest.raises(DeviceError, match="arrived damaged"):
            transport.put(tmp_path / "up", "corrupt")
        assert not list(Path(str(transport.root)).glob("corrupt*"))
    assert settled(phone) == ([], [])


def test_folders_of_others_are_left_alone_and_stale_ones_removed(phone, server):
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    markers = {
        "edgekit-unmarked": None,
        "edgekit-fresh": f"{boot} 999999999 edgekit\n",
        "other": "x 1 edgekit\n",
        "edgekit-of-last-boot": "x 1 edgekit\n",
        "edgekit-stale": f"{boot} 999999999 edgekit\n",
        "edgekit-held": f"{boot} {os.getpid()} edgekit\n",
    }
    for name, marker in markers.items():
        (phone.tmp / name).mkdir()
        if marker:
            (phone.tmp / name / ".edgekit").write_text(marker)
    for name in ("edgekit-stale", "edgekit-held"):
        os.utime(phone.tmp / name / ".edgekit", (0, 0))
    with connect(device(phone, server)):
        pass
    assert set(phone.left_over()) == {"edgekit-unmarked", "edgekit-fresh", "other", "edgekit-held"}


# --- what can be wrong --------------------------------------------------------------------------------


def test_no_adb(phone, server, monkeypatch):
    monkeypatch.setattr(adb_client.shutil, "which", lambda name: None)
    with pytest.raises(ToolMissingError, match="adb is not installed"):
        AdbTransport("phone", AdbOptions())


def test_a_phone_that_was_not_allowed(make_phone, server):
    phone = make_phone(authorized=False)
    with pytest.raises(UnreachableError, match=r"allowed this computer|not answer|asking its user") as caught:
        AdbTransport("phone", AdbOptions(serial=phone.serial, server_port=server))
    assert caught.value.exit_code == 7


def test_a_phone_that_is_not_there(server):
    with pytest.raises(UnreachableError, match="does not see R5CW31") as caught:
        AdbTransport("phone", AdbOptions(serial="R5CW31", server_port=server))
    assert "adb devices" in caught.value.hint


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("offline", "does not answer"),
        ("unauthorized", "allowed this computer"),
        ("no permissions", "USB device"),
    ],
)
def test_states_and_what_to_do(state, said, monkeypatch):
    seen = (adb_client.Seen(serial="A", state=state),)
    monkeypatch.setattr(adb_client.Adb, "devices", lambda self: seen)
    with pytest.raises(UnreachableError, match=said) as caught:
        adb_client.Adb().choose("phone", "")
    assert caught.value.hint


def test_several_phones_and_none_named(make_phone, server):
    for phone in (make_phone(), make_phone()):
        with connect(device(phone, server)):
            pass
    with pytest.raises(UsageError, match="several devices are connected") as caught:
        AdbTransport("phone", AdbOptions(server_port=server))
    assert "--adb" in caught.value.hint


def test_a_folder_that_cannot_be_made(phone, server):
    with pytest.raises(DeviceError, match="cannot make a folder in /proc"):
        AdbTransport("phone", AdbOptions(serial=phone.serial, server_port=server, folder="/proc"))


def test_a_program_that_is_missing_or_for_another_machine(phone, server, tmp_path):
    wrong = tmp_path / "wrong"
    wrong.write_bytes(b"\x7fELF\x02\x02\x01" + b"\0" * 9 + b"\0\x02\0\x08" + b"\0" * 200)
    with connect(device(phone, server)) as transport:
        with pytest.raises(DeviceError, match="has no nowhere"):
            run(transport, ["nowhere"])
        there = str(transport.put(wrong, "wrong"))
        run(transport, ["chmod", "700", there])
        with pytest.raises(DeviceError, match="cannot execute"):
            run(transport, [there])


def test_an_unplugged_phone(phone, server):
    transport = AdbTransport(
        "phone", AdbOptions(serial=phone.serial, server_port=server, folder=str(phone.tmp))
    )
    threading.Timer(0.5, phone.unplug).start()
    with pytest.raises(LinkLostError, match="broke"):
        run(transport, ["sleep", "20"])
    with pytest.raises(UnreachableError):
        transport.reopen()
    phone.plug()
    transport.reopen()
    assert run(transport, ["echo", "back"])[1] == ["back"]
    transport.close()
    assert settled(phone) == ([], [])


def test_a_restarted_phone(phone, server):
    transport = AdbTransport(
        "phone", AdbOptions(serial=phone.serial, server_port=server, folder=str(phone.tmp))
    )
    (Path(str(transport.root)) / ".edgekit").unlink()
    with pytest.raises(DeviceError, match="restarted"):
        transport.reopen()
    transport.close()


# --- the agent over adb, where there is a Python ------------------------------------------------------


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr("edgekit.devices.pack.runner", lambda backend: FAKE)


def test_an_artifact_runs_over_adb(fake, phone, server, tmp_path):
    (tmp_path / "m").write_text("")
    x = np.arange(3.0)
    where = with_python(phone, server)
    with run_artifact(Runnable(backend="fake", main=tmp_path / "m"), [{"x": x}], device=where) as result:
        assert len(list(result.outputs)) == 1
    assert settled(phone) == ([], [])


def test_a_run_goes_on_after_the_cable_was_out(fake, phone, server, tmp_path):
    (tmp_path / "m").write_text("")
    done = []

    def tell(n, _):
        done.append(n)
        if n == 2 and done.count(2) == 1:
            phone.unplug()
            threading.Timer(0.5, phone.plug).start()

    settings = BenchSettings(processes=5, seconds=0.3, iterations=3, warmup_s=0.05, on_progress=tell)
    variant = Runnable(backend="fake", main=tmp_path / "m", inputs={"x": np.ones(3)}, options={"threads": 1})
    found = bench_artifact(variant, device=with_python(phone, server), settings=settings)
    assert len(found.samples) == 5
    assert found.facts["resumes"] == 1
    assert settled(phone) == ([], [])


def test_no_python_is_said_with_what_can_be_done(fake, phone, server, tmp_path):
    (tmp_path / "m").write_text("")
    runnable = Runnable(backend="fake", main=tmp_path / "m")
    with pytest.raises(DeviceError, match="has no Python") as caught:
        run_artifact(runnable, [{"x": np.ones(3)}], device=device(phone, server))
    assert "benchmark_model" in caught.value.hint
    assert settled(phone) == ([], [])


# --- the command line ---------------------------------------------------------------------------------


def test_add_list_check(phone, server, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(server))
    monkeypatch.chdir(tmp_path)
    words = ["devices", "add", "pixel8", "--adb", phone.serial, "--folder", str(phone.tmp)]
    added = CliRunner().invoke(cli, words)
    assert added.exit_code == 0, (added.output, added.exception)
    assert "Google Pixel 8" in added.output
    row = catalogue.device("pixel8")
    assert (row.transport, row.address, row.options["kind"]) == ("adb", phone.serial, "pixel")
    assert row.os == "android"
    seen = json.loads(CliRunner().invoke(cli, ["devices", "check", "pixel8", "--json"]).stdout)["devices"][0]
    assert seen["state"]["battery"] == {"percent": 87, "status": "Charging"}
    assert seen["state"]["celsius"] == {"CPU0": 41.5, "skin": 33.2}
    both = CliRunner().invoke(cli, ["devices", "add", "x", "--adb", "a", "--ssh", "b"])
    assert isinstance(both.exception, UsageError)
    assert settled(phone) == ([], [])


def test_the_state_of_a_phone(make_phone, server):
    phone = make_phone(thermal="Thermal Status: 4\n")
    with connect(device(phone, server)) as transport:
        assert android.report_phone(transport).state.thermal_status == "critical"
    assert check(device(phone, server)).state.cooling
