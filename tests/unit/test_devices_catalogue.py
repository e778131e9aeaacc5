"""Devices by name: kinds, rows, and what they may be called."""

import pytest

from edgekit.devices import catalogue
from edgekit.devices.catalogue import Row
from edgekit.devices.transports.connect import open_transport, ssh_options
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
        catalogue.devices()
    (folder / "b.toml").write_text('name = "c"\naddress = "y"\n')
    with pytest.raises(ConfigError, match=r"c\.toml|names the device"):
        catalogue.devices()
    (folder / "b.toml").write_text('name = "b"\naddress = "y"\nkind = "raspberry"\n')
    with pytest.raises(UnknownNameError, match="raspberry"):
        catalogue.devices()
    (folder / "b.toml").write_text("name = \n")
    with pytest.raises(ConfigError):
        catalogue.devices()


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
