"""What every command shares: consoles, one JSON document on stdout, errors, progress bars, tables."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from edgekit.errors import EdgekitError, FactoryError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichProgress

    from edgekit.artifact.manifest import Artifact
    from edgekit.core.progress import Progress, Task


_PIPE_WIDTH = 240
"""Tables on a pipe are for grep: wide enough that no cell is folded."""


def stderr() -> Console:
    """The console for everything that is not the result."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


def stdout() -> Console:
    """The console for the result."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)


def print_json(document: Any) -> None:
    """One JSON document on stdout."""
    import msgspec

    from edgekit.core.structure import to_builtins

    click.echo(msgspec.json.format(msgspec.json.encode(to_builtins(document)), indent=2).decode())


def show_error(error: EdgekitError, *, as_json: bool) -> None:
    """The message, what to do, and for the user's own code its traceback. Never edgekit's."""
    if as_json:
        print_json({"error": error.to_json()})
    if isinstance(error, FactoryError) and error.user_traceback:
        click.echo(error.user_traceback.rstrip(), err=True)
    click.echo(f"{click.style('error:', fg='red', bold=True)} {error.message}", err=True)
    for note in getattr(error, "__notes__", ()):
        click.echo(f"  {note}", err=True)
    click.echo(f"{click.style('hint:', fg='cyan', bold=True)} {error.hint}", err=True)


@contextlib.contextmanager
def progress() -> Iterator[Progress]:
    """Bars on a terminal, nothing otherwise; notes always go to stderr."""
    from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as RichProgress

    console = stderr()
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with RichProgress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as bars:
        yield _Bars(bars, console)


class _Bars:
    def __init__(self, bars: RichProgress, console: Console) -> None:
        self._bars, self._console = bars, console

    @contextlib.contextmanager
    def task(self, label: str, total: int | None = None) -> Iterator[Task]:
        handle = self._bars.add_task(label, total=total)
        try:
            yield _Bar(self._bars, handle)
        finally:
            self._bars.remove_task(handle)

    def note(self, text: str) -> None:
        self._console.print(text, markup=False, style="dim")


class _Bar:
    def __init__(self, bars: RichProgress, handle: Any) -> None:
        self._bars, self._handle = bars, handle

    def advance(self, steps: int = 1) -> None:
        self._bars.advance(self._handle, steps)

    def total(self, steps: int) -> None:
        self._bars.update(self._handle, total=steps)


VERDICT_STYLE = {
    "passed": "green",
    "pass": "green",
    "failed": "red",
    "fail": "red",
    "not-run": "yellow",
    "inconclusive": "yellow",
}


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on stdout; on a pipe, the same without colours. Numbers are set to the right."""
    from rich.table import Table

    grid = Table(title=title or None, title_justify="left", header_style="bold", pad_edge=False, box=None)
    numeric = [bool(rows) and all(_numeric(row[i]) for row in rows) for i in range(len(columns))]
    for name, right in zip(columns, numeric, strict=True):
        grid.add_column(name, justify="right" if right else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(_styled(cell) for cell in row))
    stdout().print(grid)


def size(count: int) -> str:
    """Bytes for people: ``3.4 MB`` (decimal units, as file managers and app stores show them)."""
    value, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            break
        value /= 1000
    return f"{int(value)} {unit}" if unit == "B" else f"{value:.3g} {unit}"


def _numeric(cell: str) -> bool:
    return cell in ("", "-") or cell[0].isdigit() or (cell[0] in "-+<≥≤" and cell[1:2].isdigit())


def _styled(cell: str) -> Any:
    from rich.text import Text

    return Text(cell, style=VERDICT_STYLE.get(cell, ""))


def summary(artifacts: Sequence[Artifact]) -> None:
    """One line an artifact: what it is, how close to the reference, what runs, and the verdict."""
    if artifacts:
        columns = (
            "target",
            "size",
            "metric",
            "SNR dB",
            "top-1",
            "placement",
            "p50 ms",
            "peak",
            "verdict",
            "artifact",
        )
        rows = [_summary_row(a) for a in artifacts]
        kept = [i for i in range(len(columns)) if any(row[i] != "-" for row in rows)]
        table("", [columns[i] for i in kept], [[row[i] for i in kept] for row in rows])


def _summary_row(artifact: Artifact) -> tuple[str, ...]:
    m = artifact.manifest
    parity, placement = m.parity, m.placement
    measured = m.measurements[-1] if m.measurements else None
    metric = "-"
    if parity is not None and parity.metric is not None:
        metric = f"{parity.metric:.4f}"
        if parity.reference_metric is not None:
            metric += f" ({parity.metric - parity.reference_metric:+.4f})"
    return (
        artifact.target,
        size(m.size),
        metric,
        f"{parity.snr_db:.1f}" if parity else "-",
        f"{parity.top1_agreement:.1%}" if parity and parity.top1_agreement is not None else "-",
        f"{placement.share:.0%}" if placement and placement.share is not None else "-",
        f"{measured.p50_ms:.3g}" if measured else "-",
        size(measured.peak_memory) if measured and measured.peak_memory else "-",
        m.status,
        str(artifact.directory),
    )
