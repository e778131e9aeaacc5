"""Tables as a notebook shows them.

Names in them come from files and devices of anybody's; :class:`~edgekit.artifact.summary.Table` escapes every cell.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence

from edgekit.artifact.summary import Table, messages, printable
from edgekit.types import Gate

NOTHING = "-"
"""What stands where nothing is known."""
_MOST = 100
"""Rows of a table: a model may have thousands of operators, and a notebook keeps what it shows."""


def gates(checked: Sequence[Gate]) -> Table:
    """Each gate with its value, limit and verdict."""
    rows = [
        (g.name, number(g.value), number(g.limit), str(g.verdict), message)
        for g, message in zip(checked, messages(checked), strict=True)
    ]
    return known(("gate", "value", "limit", "verdict", ""), rows)


def titled(line: str, tables: Mapping[str, Table]) -> str:
    """HTML of a line, and of each table that has rows under its name."""
    parts = [f"<p>{html.escape(printable(line))}</p>"] if line else []
    for title, table in tables.items():
        if table.rows:
            left = len(table.rows) - _MOST
            shown = Table(columns=table.columns, rows=table.rows[:_MOST])
            more = f"<p>… and {left:,} more</p>" if left > 0 else ""
            parts.append(f"<p><b>{html.escape(printable(title))}</b></p>{shown.html()}{more}")
    return "".join(parts)


def listed(texts: Iterable[str]) -> str:
    """HTML of a list of sentences; nothing of none."""
    items = "".join(f"<li>{html.escape(printable(text))}</li>" for text in texts)
    return f"<ul>{items}</ul>" if items else ""


def number(value: float | None, form: str = ".4g") -> str:
    """A figure, where there is one."""
    return NOTHING if value is None else format(value, form)


def known(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Table:
    """Without the columns in which nothing is known."""
    shown = [i for i in range(len(columns)) if any(row[i] not in (NOTHING, "") for row in rows)]
    return Table(
        columns=tuple(columns[i] for i in shown), rows=tuple(tuple(row[i] for i in shown) for row in rows)
    )
