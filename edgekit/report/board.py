"""A board: one static page of the newest measurement of everything in the history, and the same as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from edgekit.artifact import history
from edgekit.artifact.summary import size
from edgekit.core import files
from edgekit.core.structure import to_builtins
from edgekit.core.versions import EDGEKIT
from edgekit.errors import SourceError
from edgekit.report.page import environment

PAGE, DATA = "index.html", "measurements.json"


def write_board(folder: Path) -> tuple[history.Run, ...]:
    """Write ``index.html`` and ``measurements.json`` into ``folder``, which is made where there is none.

    Returns:
        The rows, by source, target and device.

    Raises:
        SourceError: there is no history, or nothing in it was measured.
        MissingExtraError: Jinja2 is not installed.
        UsageError: a file cannot be written.
    """
    rows = history.latest()
    if not rows:
        raise SourceError(
            "nothing in the history was measured", hint="edgekit bench ARTIFACT… measures and remembers"
        )
    page = environment().get_template("board.html").render(edgekit=EDGEKIT, rows=[_row(r) for r in rows])
    files.put(folder / DATA, _json(rows))
    files.put(folder / PAGE, page.encode("utf-8", "replace"))
    return rows


def _json(rows: Sequence[history.Run]) -> bytes:
    document = msgspec.json.encode({"edgekit": EDGEKIT, "rows": to_builtins(rows)})
    return msgspec.json.format(document, indent=1) + b"\n"


def _row(run: history.Run) -> dict[str, str]:
    def ms(value: float | None) -> str:
        return "–" if value is None else f"{value:.4g}"

    return {
        "source": run.source,
        "target": run.target,
        "device": run.device,
        "status": run.status,
        "size": size(run.size),
        "metric": "–" if run.metric is None else f"{run.metric:.4f}",
        "snr": "–" if run.snr_db is None else f"{run.snr_db:.1f}",
        "p50": ms(run.p50_ms),
        "p90": ms(run.p90_ms),
        "p99": ms(run.p99_ms),
        "memory": "–" if run.peak_memory is None else size(run.peak_memory),
        "threads": "–" if run.threads is None else str(run.threads),
        "validity": run.validity,
        "when": run.at,
        "build": run.digest[:12],
        "edgekit": run.edgekit,
        "command": run.command or f"edgekit bench {run.directory} (called from Python)",
    }
