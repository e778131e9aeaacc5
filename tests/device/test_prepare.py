"""``edgekit devices prepare``: wheels for the device's own Python, installed apart from everything else there."""

import zipfile

import numpy as np
import pytest
from click.testing import CliRunner
from device_models import reference, write_tflite

from edgekit.cli import cli
from edgekit.devices import catalogue, prepare, wheels
from edgekit.devices.catalogue import Row
from edgekit.devices.checkup import check
from edgekit.devices.execute import run_artifact
from edgekit.devices.runnable import Runnable
from edgekit.errors import DeviceError, ToolMissingError, UsageError
from edgekit.types import Device

pytestmark = pytest.mark.device


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)


def keep(server, **fields):
    row = Row(name="board", address="device", config=str(server.config), python=server.python, **fields)
    catalogue.write(row)


def call(*arguments, code=0, text=None):
    result = CliRunner().invoke(cli, ["devices", "prepare", "board", *arguments], input=text)
    assert result.exit_code == code or (result.exception and code), (result.output, result.exception)
    return result


def write_wheel(folder, name, version, files):
    """A pure wheel by hand."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    about = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        for inner, text in files.items():
            archive.writestr(inner, text)
        archive.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{about}/RECORD", "")
    return wheels.read_wheel(path)


FAKE = {
    "onnxruntime/__init__.py": "__version__ = '9.9.9'\ndef get_available_providers(): return ['CPU']\n",
    "onnxruntime-9.9.9.data/scripts/tool": "never put anywhere",
    "onnxruntime-9.9.9.data/platlib/onnxruntime/more.py": "",
}


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """The index has one wheel: an ONNX Runtime 9.9.9 (the real look-up is tested below)."""
    made = {"onnxruntime": write_wheel(tmp_path, "onnxruntime", "9.9.9", FAKE)}

    def resolve(backend, python, folder):
        return wheels.Resolved(backend=backend, wheels=(made[backend],))

    monkeypatch.setattr(prepare, "resolve", resolve)
    return made


def version_there(name="board"):
    seen = check(catalogue.device(name), ("onnxruntime",))
    return seen.runtimes[0].versions.get("onnxruntime")


def home(server):
    return server.base / "home" / ".local/share/edgekit/runtimes"


def installed(server):
    return sorted(p.name for p in home(server).glob("cp*/*"))


def test_shown_asked_installed_found_and_taken_away(sshd, fake):
    keep(sshd)
    before = version_there()
    shown = call("-b", "onnxruntime", "--dry-run")
    assert "9.9.9" in shown.output
    assert installed(sshd) == []
    refused = call("-b", "onnxruntime", code=2)
    assert isinstance(refused.exception, UsageError)
    assert "--yes" in refused.exception.hint
    call("-b", "onnxruntime", text="n\n", code=1)
    assert installed(sshd) == []

    call("-b", "onnxruntime", text="y\n")
    assert installed(sshd) == ["onnxruntime"]
    assert version_there() == "9.9.9"
    (folder,) = home(sshd).glob("cp*/onnxruntime")
    assert (folder / "onnxruntime/more.py").exists()
    assert not list(folder.rglob("tool"))
    assert "there already" in call("-b", "onnxruntime", "--yes").output

    call("--remove")
    assert installed(sshd) == []
    assert version_there() == before
    assert sshd.settled() == ([], [])


def test_a_runtime_that_cannot_be_imported_is_taken_away_again(sshd, fake, tmp_path):
    keep(sshd)
    broken = {"onnxruntime/__init__.py": "raise ImportError('illegal instruction')"}
    (tmp_path / "b").mkdir()
    fake["onnxruntime"] = write_wheel(tmp_path / "b", "onnxruntime", "9.9.8", broken)
    result = call("-b", "onnxruntime", "--yes", code=7)
    assert isinstance(result.exception, DeviceError)
    assert "illegal instruction" in str(result.exception)
    assert installed(sshd) == []


def test_a_wheel_that_leaves_its_folder_is_refused(sshd, fake, tmp_path):
    keep(sshd)
    evil = {"../../../../evil.py": "x", **FAKE}
    (tmp_path / "e").mkdir()
    fake["onnxruntime"] = write_wheel(tmp_path / "e", "onnxruntime", "9.9.9", evil)
    result = call("-b", "onnxruntime", "--yes", code=7)
    assert "leaves its folder" in str(result.exception)
    assert installed(sshd) == []
    assert not list(sshd.base.rglob("evil.py"))


def test_a_disk_that_is_too_small(sshd, fake):
    from dataclasses import replace

    keep(sshd)
    fake["onnxruntime"] = replace(fake["onnxruntime"], unpacked=1 << 60)
    result = call("-b", "onnxruntime", "--yes", code=7)
    assert "MB free" in str(result.exception)
    assert "EDGEKIT_RUNTIMES" in result.exception.hint
    assert installed(sshd) == []


def test_this_machine_is_left_alone():
    result = CliRunner().invoke(cli, ["devices", "prepare", "local"])
    assert isinstance(result.exception, UsageError)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "said"),
    [("arm64", "ai-edge-litert"), ("armhf", "no wheel of numpy 1.24.2 fits; the device's own is used")],
)
def test_an_emulated_board_without_any_runtime(kind, said, tmp_path):
    """The real index, real wheels for Arm, the board's own interpreter; then an artifact runs on them."""
    from testbed.boards import KINDS, Board
    from testbed.sshd import MissingToolError

    try:
        board = Board(kind=KINDS[kind], environment={"PYTHONPATH": ""}).__enter__()
    except MissingToolError as error:
        pytest.skip(str(error))
    try:
        keep(board, kind="raspberry-pi-4")
        device = catalogue.device("board")
        bare = check(device, ("tflite",)).runtimes[0]
        assert "edgekit devices prepare board --backend tflite" in bare.hint
        result = CliRunner().invoke(cli, ["devices", "prepare", "board", "-b", "tflite", "--yes"])
        if isinstance(result.exception, ToolMissingError):
            pytest.skip(f"no package index: {result.exception}")
        assert said in result.output, result.exception
        x = np.random.default_rng(1).normal(size=(1, 3, 6, 6)).astype("f")
        model = write_tflite(tmp_path / "m.tflite")
        inputs = [{"x": x.transpose(0, 2, 3, 1)}]
        runnable = Runnable(backend="tflite", main=model, options={"threads": 1})
        with run_artifact(runnable, inputs, device=device) as result:
            np.testing.assert_allclose(next(iter(result.outputs))["y"], reference(x), rtol=1e-5)
        assert board.settled()[1] == []
    finally:
        board.__exit__()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("version", "machine", "backend", "expected"),
    [
        ((3, 9, 2), "aarch64", "tflite", {"ai_edge_litert", "numpy", "flatbuffers"}),
        ((3, 8, 10), "aarch64", "tflite", {"tflite_runtime", "numpy"}),
        ((3, 8, 10), "aarch64", "onnxruntime", {"onnxruntime", "numpy", "flatbuffers"}),
    ],
)
def test_old_boards_get_what_fits_them(version, machine, backend, expected, tmp_path):
    python = wheels.Interpreter(
        version=version, machine=machine, libc="glibc", libc_version=(2, 31), packages={}
    )
    try:
        found = wheels.resolve(backend, python, tmp_path)
    except ToolMissingError as error:
        pytest.skip(f"no package index: {error}")
    names = {w.path.name.split("-")[0] for w in found.wheels}
    assert expected <= names
    numpy = next(w for w in found.wheels if w.name == "numpy")
    assert int(numpy.version.split(".")[0]) < 2 or backend != "tflite" or version >= (3, 9, 0)
    assert all("x86_64" not in w.path.name for w in found.wheels)


def test_a_backend_that_no_index_has():
    python = wheels.Interpreter(
        version=(3, 11, 2), machine="aarch64", libc="glibc", libc_version=(2, 36), packages={}
    )
    with pytest.raises(UsageError, match="tensorrt"):
        wheels.resolve("tensorrt", python, None)


def test_the_defaults_follow_the_kind():
    device = Device(name="d", options={"kind": "jetson-orin-nano"})
    assert prepare.default_backends(device) == ("onnxruntime", "tflite")
    assert prepare.default_backends(Device(name="d")) == ("tflite", "onnxruntime")
