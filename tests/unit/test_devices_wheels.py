"""Which wheels fit a device's Python, and how their dependencies are read for it."""

import zipfile

import pytest

from edgekit.devices import wheels
from edgekit.devices.wheels import Interpreter, resolve
from edgekit.errors import DeviceError, ToolMissingError


def python(version=(3, 9, 2), machine="aarch64", libc="glibc", libc_version=(2, 31), packages=None):
    return Interpreter(
        version=version, machine=machine, libc=libc, libc_version=libc_version, packages=packages or {}
    )


def test_platform_tags():
    tags = python().platforms()
    assert tags[0] == "manylinux_2_31_aarch64"
    assert "manylinux2014_aarch64" in tags
    assert "manylinux_2_32_aarch64" not in tags
    assert "manylinux_2_16_aarch64" not in tags
    assert "manylinux1_x86_64" in python(machine="x86_64").platforms()
    assert python(libc="musl", libc_version=(1, 2)).platforms() == (
        "musllinux_1_2_aarch64",
        "musllinux_1_1_aarch64",
        "musllinux_1_0_aarch64",
    )


@pytest.fixture
def index(tmp_path, monkeypatch):
    """An index in a dictionary: requirement → (name, version, Requires-Dist). Also what was asked."""
    files, asked = {}, []

    def download(self, requirement):
        asked.append(requirement)
        if requirement not in files:
            return None
        name, version, needs = files[requirement]
        path = tmp_path / f"{name}-{version}-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as archive:
            lines = [f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {n}" for n in needs)]
            archive.writestr(f"{name}-{version}.dist-info/METADATA", "\n".join(lines) + "\n")
        return wheels.read_wheel(path)

    monkeypatch.setattr(wheels._Resolver, "_download", download)
    monkeypatch.setattr(wheels, "_installed", lambda name: {"onnxruntime": "1.31.1"}.get(name))
    return files, asked


def test_markers_are_the_devices_not_ours(index, tmp_path):
    files, asked = index
    files["onnxruntime"] = (
        "onnxruntime",
        "1.19.2",
        [
            "numpy>=1.21",
            'importlib-metadata; python_version<"3.10"',
            'pywin32; sys_platform=="win32"',
            "x; extra=='t'",
        ],
    )
    files["numpy>=1.21"] = ("numpy", "1.26.4", [])
    files["importlib-metadata"] = ("importlib-metadata", "8.0", ["zipp"])
    files["zipp"] = ("zipp", "3.0", [])
    found = resolve("onnxruntime", python(), tmp_path)
    assert [w.name for w in found.wheels] == ["onnxruntime", "numpy", "importlib-metadata", "zipp"]
    assert asked[:2] == ["onnxruntime==1.31.1", "onnxruntime"]  # ours first, then what there is


def test_the_next_best_package_and_its_limits(index, tmp_path):
    files, asked = index
    files["tflite-runtime"] = ("tflite-runtime", "2.13.0", ["numpy>=1.20"])
    files["numpy<2"] = ("numpy", "1.26.4", [])
    found = resolve("tflite", python(), tmp_path)
    assert [w.name for w in found.wheels] == ["tflite-runtime", "numpy"]
    assert "numpy>=1.20" not in asked


def test_the_devices_own_package_where_there_is_no_wheel(index, tmp_path):
    files, _ = index
    files["tflite-runtime"] = ("tflite-runtime", "2.13.0", [])
    found = resolve("tflite", python(machine="armv7l", packages={"numpy": "1.24.2"}), tmp_path)
    assert [w.name for w in found.wheels] == ["tflite-runtime"]
    assert found.own == ("numpy 1.24.2",)
    with pytest.raises(DeviceError, match="no wheel for numpy<2") as caught:
        resolve("tflite", python(machine="armv7l", packages={"numpy": "2.1.0"}), tmp_path)
    assert "piwheels" in caught.value.hint


def test_pip_that_is_missing_or_cannot_reach_its_index(tmp_path, monkeypatch):
    import subprocess

    def says(text):
        done = subprocess.CompletedProcess([], 1, "", text)
        monkeypatch.setattr(wheels, "_pip", lambda argv: done)

    says("/usr/bin/python3: No module named pip")
    with pytest.raises(ToolMissingError, match="pip is not installed"):
        resolve("openvino", python(), tmp_path)
    says("ERROR: Could not connect")
    with pytest.raises(ToolMissingError, match="Could not connect"):
        resolve("openvino", python(), tmp_path)
    says("ERROR: No matching distribution found for openvino")
    with pytest.raises(DeviceError, match=r"Python 3\.9\.2 on aarch64 with glibc 2\.31"):
        resolve("openvino", python(), tmp_path)
