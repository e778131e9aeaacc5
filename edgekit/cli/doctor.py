"""``edgekit doctor``."""

from __future__ import annotations

import click

from edgekit.cli._options import json_flag
from edgekit.cli._output import labelled, print_json, say
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
    for finding in findings:
        labelled(f"{finding.level:7}", f"{finding.what}  {finding.detail}", fg=_STYLE[finding.level])
        if finding.hint:
            say(f"        → {finding.hint}", indent="          ")
    if any(f.level is Level.ERROR for f in findings):
        raise click.exceptions.Exit(6)
