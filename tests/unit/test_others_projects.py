"""A folder that one stands in: what its files say writes nowhere else, and none of them holds a command up."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest

from edgekit.artifact import manifest, wire
from edgekit.artifact.golden import read as read_golden
from edgekit.cli._output import print_json, say
from edgekit.core import files, targets, toml
from edgekit.core.config import Options
from edgekit.devices.transports import hostkeys
from edgekit.devices.transports.adb_client import Adb
from edgekit.devices.transports.ssh import SshOptions
from edgekit.errors import ConfigError, SourceError, UnreachableError, UsageError
from edgekit.package import descriptor
from edgekit.pipeline.deliver import refuse_foreign

ROW = '[[target]]\nname = "{name}"\nbackend = "onnxruntime"\nprecision = "fp32"\nruns_on = "cpu"\nfile = "{file}"\n'


@pytest.mark.parametrize(
    ("name", "file"),
    [
        (".ssh", "m.onnx"),
        ("../../x", "m.onnx"),
        ("/tmp/x", "m.onnx"),
        ("a b", "m.onnx"),
        ("x" * 101, "m.onnx"),
        ("own", "../../m.onnx"),
        ("own", "/m.onnx"),
        ("own", ".hidden"),
    ],
)
def test_a_row_names_a_folder_and_a_file_and_no_way(tmp_path, name, file):
    path = tmp_path / "a.toml"
    path.write_text(ROW.format(name=name, file=file))
    with pytest.raises(ConfigError, match="no plain name"):
        targets.read_rows(path, "project")
    path.write_text(ROW.format(name="own-row_1.5", file="m.onnx"))
    assert targets.read_rows(path, "project")[0].file == "m.onnx"


@pytest.mark.parametrize("out", ["/etc", "../elsewhere", "a/../../b", "~/x/../.."])
def test_a_projects_file_names_no_place_outside_of_the_project(tmp_path, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    Path("edgekit.toml").write_text(f'out = "{out}"\n')
    if out.startswith("~"):  # a folder of that name: nothing expands it
        assert Options.load().out == Path(out)
        return
    with pytest.raises(ConfigError, match="outside of the project"):
        Options.load()
    Path("edgekit.toml").write_text('out = "built/here"\n')
    assert Options.load().out == Path("built/here")
    assert Options.load({"out": Path("/elsewhere")}).out == Path("/elsewhere")  # what the user types


def test_a_name_that_no_file_can_have(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("edgekit.toml").write_text('out = "a\\u0000b"\n')
    with pytest.raises(ConfigError, match="out"):
        Options.load()


def test_what_is_no_artifact_is_left_as_it_is(tmp_path):
    folder = tmp_path / "tflite-int8"
    refuse_foreign(folder)
    folder.mkdir()
    refuse_foreign(folder)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="is no artifact"):
        refuse_foreign(folder)
    (folder / "manifest.json").write_text("{}")
    refuse_foreign(folder)
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(UsageError, match="is no artifact"):
        refuse_foreign(tmp_path / "link")


def test_a_pipe_a_device_and_a_flood_in_place_of_toml(tmp_path):
    pipe, device, large = tmp_path / "pipe.toml", tmp_path / "device.toml", tmp_path / "large.toml"
    os.mkfifo(pipe)
    device.symlink_to("/dev/zero")
    with large.open("wb") as file:
        file.truncate(1 << 30)
    for path, why in ((pipe, "no file"), (device, "no file"), (large, "more than")):
        with pytest.raises(ConfigError, match=why):
            toml.read(path)


def test_an_error_of_the_system_about_a_name_is_no_defect():
    for number in (errno.ENAMETOOLONG, errno.ELOOP, errno.EACCES, errno.EIO):
        error = files.refused_by_system(OSError(number, os.strerror(number), "n" * 5000))
        assert isinstance(error, UsageError)
        assert os.strerror(number) in error.message
        assert len(error.message) < 300
    assert files.refused_by_system(OSError(errno.EPIPE, "of no name")) is None


def test_a_name_that_is_no_text():
    with pytest.raises(UnicodeEncodeError) as caught:
        "folder/\udcff".encode()
    error = files.refused_by_system(caught.value)
    assert isinstance(error, UsageError)
    assert "no UTF-8" in error.message
    with pytest.raises(UnicodeEncodeError) as defect:
        "\ud800".encode()
    assert files.refused_by_system(defect.value) is None


def test_a_manifest_with_two_members_of_one_name():
    with pytest.raises(SourceError, match="'status' twice"):
        wire.decode(b'{"schema": 1, "status": "failed", "status": "passed"}', "manifest.json")


def test_gigabytes_in_place_of_a_manifest_or_a_descriptor(tmp_path):
    path = tmp_path / "manifest.json"
    path.touch()
    os.truncate(path, 5 << 30)
    for read in (manifest.read, descriptor.read):
        with pytest.raises(SourceError, match="more than"):
            read(path)


@pytest.mark.parametrize("number", ["1" + "0" * 400, "9223372036854775808", "-9223372036854775809"])
def test_a_manifest_with_numbers_beyond_all_bounds(number):
    with pytest.raises(SourceError, match="digits"):
        wire.decode(f'{{"schema": 1, "files": [{{"size": {number}}}]}}'.encode(), "manifest.json")


@pytest.mark.parametrize("place", ["", ".", "folder", "file/below.html"])
def test_a_place_that_is_no_file(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("file").write_text("mine")
    with pytest.raises(UsageError):
        files.put(Path(place), b"x")
    assert Path("file").read_text() == "mine"
    files.put(Path("new/folder/x"), b"x")
    assert Path("new/folder/x").read_bytes() == b"x"


def test_links_pipes_and_devices_are_written_into_and_stay(tmp_path):
    victim, link, pipe, full = (tmp_path / n for n in ("victim", "link", "pipe", "full"))
    victim.write_text("longer than what comes")
    link.symlink_to(victim)
    files.put(link, b"new")
    assert link.is_symlink()
    assert victim.read_bytes() == b"new"
    os.mkfifo(pipe)
    with pytest.raises(UsageError):  # nobody reads
        files.put(pipe, b"x")
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    files.put(pipe, b"through")
    assert os.read(reader, 100) == b"through"
    os.close(reader)
    full.symlink_to("/dev/full")
    with pytest.raises(UsageError, match="No space left"):
        files.put(full, b"x")
    assert full.is_symlink()
    assert not Path("/dev/full").is_file()


def test_what_safetensors_makes_of_a_full_disk():
    class SafetensorError(Exception):
        pass

    with pytest.raises(OSError, match="File too large") as caught, files.system_errors():
        raise SafetensorError("Error while serializing: I/O error: File too large (os error 27)")
    assert files.disk_is_full(caught.value)
    with pytest.raises(SafetensorError), files.system_errors():
        raise SafetensorError("a header that is none")


@pytest.mark.parametrize("index", ["٣", "-1", "1_0", " 1", "1234567"])
def test_a_golden_vectors_number_is_one(tmp_path, index):
    path = tmp_path / "golden.npz"
    row = np.ones(3, np.float32)
    np.savez(path, **{f"input/{index}/x": row, f"output/{index}/y": row})
    with pytest.raises(SourceError, match="is no vector's"):
        read_golden(path)


def test_what_is_said_moves_no_cursor(capsys):
    say("a \x1b[31mname\x1b[0m of \x1b]0;x\x07\x1b[2J\u202e tensors\nnext")
    out = capsys.readouterr().out
    assert "\x1b]" not in out
    assert "\x1b[2J" not in out
    assert "\u202e" not in out
    assert out.endswith("next\n")


def test_json_moves_no_cursor_and_says_the_same(capsys):
    names = ["\x7f", "\x9b2J", "\u202e", "é", "\U000e0041", '"', "\n"]
    print_json({"names": names})
    out = capsys.readouterr().out
    assert json.loads(out) == {"names": names}
    assert all(c.isprintable() or c == "\n" for c in out)
    assert "é" in out


def _program(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


def test_an_adb_that_does_not_stop_talking(tmp_path, monkeypatch):
    _program(tmp_path, "adb", "while :; do printf '%0100000d' 1; done")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(UnreachableError, match="does not stop talking"):
        Adb().call("devices")
    _program(tmp_path, "adb", "exec sleep 60")
    with pytest.raises(UnreachableError, match="did not answer"):
        Adb().call("devices", timeout=0.2)
    _program(tmp_path, "adb", "echo out; echo err >&2; exit 3")
    done = Adb().call("devices")
    assert (done.returncode, done.stdout, done.stderr) == (3, "out\n", "err\n")


def test_an_address_that_ssh_refuses(tmp_path, monkeypatch):
    _program(tmp_path, "ssh", "echo 'hostname contains invalid characters' >&2; exit 255")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(UnreachableError, match="invalid characters"):
        hostkeys.resolve(SshOptions(host="u@h`x`"))
