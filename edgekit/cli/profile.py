"""``edgekit profile``."""

from __future__ import annotations

from pathlib import Path

import click

import edgekit
from edgekit.artifact.explorer import overlay
from edgekit.artifact.explorer.write import draw_named, write
from edgekit.cli._graph import graph_option, show_graph
from edgekit.cli._options import json_flag
from edgekit.cli._output import harmless, number, print_json, progress, say, table


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--device", default="local", show_default=True, metavar="NAME", help="Where to run it.")
@click.option("--runs", type=click.IntRange(min=4), default=50, show_default=True, help="Profiled runs.")
@click.option("--sort", is_flag=True, help="Most expensive first, not in order of execution.")
@click.option("--by-module", is_flag=True, help="Sums by PyTorch module.")
@click.option("--trust", is_flag=True, help="Load an engine that was not built here: engines are code.")
@graph_option
@json_flag
def profile(
    artifact: Path, device: str, runs: int, sort: bool, by_module: bool, trust: bool, graph: Path | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Show where the time of ARTIFACT goes: each operator's microseconds, what ran it, its PyTorch module.

    A run of its own, since profilers slow their runtimes down: for how long the model takes, see edgekit
    bench.
    """
    opened = edgekit.open(artifact)
    drawn = None if graph is None else draw_named(opened.directory)
    with progress() as shown, shown.task(f"profile {opened.target}"):
        result = opened.profile(device=device, runs=runs, trust=trust)
    if as_json:
        print_json({"artifact": str(opened.directory), "target": opened.target, "profile": result})
    elif by_module:
        _modules(result)
    else:
        _operators(result, sort=sort)
    for note in result.notes:
        say(f"note: {harmless(note)}", err=True)
    if graph is not None and drawn is not None:
        found = list(overlay.of_profile(drawn.graphs, result.operators))
        show_graph(write(drawn, graph, found), found, as_json=as_json)


def _operators(result: edgekit.Profile, *, sort: bool) -> None:
    operators = sorted(result.operators, key=lambda o: -(o.us or 0)) if sort else result.operators
    rows = [
        (
            o.module or "-",
            o.op,
            number(o.us, ".1f"),
            number(o.share, ".1%"),
            o.precision or "-",
            o.placed or "-",
            o.name,
        )
        for o in operators
    ]
    title = f"{result.backend} on {result.device}, {result.threads} threads, {result.runs} runs"
    table(title, ("module", "operator", "µs", "share", "precision", "ran on", "name"), rows)


def _modules(result: edgekit.Profile) -> None:
    sums = result.by_module()
    total = sum(sums.values())
    rows = [
        (name or "(none)", f"{us:.1f}", f"{us / total:.1%}" if total else "-") for name, us in sums.items()
    ]
    table(f"{result.backend} on {result.device}", ("module", "µs", "share"), rows)
