"""The pages that a new user follows, run as they are: every file written, every command executed, what it must say
and the code that it must end with."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from docs_pages import Block, blocks

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
FIRST = DOCS / "quick-start.md"
PAGES = (FIRST, *sorted((DOCS / "tasks").glob("*.md")), DOCS / "extending.md", DOCS / "troubleshooting.md")

pytestmark = pytest.mark.e2e


def shell(text: str, folder: Path, home: Path) -> subprocess.CompletedProcess[str]:
    """A block as a terminal would run it: the first command that fails ends it."""
    programs = home / "bin"
    programs.mkdir(parents=True, exist_ok=True)
    (programs / "edgekit").write_text(f'#!/bin/sh\nexec "{sys.executable}" -P -m edgekit "$@"\n')
    (programs / "pip").write_text(f'#!/bin/sh\nexec "{sys.executable}" -P -m pip "$@"\n')
    for program in programs.iterdir():
        program.chmod(0o755)
    # Programs of the user's home are the page's alone; the speed gate is judged as a user meets it.
    env = {k: v for k, v in os.environ.items() if not k.startswith("XDG_") and k != "EDGEKIT_SPEED_GATE"} | {
        "HOME": str(home),
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "COLUMNS": "200",
    }
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        cwd=folder,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        check=False,
    )


def write(block: Block, folder: Path) -> None:
    path = folder / block.title
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(block.text, encoding="utf-8")


def said(output: str, expected: str, command: str) -> None:
    """Each line of ``expected`` is in the output, in this order."""
    rest = output
    for line in filter(None, expected.splitlines()):
        assert line in rest, f"{line!r} is not said after\n{command}\n--- said:\n{output}"
        rest = rest.partition(line)[2]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_every_block_of_the_page_runs(page, tmp_path):
    folder, home = tmp_path / "project", tmp_path / "home"
    folder.mkdir()
    for block in blocks(FIRST):
        if block.title:
            write(block, folder)
    command, output = "", ""
    for block in blocks(page):
        if block.title:
            write(block, folder)
        elif block.language == "sh" and not block.not_run:
            done = shell(block.text, folder, home)
            command, output = block.text, done.stdout
            assert done.returncode == block.exit_code, f"{command}\n--- said:\n{output}"
        elif block.language == "text":
            said(output, block.text, command)
        else:
            assert block.language == "sh", (
                f"a block of {block.language or 'nothing'} that nobody runs: {block.text}"
            )


def test_pages_show_more_than_they_leave_out():
    shown = [b for page in PAGES for b in blocks(page) if b.language == "sh"]
    assert sum(not b.not_run for b in shown) >= 20
    assert all(b.not_run or "ssh jetson" not in b.text for b in shown)
