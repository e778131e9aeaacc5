"""What every command shares: consoles, one JSON document on stdout, errors, progress bars, tables."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import click
import msgspec

from edgekit.artifact.summary import printable
from edgekit.cli import _tables
from edgekit.cli._lines import Lines
from edgekit.core.progress import Event, EventKind, Reporter, watching
from edgekit.core.structure import to_builtins
from edgekit.errors import EdgekitError, FactoryError, MetricError, told_once

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

    from edgekit.artifact.summary import Table


_UNUSUAL = re.compile(r"[^ -~\n]")
_COLOUR = re.compile("(\x1b\\[(?:[0-2]|3[0-7])m)")
"""What :func:`paint` writes for the colours and weights that edgekit uses."""
_MANY_ROWS = 5_000
_WIDEST = 60


def stderr() -> Console:
    """The console for everything that is not the result."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


_printed = False


def has_printed() -> bool:
    """Whether this process has printed its document: there is one, and an interrupt after it adds none."""
    return _printed


def print_json(document: object) -> None:
    """One JSON document on stdout, in which nothing moves a cursor: JSON leaves some such characters as they are."""
    global _printed
    text = msgspec.json.format(msgspec.json.encode(to_builtins(document)), indent=2).decode()
    _printed = True
    click.echo(_UNUSUAL.sub(lambda m: m[0] if m[0].isprintable() else json.dumps(m[0])[1:-1], text))


def show_error(error: EdgekitError, *, as_json: bool = False) -> None:
    """The message, what to do, and for the user's own code its traceback. Never edgekit's."""
    if as_json:
        print_json({"error": error.to_json()})
    if trace := _traceback(error):
        click.echo(harmless(trace.rstrip()), err=True)
    labelled("error:", error.message, fg="red", bold=True, err=True)
    for note in getattr(error, "__notes__", ()):
        say(f"  {note}", err=True, indent="    ")
    labelled("hint:", error.hint, fg="cyan", bold=True, err=True)


def _traceback(error: BaseException | None) -> str:
    """The user's own traceback: of ``error``, or of the one that it was made of (memory that ran out in a factory)."""
    while error is not None:
        if isinstance(error, FactoryError | MetricError) and error.user_traceback:
            return error.user_traceback
        error = error.__cause__
    return ""


def labelled(label: str, text: str, *, fg: str, bold: bool = False, err: bool = False) -> None:
    """A message behind a coloured word; it goes on in further lines between its words."""
    lines = _fitted(f"{label} {text}", indent=" " * (len(label) + 1), err=err)
    click.echo(paint(label, fg=fg, bold=bold) + lines.removeprefix(label), err=err)


def say(text: str, *, err: bool = False, indent: str = "") -> None:
    """A line for people, on stdout or stderr, whatever names it quotes: nothing but colours changes the terminal.

    Where it is longer than the terminal is wide it goes on in the next, behind ``indent``; no word is broken.
    """
    parts = _COLOUR.split(text)
    shown = "".join(p if _COLOUR.fullmatch(p) else harmless(p) for p in parts)
    click.echo(_wrapped(shown, indent=indent, err=err), err=err)


def listing(label: str, items: Sequence[str]) -> None:
    """Items behind a label, as many in a line as the terminal has room for; none is broken."""
    room, indent = _tables.width(), " " * (len(label) + 2)
    lines = [f"{label}  "]
    for number, item in enumerate(map(printable, items)):
        text = item + ("," if number + 1 < len(items) else "")
        if number and _tables.span(lines[-1]) + 1 + _tables.span(text) > room:
            lines.append(indent + text)
        else:
            lines[-1] += (" " if number else "") + text
    click.echo("\n".join(lines))


def _fitted(text: str, *, indent: str, err: bool) -> str:
    """``text`` without what changes a terminal, in lines as wide as it."""
    return _wrapped(harmless(text), indent=indent, err=err)


def _wrapped(text: str, *, indent: str, err: bool) -> str:
    room = _tables.width(sys.stderr if err else sys.stdout)
    if room == _tables.PIPE_WIDTH:  # for programs: a message is one line
        return text
    return "\n".join(_tables.wrapped(line, room, indent) for line in text.split("\n"))


def paint(text: str, *, fg: str | None = None, bold: bool = False, italic: bool = False) -> str:
    """``text`` in a colour, unless ``NO_COLOR`` is set (https://no-color.org)."""
    if os.environ.get("NO_COLOR"):
        return text
    return click.style(text, fg=fg, bold=bold or None, italic=italic or None)


def harmless(text: str) -> str:
    """``text`` of several lines, which may quote a file of anybody's, without what changes a terminal's state."""
    return "\n".join(printable(line.replace("\t", "    ")) for line in text.split("\n"))


def end_with(errors: Sequence[EdgekitError], of: Sequence[str] = ()) -> None:
    """Show every error, and end the command with the first one's exit code if there is one.

    ``of`` names what each error ended. Where several were ended by the same, it is shown once, with their names.
    """
    for error, numbers in told_once(errors):
        show_error(error)
        if len(numbers) > 1:
            names = ", ".join(of[number] for number in numbers) if of else f"{len(numbers)} times"
            labelled("ended:", names, fg="cyan", bold=True, err=True)
    if errors:
        raise click.exceptions.Exit(errors[0].exit_code)


@contextlib.contextmanager
def progress() -> Iterator[Reporter]:
    """Bars on a terminal, else a line for what takes long; notes always go to stderr."""
    console = stderr()
    if not sys.stderr.isatty():
        with Lines(lambda text: _dim(console, text)) as lines:
            yield from _watched(Reporter(lines))
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn
    from rich.progress import TimeElapsedColumn as Elapsed

    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(bar_width=24))
    bars = Progress(
        *columns,
        MofNCompleteColumn(),
        Elapsed(),
        console=console,
        transient=True,
    )
    with bars:
        yield from _watched(Reporter(_Bars(bars, console)))


def _watched(reporter: Reporter) -> Iterator[Reporter]:
    with watching(reporter):
        yield reporter


def _dim(console: Console, text: str) -> None:
    console.print(_fitted(text, indent="  ", err=True), markup=False, style="dim")


class _Bars:
    """Draws events."""

    def __init__(self, bars: Progress, console: Console) -> None:
        self._bars, self._console = bars, console
        self._handles: dict[int, TaskID] = {}

    def __call__(self, event: Event) -> None:
        match event.kind:
            case EventKind.NOTE:
                _dim(self._console, event.text)
            case EventKind.START:
                self._handles[event.task] = self._bars.add_task(harmless(event.text), total=event.total)
            case EventKind.ADVANCE:
                self._bars.update(self._handles[event.task], completed=event.done, total=event.total)
            case EventKind.END:
                self._bars.remove_task(self._handles.pop(event.task))


VERDICT_STYLE = {
    "passed": "green",
    "pass": "green",
    "failed": "red",
    "fail": "red",
    "not-run": "yellow",
    "unproven": "yellow",
}


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on stdout, as wide as the terminal; on a pipe, the same without colours. Numbers are set to the right."""
    if len(rows) > _MANY_ROWS:
        _long_table(columns, rows)
        return
    if title:
        click.echo(paint(_fitted(title, indent="  ", err=False), italic=True))
    cells = [[printable(cell) for cell in row] for row in rows]
    for line in _tables.lines(columns, cells, room=_tables.width(), style=_styled):
        click.echo(line)


def _long_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """The same without looks: rich takes 2 KB and a fifth of a millisecond for a row."""
    cells = [[printable(cell) for cell in row] for row in (columns, *rows)]
    widths = [min(_WIDEST, max(map(len, column))) for column in zip(*cells, strict=True)]
    for row in cells:
        click.echo("  ".join(map(str.ljust, row, widths)).rstrip())


def _styled(text: str, cell: str) -> str:
    """Headings are bold; verdicts have a colour, whatever is said of them: ``passed on 8 random inputs``."""
    if cell == _tables.HEADING:
        return paint(text, bold=True)
    colour = VERDICT_STYLE.get(cell.partition(" ")[0].rstrip(":"))
    return paint(text, fg=colour) if colour else text


def show(summary: Table) -> None:
    """A table that is there already; nothing where it has no rows."""
    if summary.rows:
        table("", summary.columns, summary.rows)


def number(value: float | None, form: str = ".4g") -> str:
    """A figure for a table; ``-`` where there is none."""
    return "-" if value is None else format(value, form)
