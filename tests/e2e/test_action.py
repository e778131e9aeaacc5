"""The GitHub Action's script as the action runs it: its inputs come as variables, and none of them is code."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.e2e]
pytest.importorskip("matplotlib")

MODEL = """
import torch

def net():
    torch.manual_seed(0)
    layers = torch.nn.Linear(6, {width}), torch.nn.ReLU(), torch.nn.Linear({width}, 3)
    return torch.nn.Sequential(*layers), torch.ones(1, 6)
"""


def _action(place: Path, /, **inputs: str) -> subprocess.CompletedProcess[str]:
    own = place / "bin"
    own.mkdir(exist_ok=True)
    program = own / "edgekit"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m edgekit "$@"\n')
    program.chmod(0o755)
    variables = {f"ACTION_{k.upper()}": v for k, v in inputs.items()}
    files = {"GITHUB_STEP_SUMMARY": str(place / "summary.md"), "GITHUB_OUTPUT": str(place / "outputs")}
    env = {**os.environ, "PATH": f"{own}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), **files, **variables}
    script = ["bash", str(ROOT / "tools" / "action.sh")]
    return subprocess.run(
        script, cwd=place, env=env, capture_output=True, text=True, check=False, timeout=300
    )


def test_a_build_its_report_and_an_older_build(tmp_path):
    (tmp_path / "model.py").write_text(MODEL.format(width=16))
    common = {"targets": "ort-fp32,tflite-fp32", "further": "--no-speed-gate\n--samples 7"}
    first = _action(tmp_path, source="model.py:net", folder="old", baseline="not-there", **common)
    assert first.returncode == 0, first.stderr
    assert (tmp_path / "old" / "report.html").is_file()
    assert "report=old/report.html" in (tmp_path / "outputs").read_text()
    assert not (tmp_path / "summary.md").exists()

    (tmp_path / "model.py").write_text(MODEL.format(width=64))
    second = _action(tmp_path, source="model.py:net", folder="new", baseline="old", regression="5%", **common)
    assert second.returncode == 5, second.stderr
    assert re.search(r"❌ \| ort-fp32 \| size", (tmp_path / "summary.md").read_text())
    suite = ElementTree.parse(tmp_path / "new" / "compare.xml").getroot()
    assert int(suite.attrib["failures"]) == 2
    shown = _action(tmp_path, source="model.py:net", folder="new", baseline="old", **common)
    assert shown.returncode == 0, shown.stderr


def test_a_build_that_fails_ends_with_its_code_and_nothing_is_executed(tmp_path):
    (tmp_path / "model.py").write_text(MODEL.format(width=8))
    evil = "$(touch pwned)`touch pwned`;touch pwned"
    failed = _action(
        tmp_path, source="model.py:net", targets=evil, folder="out", further=f"--title {evil}", baseline=""
    )
    assert failed.returncode == 2
    assert not (tmp_path / "pwned").exists()


def test_every_input_of_the_action_reaches_the_script():
    action, script = (ROOT / "action.yml").read_text(), (ROOT / "tools" / "action.sh").read_text()
    given = set(re.findall(r"(ACTION_[A-Z]+):", action))
    assert given == set(re.findall(r"ACTION_[A-Z]+", script))
    declared = set(re.findall(r"^  ([a-z-]+):$", action.partition("outputs:")[0], re.MULTILINE))
    assert declared == set(re.findall(r"\$\{\{ inputs\.([a-z-]+) \}\}", action))
    assert not re.search(r"run:.*\$\{\{", action)  # an input in a run line would be code
