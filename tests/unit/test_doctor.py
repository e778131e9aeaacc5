"""The doctor's judgement, from made-up machines: each known-bad combination is found, and good ones are not."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from edgekit.core.doctor import CHECKS, TOOLS, Finding, Level, Machine, diagnose, judge
from edgekit.types import Availability

GOOD = Machine(
    python=(3, 11, 7),
    bits=64,
    arch="x86_64",
    packages={"torch": "2.13.0+cpu", "numpy": "2.4.6", "onnxruntime": "1.31.1", "ai-edge-litert": "2.3.0"},
    tested={
        "torch": "2.13.0",
        "onnxruntime": "1.31.1",
        "onnxruntime-gpu": "1.31.1",
        "ai-edge-litert": "2.3.0",
    },
    cpu="Some CPU",
    cpu_flags=frozenset({"avx2", "avx512_vnni"}),
    gpu_driver="NVRM version: 590.1",
    cache=Path("/cache"),
    free_bytes=100 * 1024**3,
    tools=dict.fromkeys(TOOLS, "/usr/bin/tool"),
    environ={"ORT_DISABLE_TELEMETRY": "1"},
    backends={"onnxruntime": Availability(installed=True, usable=True, version="1.31.1")},
)


def worst(findings: tuple[Finding, ...], what: str) -> Finding:
    order = [Level.OK, Level.INFO, Level.WARNING, Level.ERROR]
    return max((f for f in findings if f.what == what), key=lambda f: order.index(f.level))


def test_nothing_is_found_on_a_good_machine():
    assert {f.level for f in judge(GOOD)} == {Level.OK}


BAD = [
    ("Python", Level.ERROR, {"python": (3, 10, 1)}, "3.11"),
    ("Python", Level.ERROR, {"bits": 32}, "64-bit"),
    ("PyTorch", Level.ERROR, {"packages": {}}, "install torch"),
    (
        "torchvision",
        Level.ERROR,
        {"torchvision_needs_cuda": True, "packages": GOOD.packages | {"torchvision": "0.28.0"}},
        "uninstall torchvision",
    ),
    (
        "requirements",
        Level.WARNING,
        {"conflicts": ("onnx needs protobuf>=6, found 5.29",)},
        "constraints.txt",
    ),
    (
        "onnxruntime",
        Level.ERROR,
        {"packages": GOOD.packages | {"onnxruntime-gpu": "1.31.1"}},
        "pip uninstall onnxruntime onnxruntime-gpu",
    ),
    ("onnxruntime", Level.INFO, {"environ": {}}, "ORT_DISABLE_TELEMETRY=1"),
    ("openvino", Level.INFO, {"packages": GOOD.packages | {"openvino-telemetry": "2025.2"}}, "uninstall"),
    (
        "tflite-runtime",
        Level.ERROR,
        {"packages": GOOD.packages | {"tflite-runtime": "2.14.0"}},
        "numpy < 2",
    ),
    (
        "tensorflow",
        Level.ERROR,
        {"packages": GOOD.packages | {"tensorflow": "2.21", "tensorflow-cpu": "2.21"}},
        "uninstall tensorflow",
    ),
    ("CPU", Level.WARNING, {"cpu_flags": frozenset({"avx2"})}, "measure accuracy"),
    ("CPU", Level.WARNING, {"arch": "aarch64", "cpu_flags": frozenset({"asimd"})}, "measure"),
    (
        "tested versions",
        Level.WARNING,
        {"packages": GOOD.packages | {"ai-edge-litert": "2.4.0"}},
        "pip install ai-edge-litert==2.3.0",
    ),
    ("cache", Level.WARNING, {"free_bytes": 1024**3}, "EDGEKIT_CACHE"),
    ("cache", Level.ERROR, {"cache_writable": False}, "EDGEKIT_CACHE"),
    ("NVIDIA GPU", Level.INFO, {"gpu_driver": ""}, "verify"),
    ("adb", Level.INFO, {"tools": {"adb": ""}}, "Android"),
]


@pytest.mark.parametrize(("what", "level", "change", "hint"), BAD)
def test_each_known_bad_combination_is_found_and_says_what_to_do(what, level, change, hint):
    finding = worst(judge(dataclasses.replace(GOOD, **change)), what)
    assert finding.level == level
    assert hint in finding.hint


def test_torchvision_beside_cuda_torch_is_fine():
    machine = dataclasses.replace(GOOD, torchvision_needs_cuda=True, torch_cuda="13.0")
    assert all(f.what != "torchvision" for f in judge(machine))


def test_tflite_runtime_with_old_numpy_is_fine():
    packages = GOOD.packages | {"tflite-runtime": "2.14.0", "numpy": "1.26.4"}
    assert all(f.what != "tflite-runtime" for f in judge(dataclasses.replace(GOOD, packages=packages)))


def test_a_backend_that_is_missing_names_its_install_command():
    missing = Availability(installed=False, usable=False, why_not="not installed", hint="pip install x")
    finding = worst(judge(dataclasses.replace(GOOD, backends={"tflite": missing})), "tflite")
    assert (finding.level, finding.hint) == (Level.WARNING, "pip install x")


def test_a_problem_always_says_what_to_do():
    machines = [dataclasses.replace(GOOD, **change) for _, _, change, _ in BAD]
    for finding in (f for machine in machines for f in judge(machine)):
        assert finding.hint or finding.level in (Level.OK, Level.INFO), finding


def test_this_machine_can_be_looked_at():
    findings = diagnose()
    assert {f.what for f in findings} >= {"Python", "PyTorch", "CPU", "cache", "onnxruntime"}
    assert len(CHECKS) == len({check.__name__ for check in CHECKS})
