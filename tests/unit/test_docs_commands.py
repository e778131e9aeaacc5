"""Commands in the documentation: there, with the options that they show."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import pytest

from edgekit.cli import cli
from edgekit.errors import EdgekitError

sys.path.insert(0, str(Path(__file__).parents[1]))
from docs_pages import blocks, commands

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").glob("*/README.md")],
    key=str,
)


def parsed(words: list[str]) -> None:
    """As the command line reads them; whether files are there is not asked."""
    # The names of --help are kept by each command once it has met a context.
    group, context = cli, click.Context(cli, info_name="edgekit", **cli.context_settings)
    command: click.Command = cli
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        group, (name, *words) = command, words
        found = group.get_command(context, name)
        if found is None:
            raise click.UsageError(f"there is no command {name}")
        command = found
    try:
        command.make_context(command.name, list(words), parent=context)
    except click.BadParameter as error:
        if "does not exist" not in error.format_message():
            raise


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_command_is_one(page):
    for words in commands(page):
        try:
            parsed(words)
        except click.exceptions.Exit:
            continue  # --help and --version
        except (click.UsageError, EdgekitError) as error:
            pytest.fail(f"edgekit {' '.join(words)}: {error}")


def test_options_that_are_not_there_are_found():
    with pytest.raises(click.NoSuchOption):
        parsed(["build", "x", "--tragets", "y"])
    with pytest.raises(click.UsageError, match="biuld"):
        parsed(["biuld"])


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_what_is_not_run_says_why(page):
    for block in blocks(page):
        if block.note.startswith("not run"):
            assert block.not_run
            assert len(block.note) > len("not run: ") + 10
