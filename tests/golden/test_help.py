"""The help pages, word for word: the command line is a contract. ``EDGEKIT_UPDATE_GOLDEN=1`` rewrites them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgekit.cli import COMMANDS, cli

PAGES = Path(__file__).parent / "help"


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_page(command):
    result = CliRunner().invoke(
        cli, [*([command] if command else []), "--help"], terminal_width=100, prog_name="edgekit"
    )
    assert result.exit_code == 0, result.output
    page = PAGES / f"{command or 'edgekit'}.txt"
    if os.environ.get("EDGEKIT_UPDATE_GOLDEN"):
        page.parent.mkdir(exist_ok=True)
        page.write_text(result.output)
    assert result.output == page.read_text()


def test_there_is_no_page_without_a_command():
    assert {p.stem for p in PAGES.glob("*.txt")} == {"edgekit", *COMMANDS}
