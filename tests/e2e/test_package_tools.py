"""The set-up of the package tools on a machine that lets it do nothing: reasons, and skips that quote them."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import package_tools as tools
import pytest

SCRIPT = Path(__file__).parents[2] / "tools" / "package_tools.sh"
PROGRAMS = [
    "bash",
    "cat",
    "cmp",
    "cp",
    "cut",
    "env",
    "flock",
    "grep",
    "id",
    "mkdir",
    "mktemp",
    "python3",
    "rm",
    "tail",
    "timeout",
]


@pytest.fixture
def machine(tmp_path: Path) -> dict[str, str]:
    """No package manager, no npm, no index."""
    (tmp_path / "bin").mkdir()
    for program in PROGRAMS:
        found = shutil.which(program)
        if found is None:
            pytest.skip(f"{program} is missing")
        (tmp_path / "bin" / program).symlink_to(found)
    nowhere = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_CONFIG_FILE": os.devnull}
    return {
        "PATH": str(tmp_path / "bin"),
        "HOME": str(tmp_path),
        "EDGEKIT_PACKAGE_TOOLS": str(tmp_path / "tools"),
    } | nowhere


def setup(machine: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [shutil.which("bash") or "bash", SCRIPT, *arguments]
    return subprocess.run(command, env=machine, capture_output=True, text=True, timeout=300, check=False)


def test_what_cannot_be_installed_is_said_and_breaks_nothing(
    machine: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = setup(machine, "--optional")
    assert done.returncode == 0, done.stderr
    why = {p.name: p.read_text() for p in (tmp_path / "tools" / "why").iterdir()}
    assert set(why) == {"apt", "npm", "transformers", "react_native", "mediapipe", "jvm"}
    assert why["apt"].startswith("no apt-get; install by hand:")
    assert "npm is not installed" in why["npm"]
    for name, reason in why.items():
        assert f"package tools: {name}: {reason.strip()}" in done.stderr
    monkeypatch.setattr(tools, "ROOT", tmp_path / "tools")
    with pytest.raises(pytest.skip.Exception, match="npm: npm is not installed"):
        tools.need(tmp_path / "tools" / "npm" / "node_modules")
    with pytest.raises(pytest.skip.Exception, match="apt: no apt-get"):
        tools.need("a-program-that-nobody-has")


def test_asked_for_by_name_it_fails(machine: dict[str, str]) -> None:
    assert setup(machine, "--part", "npm").returncode == 1
    assert setup(machine, "--wrong").returncode == 2


def test_it_can_be_told_to_leave_the_machine_alone(machine: dict[str, str], tmp_path: Path) -> None:
    done = setup(machine | {"EDGEKIT_PACKAGE_TOOLS": "none"}, "--optional")
    assert (done.returncode, done.stderr) == (0, "")
    assert not (tmp_path / "tools").exists()


def test_a_folder_that_cannot_be_written_breaks_nothing(machine: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    blocked = machine | {"EDGEKIT_PACKAGE_TOOLS": str(tmp_path / "file" / "tools")}
    done = setup(blocked, "--optional")
    assert done.returncode == 0
    assert "cannot write" in done.stderr
    assert setup(blocked).returncode == 1
