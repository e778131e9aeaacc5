"""What a Jetson says of its power and clocks, in the form of public logs."""

import os

import pytest

from edgekit.artifact.manifest import Manifest, Status
from edgekit.artifact.summary import verdict
from edgekit.devices.agent import state
from edgekit.types import Precision, SourceRecord, Target

LINES = {
    # JetPack 5, Orin
    "11-30-2026 12:00:00 RAM 3162/30536MB (lfb 5x4MB) SWAP 0/15268MB (cached 0MB) CPU [1%@729,off,off] EMC_FREQ 0% "
    "GR3D_FREQ 0%@[305,0] CV0@-256C CPU@49.5C Tboard@38C SOC2@45.656C tj@49.5C "
    "VDD_GPU_SOC 2403mW/2403mW VDD_CPU_CV 400mW/400mW VIN_SYS_5V0 2018mW/2018mW": {
        "VDD_GPU_SOC": 2403.0,
        "VDD_CPU_CV": 400.0,
        "VIN_SYS_5V0": 2018.0,
    },
    # JetPack 4, Nano: no units
    "RAM 1903/3956MB (lfb 2x4MB) IRAM 0/252kB(lfb 252kB) CPU [15%@102,7%@102] EMC_FREQ 2%@204 GR3D_FREQ 0%@76 "
    "APE 25 PLL@21.5C CPU@24.5C POM_5V_IN 1022/1066 POM_5V_GPU 0/12 POM_5V_CPU 122/140": {
        "POM_5V_IN": 1022.0,
        "POM_5V_GPU": 0.0,
        "POM_5V_CPU": 122.0,
    },
    "RAM 1903/3956MB SWAP 0/1978MB": {},
    "": {},
}


@pytest.mark.parametrize("line", LINES)
def test_rails_of_tegrastats(line):
    assert state.tegrastats(line) == LINES[line]


def tool(folder, name, text):
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_where_no_sensor_may_be_read_the_makers_tool_tells(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEKIT_SYS", str(tmp_path / "sys"))
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    tool(tmp_path, "tegrastats", "echo 'RAM 1/2MB VDD_IN 5000mW/4000mW'; exec sleep 60")
    assert state.rails() == {"VDD_IN": 5000.0}
    tool(tmp_path, "tegrastats", "exit 1")
    assert state.rails() == {}


def test_the_power_mode(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert state.power_mode() == ""
    tool(tmp_path, "nvpmodel", "echo 'NV Power Mode: MAXN_SUPER'; echo 2")
    assert state.power_mode() == "MAXN_SUPER"
    tool(tmp_path, "nvpmodel", "echo 'NVPM ERROR: no access' >&2; exit 1")
    assert state.power_mode() == ""


@pytest.mark.parametrize(
    ("cpu", "gpu", "found"),
    [((10, 10), (5, 5), "pinned"), ((1, 10), (5, 5), "free"), ((10, 10), (1, 5), "free"), (None, None, "")],
)
def test_pinned_clocks_are_those_that_cannot_change(tmp_path, monkeypatch, cpu, gpu, found):
    monkeypatch.setenv("EDGEKIT_SYS", str(tmp_path))
    for pair, place, low, high in (
        (cpu, "devices/system/cpu/cpu0/cpufreq", "scaling_min_freq", "scaling_max_freq"),
        (gpu, "class/devfreq/17000000.gpu", "min_freq", "max_freq"),
    ):
        if pair:
            (tmp_path / place).mkdir(parents=True)
            (tmp_path / place / low).write_text(f"{pair[0]}\n")
            (tmp_path / place / high).write_text(f"{pair[1]}\n")
    assert state.clocks() == found


@pytest.mark.parametrize(
    ("status", "details", "text"),
    [
        (Status.NOT_RUN, {"checked": "parsed by tensorrt_rtx 1.7: 9 layers"}, "checked, not run: parsed by"),
        (Status.NOT_RUN, {}, "not-run"),
        (Status.NOT_RUN, {"checked": 7}, "not-run"),
        (Status.PASSED, {"checked": "parsed"}, "passed"),
    ],
)
def test_what_was_checked_and_not_run_says_so(status, details, text):
    manifest = Manifest(
        edgekit="0",
        status=status,
        target=Target(name="t", backend="tensorrt", precision=Precision.FP32, runs_on="nvidia-gpu", file="m"),
        source=SourceRecord(text="m", kind="onnx", sha256="0"),
        details=details,
    )
    assert verdict(manifest).startswith(text)
