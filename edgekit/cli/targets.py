"""``edgekit targets``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from edgekit.types import Availability, Target


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.option("--why", is_flag=True, help="Also say why each row has the settings it has.")
def targets(as_json: bool, why: bool) -> None:
    """List every target: backend, precision, installed, usable here, why not."""
    from edgekit.cli._output import print_json, table
    from edgekit.core import plugins
    from edgekit.core import targets as catalogue

    rows = catalogue.known()
    states = {name: plugins.backend(name).available() for name in {t.backend for t in rows.values()}}
    if as_json:
        print_json({"targets": [_entry(t, states[t.backend]) for t in rows.values()]})
        return
    table(
        "",
        ("target", "backend", "precision", "runs on", "installed", "usable here", *(("why",) if why else ())),
        [_row(t, states[t.backend], why) for t in rows.values()],
    )
    missing = {a.hint for a in states.values() if a.hint and not a.usable}
    for hint in sorted(missing):
        click.echo(f"  {hint}", err=True)


def _entry(t: Target, a: Availability) -> dict[str, object]:
    from edgekit.core.structure import to_builtins

    return {
        "name": t.name,
        "backend": t.backend,
        "precision": t.precision,
        "runs_on": t.runs_on,
        "owner": t.owner,
        "why": t.why,
        "options": to_builtins(t.options),
        "available": to_builtins(a),
    }


def _row(t: Target, a: Availability, why: bool) -> tuple[str, ...]:
    installed = a.version if a.installed else "no"
    usable = "yes" if a.usable else f"no: {a.why_not}"
    return (t.name, t.backend, str(t.precision), t.runs_on, installed, usable, *((t.why,) if why else ()))
