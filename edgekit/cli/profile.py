"""``edgekit profile``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from edgekit.artifact.profile import Profile


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--device", default="local", show_default=True, metavar="NAME", help="Where to run it.")
@click.option("--runs", type=click.IntRange(min=4), default=50, show_default=True, help="Profiled runs.")
@click.option("--sort", is_flag=True, help="Most expensive first, not in order of execution.")
@click.option("--by-module", is_flag=True, help="Sums by PyTorch module.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def profile(artifact: Path, device: str, runs: int, sort: bool, by_module: bool, as_json: bool) -> None:
    """Show where the time of ARTIFACT goes: each operator's microseconds, what ran it, its PyTorch module.

    A run of its own, since profilers slow their runtimes down: for how long the model takes, see edgekit
    bench.
    """
    from edgekit.artifact import manifest
    from edgekit.artifact.profile import profile_artifact
    from edgekit.cli._output import print_json, progress
    from edgekit.devices import catalogue

    found = manifest.read(artifact)
    with progress() as shown, shown.task(f"profile {found.target}"):
        result = profile_artifact(found, device=catalogue.device(device), runs=runs)
    if as_json:
        print_json({"artifact": str(found.directory), "target": found.target, "profile": result})
    elif by_module:
        _modules(result)
    else:
        _operators(result, sort=sort)
    for note in result.notes:
        click.echo(f"note: {note}", err=True)


def _operators(found: Profile, *, sort: bool) -> None:
    from edgekit.cli._output import table

    chosen = sorted(found.operators, key=lambda o: -(o.us or 0)) if sort else found.operators
    rows = [
        (
            o.module or "-",
            o.op,
            "-" if o.us is None else f"{o.us:.1f}",
            "-" if o.share is None else f"{o.share:.1%}",
            o.precision or "-",
            o.placed or "-",
            o.name,
        )
        for o in chosen
    ]
    title = f"{found.backend} on {found.device}, {found.threads} threads, {found.runs} runs"
    table(title, ("module", "operator", "µs", "share", "precision", "ran on", "name"), rows)


def _modules(found: Profile) -> None:
    from edgekit.cli._output import table

    sums = found.by_module()
    total = sum(sums.values())
    rows = [
        (name or "(none)", f"{us:.1f}", f"{us / total:.1%}" if total else "-") for name, us in sums.items()
    ]
    table(f"{found.backend} on {found.device}", ("module", "µs", "share"), rows)
