"""Devices by name: kinds, rows, and what they may be called."""

import contextlib
import json

import pytest
from click.testing import CliRunner

from edgekit.cli import cli
from edgekit.devices import catalogue, checkup
from edgekit.devices.catalogue import Row
from edgekit.devices.transports.connect import open_transport, ssh_options
from edgekit.devices.wire import DeviceFacts, DeviceReport, DeviceState
from edgekit.errors import ConfigError, UnknownNameError, UsageError
from edgekit.types import Device


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")


def test_every_kind_is_whole():
    kinds = catalogue.kinds()
    assert "linux-ssh" in kinds
    for kind in kinds.values():
        assert kind.transport in ("ssh", "adb")
        assert kind.title
        assert kind.why
        assert all((catalogue.data_dir() / "targets" / b).is_dir() for b in kind.backends)


def test_this_machine_is_always_there():
    assert dict(catalogue.devices()) == {"local": catalogue.LOCAL}


def test_a_row_inherits_from_its_kind():
    path = catalogue.write(Row(name="pi5", address="pi@10.0.0.5", kind="raspberry-pi-5", port=2222))
    assert path.name == "pi5.toml"
    device = catalogue.device("pi5")
    assert device == Device(
        name="pi5",
        transport="ssh",
        address="pi@10.0.0.5",
        arch="aarch64",
        os="linux",
        options={"kind": "raspberry-pi-5", "port": 2222, "cool_down_celsius": 55.0},
    )
    catalogue.write(Row(name="pi5", address="pi@10.0.0.6", kind="raspberry-pi-5", cool_down_celsius=40))
    assert catalogue.device("pi5").address == "pi@10.0.0.6"
    assert catalogue.device("pi5").options["cool_down_celsius"] == 40


def test_values_survive_writing_whatever_is_in_them():
    row = Row(name="b", address='a"b\\c\u00e9@h', python="/opt/my py/bin/python3", emulated=True)
    catalogue.write(row)
    device = catalogue.device("b")
    assert device.address == row.address
    assert device.options["python"] == row.python
    assert device.options["emulated"] is True


def test_a_projects_row_stands_in_for_none_of_the_users(tmp_path):
    mine = catalogue.write(Row(name="b", address="mine", config="/home/me/ssh_config"))
    folder = tmp_path / "project" / ".edgekit" / "devices"
    folder.mkdir(parents=True)
    (folder / "b.toml").write_text('name = "b"\naddress = "project"\n')
    (folder / "c.toml").write_text('name = "c"\naddress = "project"\ntrtexec = "device:/usr/bin/trtexec"\n')
    assert catalogue.device("b").address == "mine"
    assert catalogue.device("c").address == "project"
    assert catalogue.places() == {"b": mine, "c": folder / "c.toml"}


@pytest.mark.parametrize(
    "line", ['config = "ssh_config"', 'benchmark_model = "~/.ssh/id_ed25519"', 'trtexec = "x"']
)
def test_a_projects_row_names_no_program_of_this_machine(line, tmp_path):
    folder = tmp_path / "project" / ".edgekit" / "devices"
    folder.mkdir(parents=True)
    (folder / "c.toml").write_text(f'name = "c"\naddress = "project"\n{line}\n')
    with pytest.raises(ConfigError, match="names what a project may not"):
        catalogue.device("c")


@pytest.mark.parametrize("name", ["local", "-x", "../x", "a/b", "", "x" * 80, "a b"])
def test_names_that_are_none(name):
    with pytest.raises(UsageError):
        catalogue.check_name(name)


def test_mistakes_in_rows_are_named(tmp_path):
    folder = catalogue.folders()[0]
    folder.mkdir(parents=True)
    (folder / "b.toml").write_text('name = "b"\nadress = "x"\naddress = "y"\n')
    with pytest.raises(UnknownNameError, match="adress"):
        catalogue.device("b")
    (folder / "b.toml").write_text('name = "c"\naddress = "y"\n')
    with pytest.raises(ConfigError, match=r"c\.toml|names the device"):
        catalogue.device("c")
    (folder / "b.toml").write_text('name = "b"\naddress = "y"\nkind = "raspberry"\n')
    with pytest.raises(UnknownNameError, match="raspberry"):
        catalogue.device("b")
    (folder / "b.toml").write_text("name = \n")
    with pytest.raises(ConfigError):
        catalogue.device("b")


def test_unknown_devices_offer_the_nearest():
    catalogue.write(Row(name="jetson", address="x"))
    with pytest.raises(UnknownNameError) as caught:
        catalogue.device("jetsn")
    assert "jetson" in caught.value.hint
    assert [d.name for d in catalogue.select("jetson, local,jetson")] == ["jetson", "local"]
    with pytest.raises(UsageError):
        catalogue.select(" ,")


@pytest.mark.parametrize(
    ("address", "options", "host", "port"),
    [
        ("pi@board", {}, "pi@board", None),
        ("board:2200", {}, "board", 2200),
        ("board", {"port": 22}, "board", 22),
        ("fe80::1", {}, "fe80::1", None),  # an address of IPv6, no port
    ],
)
def test_addresses(address, options, host, port):
    found = ssh_options(Device(name="d", transport="ssh", address=address, options=options))
    assert (found.host, found.port) == (host, port)


def test_a_port_that_is_none():
    with pytest.raises(UsageError, match="port"):
        ssh_options(Device(name="d", transport="ssh", address="h:ssh"))


def test_an_unknown_transport():
    with pytest.raises(UnknownNameError, match="carrier-pigeon"):
        open_transport(Device(name="d", transport="carrier-pigeon"))


ODD = {
    "other-name": 'name = "b"\naddress = "x"\n',
    "unknown-key": 'name = "unknown-key"\nadress = "x"\n',
    "kind": 'name = "kind"\nkind = "toaster"\n',
    "broken": "name = \n",
    "nan": 'name = "nan"\ncool_down_celsius = nan\n',
    "infinite": 'name = "infinite"\ncool_down_celsius = inf\n',
    "frozen": 'name = "frozen"\ncool_down_celsius = -300\n',
    "port": 'name = "port"\nport = 99999\n',
    "no-port": 'name = "no-port"\nport = 0\n',
    "-x": 'name = "-x"\n',
}


@pytest.fixture
def odd():
    """A good row among files of which each is wrong in its own way."""
    catalogue.write(Row(name="good", address="x"))
    folder = catalogue.folders()[0]
    for name, text in ODD.items():
        (folder / f"{name}.toml").write_text(text)
    return folder


def test_an_odd_row_keeps_nobody_from_the_others(odd):
    assert list(catalogue.devices()) == ["local", "good"]
    assert list(catalogue.places()) == ["good"]
    assert [d.name for d in catalogue.select("good,local")] == ["good", "local"]
    assert {row.name for row in catalogue.unusable()} == set(ODD)
    assert all(str(row.path) in row.error.message for row in catalogue.unusable())


@pytest.mark.parametrize("name", [*ODD, "b"])
def test_an_odd_row_is_an_error_once_it_is_asked_for(name, odd):
    with pytest.raises(UsageError) as raised:
        catalogue.device(name)
    file = odd / f"{'other-name' if name == 'b' else name}.toml"
    assert raised.value.exit_code == 2
    assert str(file) in raised.value.message


def test_a_projects_row_does_not_stand_in_for_an_odd_one_of_the_users(odd, tmp_path):
    folder = tmp_path / "project" / ".edgekit" / "devices"
    folder.mkdir(parents=True)
    (folder / "port.toml").write_text('name = "port"\naddress = "of-somebody"\n')
    with pytest.raises(UsageError, match="99999"):
        catalogue.device("port")


def test_odd_rows_are_listed_with_their_reasons(odd):
    shown = CliRunner().invoke(cli, ["devices", "list"])
    assert shown.exit_code == 0, shown.output
    assert "good" in shown.stdout
    assert shown.stdout.count("unusable") == len(ODD)
    assert shown.stderr.count("unusable: ") == len(ODD)
    document = json.loads(CliRunner().invoke(cli, ["devices", "list", "--json"]).stdout)
    assert {row["device"] for row in document["unusable"]} == set(ODD)
    assert [d["name"] for d in document["devices"]] == ["local", "good"]


def test_a_port_in_an_address_that_is_none():
    with pytest.raises(UsageError, match="99999"):
        ssh_options(Device(name="d", transport="ssh", address="h:99999"))


@pytest.mark.parametrize(
    ("stated", "there", "fits"),
    [
        ({"arch": "aarch64"}, {"arch": "x86_64"}, False),
        ({"arch": "aarch64"}, {"arch": "arm64"}, True),
        ({"arch": "x86_64"}, {"arch": "AMD64"}, True),
        ({"arch": ""}, {"arch": "riscv64"}, True),
        ({"arch": "x86_64"}, {"arch": ""}, True),
        ({"os": "linux"}, {"os": "Linux 6.1"}, True),
        ({"os": "android"}, {"os": "Linux 6.1"}, False),
    ],
)
def test_a_check_finds_that_the_device_is_not_what_its_row_says(stated, there, fits, monkeypatch):
    report = DeviceReport(facts=DeviceFacts(**there), state=DeviceState())
    monkeypatch.setattr(checkup, "connect", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(checkup, "send_agent", lambda *_: None)
    monkeypatch.setattr(checkup, "report_device", lambda *_: report)
    monkeypatch.setattr(checkup, "check_runtime", lambda _, b, __: checkup.RuntimeCheck(backend=b))
    seen = checkup.check(Device(name="d", transport="ssh", address="h", **stated), ("onnxruntime",))
    assert (not seen.error) == fits
    (key,) = stated
    assert fits or f"{key} = {stated[key]!r}" in seen.error
