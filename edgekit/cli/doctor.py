"""``edgekit doctor``."""

from __future__ import annotations

import click


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def doctor(as_json: bool) -> None:
    """Check runtimes, versions and tools, and say what to do about each finding."""
    from edgekit.cli._output import print_json, stdout
    from edgekit.core.doctor import diagnose

    findings = diagnose()
    if as_json:
        print_json({"findings": findings})
        return
    console = stdout()
    marks = {"ok": ("ok     ", "green"), "warning": ("warning", "yellow"), "error": ("error  ", "red")}
    for finding in findings:
        mark, colour = marks.get(str(finding.level), (str(finding.level).ljust(7), "cyan"))
        console.print(f"[{colour}]{mark}[/] [bold]{finding.what}[/]  {finding.detail}")
        if finding.hint:
            console.print(f"        → {finding.hint}", markup=False)
    if any(str(f.level) == "error" for f in findings):
        raise click.exceptions.Exit(6)
