"""The command line in this process, without what it prints."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable

import click

from edgekit.cli import cli
from edgekit.errors import EdgekitError

CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""What moves a terminal's cursor; the output for people may quote a hostile file, and has none of it."""


def run(*argv: str) -> None:
    """One command; a number for an exit code is no error here, everything else that it raises is."""
    said = io.StringIO()
    quiet = contextlib.redirect_stdout(said), contextlib.redirect_stderr(said)
    with quiet[0], quiet[1], contextlib.suppress(click.exceptions.Exit, click.ClickException):
        cli.main(list(argv), standalone_mode=False)
    found = CONTROL.search(said.getvalue())
    assert found is None, f"{argv[0]} writes the control character {found and found[0]!r}"


def each(*calls: Callable[[], object]) -> None:
    """Call every one of them, whatever those before have raised of edgekit's own errors; then raise the first."""
    first: EdgekitError | None = None
    for call in calls:
        try:
            call()
        except EdgekitError as error:
            first = first or error
    if first is not None:
        raise first
