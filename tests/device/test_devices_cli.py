"""``edgekit devices`` against a real sshd."""

import json
import os

import pytest
from click.testing import CliRunner

from edgekit.cli import cli
from edgekit.devices import catalogue
from edgekit.devices.checkup import check
from edgekit.types import Device

pytestmark = pytest.mark.device


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)


def call(*arguments, code=0, text=None):
    result = CliRunner().invoke(cli, ["devices", *arguments], input=text)
    assert result.exit_code == code or (result.exception and code), result.output
    return result


def test_trust_add_list_check(sshd):
    known = sshd.known_hosts.read_text()
    sshd.known_hosts.write_text("")
    address = ("--ssh", "device", "--config", str(sshd.config), "--python", sshd.python)
    refused = call("add", "board", *address, code=1)
    assert "host key is not known" in str(refused.exception)
    catalogue.write(catalogue.Row(name="board", address="device", config=str(sshd.config)))
    shown = call("trust", "board", text="n\n", code=1)
    assert "SHA256:" in shown.output
    assert sshd.known_hosts.read_text() == ""
    call("trust", "board", text="y\n")
    assert known.split()[2] in sshd.known_hosts.read_text()
    call("trust", "board", "--yes")
    assert len(sshd.known_hosts.read_text().splitlines()) == 1
    assert oct(sshd.known_hosts.stat().st_mode & 0o777) in ("0o600", "0o644")

    call("add", "board", *address)
    device = catalogue.device("board")
    assert device.arch == os.uname().machine
    assert "board" in call("list").output
    document = json.loads(call("check", "board", "--json").stdout)
    (seen,) = document["devices"]
    assert {r["backend"] for r in seen["runtimes"]} >= {"onnxruntime", "tflite", "openvino"}
    assert next(r for r in seen["runtimes"] if r["backend"] == "onnxruntime")["problem"] == ""
    assert sshd.settled() == ([], [])


def test_a_device_that_is_away_is_a_finding_with_exit_7(sshd):
    catalogue.write(catalogue.Row(name="away", address="device", config=str(sshd.config)))
    sshd.stop()
    result = call("check", "away", code=7)
    assert result.exit_code == 7
    assert "nothing listens" in result.output


def test_unknown_kind_before_anything_is_reached():
    result = CliRunner().invoke(cli, ["devices", "add", "b", "--ssh", "no-such.invalid", "--kind", "pi"])
    assert "unknown kind of device" in str(result.exception)


def test_this_machine():
    seen = check(Device(name="local"))
    assert seen.usable
    rtx = next(r for r in seen.runtimes if r.backend == "tensorrt")
    assert rtx.problem
    assert rtx.hint
