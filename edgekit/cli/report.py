"""``edgekit report``."""

from __future__ import annotations

from pathlib import Path

import click

from edgekit.artifact.manifest import BUILT, Status
from edgekit.cli._options import json_flag
from edgekit.cli._output import print_json, say
from edgekit.errors import UsageError


@click.command()
@click.argument("folders", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--html",
    type=click.Path(path_type=Path),
    default=Path("report.html"),
    show_default=True,
    metavar="FILE",
    help="The file to write.",
)
@click.option("--title", default="", help="The heading; by default the sources.")
@click.option(
    "--board",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Write a page and JSON of the newest measurements in edgekit history, in place of a report.",
)
@json_flag
def report(folders: tuple[Path, ...], html: Path, title: str, board: Path | None, as_json: bool) -> None:
    """Write one page about the artifacts in FOLDERS: verdicts, sizes, times, and how to repeat each number.

    FOLDERS are artifacts, or folders of them (what edgekit build --out names). The page is one file without scripts; it
    opens offline, in light and dark, and prints. Nothing is measured: edgekit bench adds times.

    Example: edgekit report build --html report.html
    """
    if board is not None:
        _board(folders, board, as_json=as_json)
        return
    if not folders:
        raise UsageError(
            "there is nothing to report on", hint="name what edgekit build wrote: edgekit report build"
        )
    from edgekit.report import write

    written = write(folders, html, title=title)
    entries = written.entries
    if as_json:
        rows = [
            {
                "artifact": str(e.artifact.directory),
                "status": str(e.artifact.manifest.status),
                **({"changed": e.changed} if e.changed else {}),
            }
            for e in entries
        ]
        unread = [{"artifact": str(s.directory), "why": s.why} for s in written.skipped]
        print_json({"html": str(html), "artifacts": rows, "unread": unread})
        return
    for skipped in written.skipped:
        say(f"{skipped.directory} cannot be read: {skipped.why}", err=True)
    for entry in entries:
        if entry.changed:
            say(f"{entry.artifact.directory} does not count: {entry.changed}", err=True)
    good = [
        e.artifact.manifest.status for e in entries if e.artifact.manifest.status in BUILT and not e.changed
    ]
    unproven = good.count(Status.UNPROVEN)
    beside = f", {unproven} unproven" if unproven else ""
    say(f"{html}: {len(entries)} artifacts, {len(good) - unproven} of them passed{beside}")


def _board(folders: tuple[Path, ...], board: Path, *, as_json: bool) -> None:
    from edgekit.report.board import PAGE, write_board

    if folders:
        raise UsageError(
            "a board shows what edgekit history has, not folders", hint="leave the folders out, or --board"
        )
    rows = write_board(board)
    if as_json:
        print_json({"board": str(board / PAGE), "rows": rows})
    else:
        say(f"{board / PAGE}: {len(rows)} measurements")
