"""Artifacts in a few lines: the table that the command line, ``repr`` and notebooks show.

What a manifest says may come from a stranger: text keeps no control characters, HTML is escaped.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from edgekit.artifact import proof
from edgekit.artifact.manifest import Manifest, Status
from edgekit.core import targets
from edgekit.types import CHECKED, TEXT_GENERATION, Gate, Precision, Verdict

COLUMNS = (
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
_NOTHING = "-"
_ROWS, _CELL = 20, 48
"""What fits a screen: so many rows, so many characters of one cell."""


class Described(Protocol):
    """An artifact, in here or for the public."""

    @property
    def directory(self) -> Path:
        """Where it lies."""
        ...

    @property
    def manifest(self) -> Manifest:
        """What is known about it."""
        ...


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of texts."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def text(self) -> str:
        """In columns, at most a screen."""
        cells = [self.columns, *self.rows[:_ROWS]]
        short = [[_short(printable(cell)) for cell in row] for row in cells]
        widths = [max(map(len, column)) for column in zip(*short, strict=True)]
        lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in short]
        if len(self.rows) > _ROWS:
            lines.append(f"… and {len(self.rows) - _ROWS} more")
        return "\n".join(lines)

    def html(self) -> str:
        """As an HTML table."""
        head = "".join(f"<th>{html.escape(c)}</th>" for c in self.columns)
        body = "".join("<tr>" + "".join(map(_html_cell, row)) + "</tr>" for row in self.rows)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def table(artifacts: Sequence[Described]) -> Table:
    """One line an artifact: what it is, how close to the reference, what runs, and the verdict; columns in which
    nothing is known are left out."""
    rows = [_row(a) for a in artifacts]
    shown = [i for i in range(len(COLUMNS)) if any(row[i] != _NOTHING for row in rows)]
    return Table(
        columns=tuple(COLUMNS[i] for i in shown), rows=tuple(tuple(row[i] for i in shown) for row in rows)
    )


def size(count: int) -> str:
    """Bytes for people: ``3.4 MB`` (decimal units, as file managers and app stores show them)."""
    value, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            break
        value /= 1000
    return f"{int(value)} {unit}" if unit == "B" else f"{value:.3g} {unit}"


def printable(text: str) -> str:
    """``text`` without what moves a terminal's cursor or changes its state."""
    return "".join(c if c.isprintable() else "�" for c in text)


def _row(artifact: Described) -> tuple[str, ...]:
    manifest = artifact.manifest
    parity = manifest.parity
    measured = manifest.measurements[-1] if manifest.measurements else None
    metric = _NOTHING
    if parity is not None and parity.metric is not None:
        metric = f"{parity.metric:.4f}"
        if parity.reference_metric is not None:
            metric += f" ({parity.metric - parity.reference_metric:+.4f})"
    return (
        manifest.target.name,
        size(manifest.size),
        metric,
        f"{parity.snr_db:.1f}" if parity else _NOTHING,
        proof.percent(parity.top1_agreement) if parity and parity.top1_agreement is not None else _NOTHING,
        as_asked(manifest),
        f"{measured.p50_ms:.3g}" if measured else _NOTHING,
        size(measured.peak_memory) if measured and measured.peak_memory else _NOTHING,
        verdict(manifest),
        str(artifact.directory),
    )


def as_asked(manifest: Manifest) -> str:
    """The share that is as the target promises: of the weights where it promises storage, else of the arithmetic."""
    stored = [g.value for g in manifest.gates if g.name == "integer-weights" and g.value is not None]
    if stored:
        return f"{stored[0]:.0%}"
    placement = manifest.placement
    return f"{placement.share:.0%}" if placement and placement.share is not None else _NOTHING


def verdict(manifest: Manifest) -> str:
    """What the gates came to, with what is unproven and how many rows would do.

    And on what it was measured, where that is no data of the user's (``passed on 8 random inputs``); of quantized
    numbers, that no metric was measured; of a language model as a plain forward, that it has no cache.
    """
    text, parity = standing(manifest), manifest.parity
    if manifest.status is Status.UNPROVEN:
        text += ": " + ", ".join(_unproven(g) for g in manifest.gates if g.verdict is Verdict.UNPROVEN)
    if parity is not None and parity.data in proof.NOT_UNSEEN:
        text += f" on {proof.inputs(parity)}"
    return text + _without_metric(manifest) + _without_cache(manifest)


def _without_metric(manifest: Manifest) -> str:
    """What quantized numbers cost the task was not measured, on data that could have told: outputs were compared."""
    parity, floats = manifest.parity, (Precision.FP32, Precision.FP16, Precision.BF16)
    if parity is None or parity.data in proof.NOT_UNSEEN or manifest.target.precision in floats:
        return ""
    judged = parity.metric is not None or parity.reference_metric is not None or bool(manifest.target.task)
    return "" if judged or manifest.status not in (Status.PASSED, Status.UNPROVEN) else "; no metric measured"


def _without_cache(manifest: Manifest) -> str:
    """A decoder's forward computes all tokens anew for each: no app can use it to write text."""
    if manifest.target.task or manifest.task != TEXT_GENERATION:
        return ""
    able = [t for t in targets.known().values() if t.task == manifest.task]
    wanted = manifest.target
    best = max(
        able,
        key=lambda t: (t.backend.startswith(wanted.backend), t.precision == wanted.precision),
        default=None,
    )
    return "; no cache" + (f": {best.name} has one" if best else "")


def standing(manifest: Manifest) -> str:
    """The status; of what was not run, what was done in its place: ``checked, not run: parsed by …``."""
    checked = manifest.details.get(CHECKED)
    if manifest.status is not Status.NOT_RUN or not isinstance(checked, str):
        return str(manifest.status)
    return f"checked, not run: {checked}"


def messages(gates: Sequence[Gate]) -> tuple[str, ...]:
    """The gates' messages; why an artifact was not run is said once, at the first gate that waits for it."""
    seen: set[str] = set()
    shown = []
    for gate in gates:
        again = gate.verdict is Verdict.NOT_RUN and gate.message in seen
        shown.append("" if again else gate.message)
        seen.add(gate.message)
    return tuple(shown)


def reason_not_run(manifest: Manifest) -> str:
    """Why an artifact was not run where it was built, with what was done in its place."""
    reason = next((g.message for g in manifest.gates if g.verdict is Verdict.NOT_RUN), "nothing ran it")
    return f"{standing(manifest)}; {reason}"


def _unproven(gate: Gate) -> str:
    return gate.name + (f" ({gate.enough:,} rows would do)" if gate.enough is not None else "")


def _short(cell: str) -> str:
    return cell if len(cell) <= _CELL else f"{cell[: _CELL // 2]}…{cell[-(_CELL // 2 - 1) :]}"


def _html_cell(cell: str) -> str:
    return f"<td>{html.escape(printable(cell))}</td>"
