"""``edgekit targets``."""

from __future__ import annotations

import click

from edgekit.artifact.limits import of_row
from edgekit.cli._options import json_flag
from edgekit.cli._output import print_json, say, table
from edgekit.core import plugins
from edgekit.core import targets as catalogue
from edgekit.types import Availability, Target


@click.command()
@click.argument("name", required=False, default="")
@json_flag
@click.option("--why", is_flag=True, help="Also say why each target has the settings it has.")
def targets(name: str, as_json: bool, why: bool) -> None:
    """List every target: its backend, what it runs on, whether it is usable here and why not; or show all about NAME.

    Example: edgekit targets tflite-int8
    """
    specs = {name: catalogue.find(name)} if name else catalogue.known()
    states = {name: plugins.backend(name).available() for name in {t.backend for t in specs.values()}}
    if as_json:
        print_json({"targets": [_entry(t, states[t.backend]) for t in specs.values()]})
        return
    if name:
        _show(specs[name], states[specs[name].backend])
        return
    columns: tuple[str, ...] = ("target", "backend", "runs on", "usable here")
    rows = [_row(t, states[t.backend]) for t in specs.values()]
    if why:
        columns = (*columns, "why")
        rows = [(*row, t.why) for row, t in zip(rows, specs.values(), strict=True)]
    table("", columns, rows)
    for backend, state in states.items():
        if not state.usable:
            say(f"{backend}: {state.why_not}", indent="  ")
    for hint in sorted({a.hint for a in states.values() if a.hint and not a.usable}):
        say(f"  {hint}", err=True, indent="    ")


def _show(t: Target, a: Availability) -> None:
    """One target: what it is, what its gates ask for, what can be set."""
    rows = [
        ("backend", t.backend),
        ("precision", str(t.precision)),
        ("runs on", t.runs_on),
        ("platforms", ", ".join(t.platforms) or "-"),
        ("extra", t.extra or "none: part of the core"),
        ("installed", a.version if a.installed else "no"),
        ("usable here", "yes" if a.usable else f"no: {a.why_not}"),
        ("calibration", "needed" if t.needs_calibration else "used" if t.uses_calibration else "-"),
        ("shapes", "fixed, from the example" if t.fixed_shapes else "free axes stay"),
        ("from", t.owner),
    ]
    if t.scheme is not None:
        rows.append(("activations", t.scheme.activation))
        rows.append(("weights", f"{t.scheme.weight}{' per channel' if t.scheme.per_channel else ''}"))
    table(t.name, ("", ""), rows)
    table("gates (--limit)", ("limit", ""), [(k, f"{v:g}") for k, v in of_row(t.tolerance).items()])
    if t.options:
        settings = [(o.name, str(o.default), o.allowed, o.help) for o in t.options]
        table("settings (--set)", ("name", "default", "allowed", ""), settings)
    if t.why:
        say(t.why)


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
    usable = "yes" if a.usable else "no"
    return (t.name, t.backend, t.runs_on, f"{usable}, {a.version}" if a.installed and a.version else usable)
