"""The versions that edgekit was tested with: one source, constraints.txt, and what counts as newer."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from pathlib import Path

import pytest

from edgekit.core import tested
from edgekit.core.doctor import Machine, judge, observe

ROOT = Path(__file__).parents[2]
BARE = Machine(python=(3, 11, 7), bits=64, arch="x86_64", packages={})


def of(machine: Machine) -> list[tuple[str, str]]:
    return [(f.level, f.detail) for f in judge(machine) if f.what == "tested versions"]


@pytest.mark.parametrize(
    ("installed", "pinned", "newer"),
    [
        ("2.13.0+cpu", "2.13.0", False),
        ("2.13.9", "2.13.0", False),
        ("2.14.0", "2.13.0", True),
        ("3.0", "2.13.0", True),
        ("2.9.1", "2.13.0", False),  # as numbers, not as texts
        ("2026.10.0", "2026.4.1", True),
        ("1!1.0", "2.0", True),
        ("2.14.0rc1", "2.13.0", True),
        ("unknown", "2.13.0", False),
    ],
)
def test_a_later_major_or_minor_version_is_newer(installed, pinned, newer):
    assert tested.newer(installed, pinned) is newer


def test_pins_are_read_by_normalized_name():
    text = "# a comment\nTensorFlow_CPU==2.21.0\nonnx>=1.2\nboolean.py==5.0  # why\n\n"
    assert tested.read(text) == {"tensorflow-cpu": "2.21.0", "boolean-py": "5.0"}


def test_the_tested_versions_are_those_of_the_constraints_and_the_wheel_carries_them():
    pins = re.findall(
        r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert len(pins) > 100
    assert tested.versions()["onnxruntime"] == dict(pins)["onnxruntime"]
    assert len(tested.versions()) == len(pins)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    carried = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert carried["constraints.txt"] == f"edgekit/_data/{tested.FILE}"


def test_each_package_that_is_newer_is_named_with_both_versions():
    machine = dataclasses.replace(
        BARE,
        packages={"tensorflow-cpu": "3.0.0", "onnxruntime": "1.32.0", "onnx": "1.23.9", "unpinned": "9.0"},
        tested={"tensorflow-cpu": "2.21.0", "onnxruntime": "1.31.1", "onnx": "1.23.2"},
    )
    found = of(machine)
    assert [level for level, _ in found] == ["warning", "warning"]
    assert "tensorflow-cpu 3.0.0 is newer than 2.21.0" in found[0][1]
    assert "onnxruntime 1.32.0 is newer than 1.31.1" in found[1][1]


def test_without_a_set_nothing_is_claimed():
    assert of(dataclasses.replace(BARE, packages={"onnxruntime": "99.0"})) == []


def test_this_machine_is_held_against_the_set():
    assert observe().tested == tested.versions()
