"""``--graph DIR``: the same option of every command that knows something of a model's nodes."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

import click

from edgekit.artifact.explorer.overlay import Overlay
from edgekit.artifact.explorer.write import command
from edgekit.cli._output import say

graph_option = click.option(
    "--graph",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Also write the model's graph for Model Explorer, and what is found of its nodes.",
)


def show_graph(written: Sequence[Path], found: Iterable[Overlay] = (), *, as_json: bool) -> None:
    """Say what opens the files, on stderr beside a JSON document; and what is no node of the graph."""
    for overlay in found:
        if overlay.unplaced:
            one = overlay.unplaced == 1
            what = "1 entry has no node" if one else f"{overlay.unplaced} entries have no nodes"
            say(f"note: {overlay.title}: {what} in the graph", err=True)
    say(f"graph: {shlex.join(command(written))}", err=as_json)
