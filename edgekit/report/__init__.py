"""One page that shows what was built: verdicts, figures, where each number comes from and how to repeat it.

In come folders of artifacts and the raw times beside their manifests; out goes one HTML
file that needs nothing else, neither a network nor a script. Nothing is measured here: what a manifest does not have is
said to be missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.report.collect import Entry, Skipped, collect

if TYPE_CHECKING:
    from edgekit.report.page import CellRow

__all__ = ["Entry", "Skipped", "Written", "collect", "write", "write_sweep"]


def write_sweep(
    folders: Sequence[Path], html: Path, *, title: str, columns: tuple[str, ...], rows: Sequence[CellRow]
) -> None:
    """Write the report of a sweep: the table of all its cells, then what :func:`write` writes.

    Args:
        folders: those of the cells that have an artifact, each called like its cell.
        html: the file to write, in place of what is there.
        title: the heading.
        columns: the heads of the table.
        rows: its rows, those of cells without an artifact too.

    Raises:
        MissingExtraError: matplotlib or Jinja2 is not installed.
    """
    from edgekit.core import files
    from edgekit.report.page import CellTable, page

    entries, skipped = collect(folders)
    labelled = [replace(e, label=e.artifact.directory.parent.name) for e in entries]
    text = page(labelled, skipped, title=title, tried=CellTable(columns=columns, rows=tuple(rows)))
    files.write(html, text.encode("utf-8", "replace"))


@dataclass(frozen=True, kw_only=True)
class Written:
    """What a page shows, in its order: the artifacts, and the folders that could not be read, with why."""

    entries: tuple[Entry, ...]
    skipped: tuple[Skipped, ...]
    html: Path

    def _repr_html_(self) -> str:
        """The page in a frame of its own, without scripts and apart from the notebook; a large one as a link."""
        from html import escape

        place = escape(str(self.html), quote=True)
        try:
            page = self.html.read_text(encoding="utf-8") if self.html.stat().st_size <= _MOST_SHOWN else ""
        except OSError:  # moved since
            page = ""
        if not page:
            return f'<a href="{place}">{place}</a>'
        style = "width:100%;height:40em;border:1px solid #ccc"
        return (
            f'<iframe sandbox srcdoc="{escape(page, quote=True)}" title="{place}" style="{style}"></iframe>'
        )


_MOST_SHOWN = 3_000_000
"""Bytes of a page that a notebook, which keeps a copy, is given."""


def write(folders: Sequence[Path], html: Path, *, title: str = "") -> Written:
    """Write the report of all artifacts in ``folders`` to the file ``html``, as a whole or not at all.

    Args:
        folders: artifacts, or folders of artifacts (what ``edgekit build --out`` names).
        html: the file to write.
        title: the heading; by default the names of the sources.

    Returns:
        What the page shows.

    Raises:
        SourceError: there is no artifact in a folder.
        MissingExtraError: matplotlib or Jinja2 is not installed.
        UsageError: the file cannot be written.
    """
    from edgekit.core import files
    from edgekit.report.page import page  # matplotlib

    entries, skipped = collect(folders)
    text = page(entries, skipped, title=title)
    files.put(html, text.encode("utf-8", "replace"))
    return Written(entries=entries, skipped=skipped, html=html)
