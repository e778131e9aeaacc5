"""``edgekit history``."""

from __future__ import annotations

import click

from edgekit.artifact import history as kept
from edgekit.artifact.history_file import place
from edgekit.artifact.summary import size
from edgekit.cli._options import json_flag
from edgekit.cli._output import number, print_json, say, table

_MOST_ROWS = 1_000_000


@click.command()
@click.argument("targets", nargs=-1, metavar="[TARGET]...")
@click.option("--source", default="", metavar="SOURCE", help="Of this source alone, as it was given.")
@click.option("--device", default="", metavar="NAME", help="What was measured on this device.")
@click.option("--kind", type=click.Choice([str(k) for k in kept.Kind]), help="Of this kind alone.")
@click.option(
    "--since", default="", metavar="DATE", help="From this date or time on (UTC), or 7d: a week ago."
)
@click.option(
    "--limit", type=click.IntRange(1, _MOST_ROWS), default=20, show_default=True, help="Rows at most."
)
@click.option(
    "--prune", type=click.FloatRange(min=0), metavar="DAYS", help="Remove what is older, and show nothing."
)
@json_flag
def history(
    targets: tuple[str, ...],
    source: str,
    device: str,
    kind: str | None,
    since: str,
    limit: int,
    prune: float | None,
    as_json: bool,
) -> None:
    """Show what was built, verified and measured, the newest first, of all TARGETs or of those named.

    Every build whose result is new, every verification and every benchmark is a row of one SQLite file of
    yours, with its gates, its figures and its manifest. edgekit compare @12 build holds a build against run 12.

    Example: edgekit history tflite-int8 --device pi5 --since 30d
    """
    if prune is not None:
        count = kept.prune(prune)
        print_json({"removed": count}) if as_json else say(f"{count} rows removed")
        return
    query = kept.Query(
        targets=targets, source=source, device=device, kind=kind or "", since=since, limit=limit
    )
    runs = kept.runs(query)
    if as_json:
        print_json({"history": str(place()), "runs": runs})
        return
    if not runs:
        say("nothing of that kind is in the history")
        return
    columns = ("run", "when, UTC", "kind", "target", "verdict", "size", "metric", "SNR", "p50 ms", "source")
    table("", columns, [_row(run) for run in runs])


def _row(run: kept.Run) -> tuple[str, ...]:
    timed = "-" if run.p50_ms is None else number(run.p50_ms, ".3g")
    if run.device and run.device != "local":
        timed += f" ({run.device})"
    if run.validity not in ("", "VALID"):
        timed += f" {run.validity}"
    return (
        str(run.id),
        run.at[:16].replace("T", " "),
        str(run.kind),
        run.target,
        run.status,
        size(run.size),
        "-" if run.metric is None else f"{run.metric:.4f}",
        "-" if run.snr_db is None else f"{run.snr_db:.1f}",
        timed,
        run.source,
    )
