"""How a table fits a terminal: whole where it is narrow enough, one block a row where it is not.

Nothing is cut within a word: a path, a target's or a step's name or a verdict can be read and copied in one piece. Only
sentences are wrapped, between their words, and only in columns that are long.
"""

from __future__ import annotations

import shutil
import sys
import textwrap
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from typing import TextIO

PIPE_WIDTH = 240
"""Tables on a pipe are for grep: wide enough that hardly a cell is wrapped."""
_GAP = 2
_SENTENCE = 20
"""A column that is wider and has spaces is of sentences, which may be wrapped."""
_FEW_ROWS = 4
"""Of so many rows each becomes a block where it does not fit; of more each becomes two lines or three."""
_NARROWEST = 16
"""What a sentence needs to be readable."""

Style = Callable[[str, str], str]
"""(cell as it is set, cell as it was given) → the same with colours."""


def width(stream: TextIO | None = None) -> int:
    """Columns of the terminal that ``stream`` (stdout) is; on a pipe :data:`PIPE_WIDTH`, whatever ``COLUMNS`` says:
    there are programs that export it."""
    out = stream or sys.stdout
    return max(20, shutil.get_terminal_size((80, 24)).columns) if out.isatty() else PIPE_WIDTH


def lines(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, room: int, style: Style = lambda text, _: text
) -> Iterator[str]:
    """The lines of a table that is at most ``room`` columns wide, unless a single word is wider."""
    widths = _widths(columns, rows, room)
    if widths is None:
        form = _blocks if len(rows) <= _FEW_ROWS else _several_lines
        yield from form(columns, rows, room, style)
        return
    right = [bool(rows) and all(numeric(row[i]) for row in rows) for i in range(len(columns))]
    if any(columns):
        yield from _row(columns, widths, right, lambda text, _: style(text, HEADING))
    for row in rows:
        yield from _row(row, widths, right, style)


HEADING = "\0"
"""What a style is told of instead of a cell where it is the heading of a column."""


def numeric(cell: str) -> bool:
    """Whether a cell is a figure, or nothing: set to the right where all of a column are."""
    return cell in ("", "-") or cell[0].isdigit() or (cell[0] in "-+<≥≤" and cell[1:2].isdigit())


def wrapped(text: str, room: int, indent: str = "") -> str:
    """``text`` in lines of at most ``room`` columns, broken between words only; more lines are indented further."""
    if span(text) <= room:
        return text
    return "\n".join(
        textwrap.wrap(
            text, room, break_long_words=False, break_on_hyphens=False, subsequent_indent=indent,
            replace_whitespace=False, drop_whitespace=True,
        )
    )  # fmt: skip


def span(text: str) -> int:
    """Columns that a text takes in a terminal: East Asian characters take two, accents that combine none."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text
    )


def _widths(columns: Sequence[str], rows: Sequence[Sequence[str]], room: int) -> list[int] | None:
    """Of each column; ``None`` where the rows do not fit side by side."""
    cells = [[name, *(row[i] for row in rows)] for i, name in enumerate(columns)]
    natural = [max(map(span, column)) for column in cells]
    spare = room - sum(natural) - _GAP * (len(columns) - 1)
    least = [_least(column, whole) for column, whole in zip(cells, natural, strict=True)]
    # The widest sentences give way first.
    while spare < 0:
        slack = [whole - few for whole, few in zip(natural, least, strict=True)]
        widest = max(range(len(columns)), key=lambda i: (slack[i] > 0, natural[i]), default=0)
        if not columns or slack[widest] <= 0:
            return None
        given = min(slack[widest], -spare)
        natural[widest] -= given
        spare += given
    return natural


def _least(column: Sequence[str], whole: int) -> int:
    """How narrow a column may become: no word of it is broken."""
    if whole <= _SENTENCE or not any(" " in cell for cell in column):
        return whole
    longest = max(span(word) for cell in column for word in cell.split(" "))
    return min(whole, max(longest, _NARROWEST))


def _row(cells: Sequence[str], widths: Sequence[int], right: Sequence[bool], style: Style) -> Iterator[str]:
    """One row, in as many lines as its longest sentence needs."""
    split = [wrapped(cell, room).split("\n") for cell, room in zip(cells, widths, strict=True)]
    for number in range(max(map(len, split), default=0)):
        parts = [
            (part[number] if number < len(part) else "", cell, room, to_right)
            for part, cell, room, to_right in zip(split, cells, widths, right, strict=True)
        ]
        yield (" " * _GAP).join(_set(*part, style) for part in parts).rstrip()


def _set(text: str, cell: str, room: int, to_right: bool, style: Style) -> str:
    filler = " " * (room - span(text))
    shown = style(text, cell) if text else ""
    return filler + shown if to_right else shown + filler


def _several_lines(
    columns: Sequence[str], rows: Sequence[Sequence[str]], room: int, style: Style
) -> Iterator[str]:
    """Each row in as many lines as it needs, the same columns in each; so is the heading."""
    indent = " " * (2 * _GAP)
    cells = [[name, *(row[i] for row in rows)] for i, name in enumerate(columns)]
    widths = [min(max(map(span, column)), room - len(indent)) for column in cells]
    widths = [max(w, _least(column, max(map(span, column)))) for w, column in zip(widths, cells, strict=True)]
    groups: list[list[int]] = [[]]
    used = 0
    for i, wide in enumerate(widths):
        if groups[-1] and used + _GAP + wide > room:
            groups.append([])
            used = len(indent) - _GAP
        groups[-1].append(i)
        used += _GAP + wide
    right = [all(numeric(row[i]) for row in rows) for i in range(len(columns))]
    heading: tuple[Sequence[str], Style] = (columns, lambda text, _: style(text, HEADING))
    for row, painted in (heading, *((row, style) for row in rows)):
        for number, group in enumerate(groups):
            part = [[values[i] for i in group] for values in (row, widths, right)]
            for line in _row(part[0], part[1], part[2], painted):  # type: ignore[arg-type]
                yield (indent if number else "") + line


def _blocks(columns: Sequence[str], rows: Sequence[Sequence[str]], room: int, style: Style) -> Iterator[str]:
    """One block a row: its first cell, and the others below, each behind the name of its column."""
    label = max((span(name) for name in columns[1:]), default=0)
    for row in rows:
        yield from (style(line, row[0]) for line in wrapped(row[0] or "-", room).split("\n"))
        for name, cell in zip(columns[1:], row[1:], strict=True):
            if cell in ("", "-"):
                continue
            indent = " " * (2 + label + _GAP)
            text = wrapped(cell, max(_NARROWEST, room - len(indent)))
            first, *more = text.split("\n")
            heading = style(name, HEADING) if name else ""
            yield f"  {heading}{' ' * (label - span(name) + _GAP)}{style(first, cell)}"
            yield from (indent + style(line, cell) for line in more)
