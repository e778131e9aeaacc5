"""``edgekit compare``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgekit.cli._options import json_flag
from edgekit.cli._output import print_json, say, show_error, table
from edgekit.core import files
from edgekit.core.declared import parse_fraction
from edgekit.errors import EdgekitError, GateFailedError, SourceError, UsageError

if TYPE_CHECKING:
    from edgekit.report.collect import Entry, Skipped
    from edgekit.report.comparison import Figure

PREVIOUS = "@previous"


@click.command()
@click.argument("old")
@click.argument("new")
@click.option(
    "--fail-on-regression",
    "limit",
    default="",
    metavar="SHARE",
    help="End with 5 where a figure is surely worse by more than this (5%), or a verdict is.",
)
@click.option("--markdown", type=click.Path(path_type=Path), metavar="FILE", help="Write a Markdown table.")
@click.option("--junit", type=click.Path(path_type=Path), metavar="FILE", help="Write JUnit's XML.")
@json_flag
def compare(old: str, new: str, limit: str, markdown: Path | None, junit: Path | None, as_json: bool) -> None:
    """Hold the build NEW against the build OLD: verdicts, sizes, metrics, times, matched by target.

    OLD and NEW are artifacts, or folders of them; @12 is run 12 of edgekit history, and as OLD @previous is each
    target's newest run that made something else of the same source.

    Times of two runs are better or worse only where the whole interval of their ratio is beyond 5 %: machines
    drift. edgekit bench NEW --vs OLD takes them in turns and sees 1 %.

    Example: edgekit compare main/build build --fail-on-regression 5% --markdown table.md
    """
    from edgekit.report.comparison import compare as compared
    from edgekit.report.written import junit as as_junit
    from edgekit.report.written import markdown as as_markdown

    allowed = parse_fraction(limit, what="--fail-on-regression") if limit else 0.0
    after, unread = _side(new)
    before, more = (_previous(after), ()) if old == PREVIOUS else _side(old)
    figures = compared(before, after)
    unread = (*unread, *more)
    for path, text in ((markdown, as_markdown), (junit, as_junit)):
        if path is not None:
            written = text(figures, allowed)
            files.put(path, written.encode() if isinstance(written, str) else written)
    regressed = [f for f in figures if f.regressed(allowed)]
    if as_json:
        print_json({"figures": figures, "regressed": [f"{f.target}: {f.name}" for f in regressed]})
    else:
        _show(figures)
    error: EdgekitError | None = _failure(regressed) if limit and regressed else None
    if unread:  # what was not compared may be worse
        names = ", ".join(str(one.directory) for one in unread)
        error = SourceError(
            f"{names} cannot be read, and was not compared", hint="build it again, or name others"
        )
    if error is not None:
        show_error(error)
        raise click.exceptions.Exit(error.exit_code)


def _side(text: str) -> tuple[tuple[Entry, ...], tuple[Skipped, ...]]:
    """What OLD or NEW names: a run of the history, or folders; and what of it cannot be read."""
    from edgekit.report.collect import collect, remembered

    if text.startswith("@"):
        if re.fullmatch(r"[0-9]{1,18}", text[1:]) is None:
            raise UsageError(
                f"{text[:40]!r} is no run of the history",
                hint=f"@12 is run 12 (edgekit history lists them); as OLD {PREVIOUS} is what was before",
            )
        return (remembered(int(text[1:])),), ()
    entries, skipped = collect([Path(text)])
    for one in skipped:
        say(f"{one.directory} cannot be read: {one.why}", err=True)
    return entries, skipped


def _previous(after: Sequence[Entry]) -> tuple[Entry, ...]:
    """For each artifact the newest run of the history that made something else; those without are named."""
    from edgekit.artifact import history
    from edgekit.report.collect import remembered

    numbers = {e.name: history.before(e.artifact) for e in after}
    for name, number in numbers.items():
        if number is None:
            say(f"{name}: the history has no other artifact of this target and source", err=True)
    return tuple(remembered(n) for n in numbers.values() if n is not None)


def _show(figures: Sequence[Figure]) -> None:
    rows = [(f.target, f.name, f.old, f.new, str(f.change), f.why) for f in figures]
    table("", ("target", "figure", "old", "new", "change", ""), rows)


def _failure(regressed: Sequence[Figure]) -> GateFailedError:
    lines = "; ".join(f"{f.target}: {f.name} {f.old} → {f.new}" for f in regressed)
    return GateFailedError(
        f"{len(regressed)} figures are worse: {lines}",
        hint="edgekit diff OLD NEW finds the layer, edgekit bench NEW --vs OLD measures times in turns",
        gates=[f.name for f in regressed],
    )
