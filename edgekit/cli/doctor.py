"""``edgekit doctor``."""

from __future__ import annotations

import click

from edgekit.cli._options import json_flag
from edgekit.cli._output import print_json, stdout
from edgekit.core.doctor import Level, diagnose

_STYLE = {Level.OK: "green", Level.INFO: "cyan", Level.WARNING: "yellow", Level.ERROR: "red"}


@click.command()
@json_flag
def doctor(as_json: bool) -> None:
    """Check runtimes, versions and tools, and say what to do about each finding."""
    findings = diagnose()
    if as_json:
        print_json({"findings": findings})
        return
    console = stdout()
    for finding in findings:
        mark = f"[{_STYLE[finding.level]}]{finding.level:7}[/]"
        console.print(f"{mark} [bold]{finding.what}[/]  {finding.detail}")
        if finding.hint:
            console.print(f"        → {finding.hint}", markup=False)
    if any(f.level is Level.ERROR for f in findings):
        raise click.exceptions.Exit(6)
