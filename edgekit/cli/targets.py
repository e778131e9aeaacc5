"""``edgekit targets``."""

from __future__ import annotations

import click

from edgekit.cli._options import json_flag
from edgekit.cli._output import print_json, say, table
from edgekit.core import plugins
from edgekit.core import targets as catalogue
from edgekit.types import Availability, Target


@click.command()
@json_flag
@click.option("--why", is_flag=True, help="Also say why each target has the settings it has.")
def targets(as_json: bool, why: bool) -> None:
    """List every target: backend, precision, installed, usable here, why not."""
    specs = catalogue.known()
    states = {name: plugins.backend(name).available() for name in {t.backend for t in specs.values()}}
    if as_json:
        print_json({"targets": [_entry(t, states[t.backend]) for t in specs.values()]})
        return
    columns: tuple[str, ...] = ("target", "backend", "precision", "runs on", "installed", "usable here")
    rows = [_row(t, states[t.backend]) for t in specs.values()]
    if why:
        columns = (*columns, "why")
        rows = [(*row, t.why) for row, t in zip(rows, specs.values(), strict=True)]
    table("", columns, rows)
    for hint in sorted({a.hint for a in states.values() if a.hint and not a.usable}):
        say(f"  {hint}", err=True)


def _entry(t: Target, a: Availability) -> dict[str, object]:
    return {
        "name": t.name,
        "backend": t.backend,
        "precision": t.precision,
        "runs_on": t.runs_on,
        "owner": t.owner,
        "why": t.why,
        "options": t.options,
        "available": a,
    }


def _row(t: Target, a: Availability) -> tuple[str, ...]:
    installed = a.version if a.installed else "no"
    usable = "yes" if a.usable else f"no: {a.why_not}"
    return (t.name, t.backend, str(t.precision), t.runs_on, installed, usable)
