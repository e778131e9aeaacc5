"""``edgekit init``."""

from __future__ import annotations

import os
from pathlib import Path

import click

from edgekit.cli._output import say
from edgekit.core import files, targets
from edgekit.core.config import FILE
from edgekit.core.starter import starter
from edgekit.errors import UsageError
from edgekit.load import parse


@click.command()
@click.argument("source")
@click.option("--target", "-t", default="", metavar="T[,T…]", help="Targets to put into it.")
@click.option("--calib", default="", metavar="DATA", help="Calibration inputs to put into it.")
@click.option("--eval", "evaluation", default="", metavar="DATA", help="Evaluation inputs to put into it.")
def init(source: str, target: str, calib: str, evaluation: str) -> None:
    """Write edgekit.toml for SOURCE here: every option of edgekit build, explained, with its default.

    What is given is set in it. A file that is there already is left alone.

    Example: edgekit init model.py:factory --target tflite-int8 --calib data.py:calibration
    """
    parse(source)
    given: dict[str, object] = {}
    if target:
        given["target"] = tuple(t.name for t in targets.select(target)) if target != "all" else ("all",)
    given |= {k: v for k, v in (("calib", calib), ("eval", evaluation)) if v}
    path = Path(FILE)
    if os.path.lexists(path):
        raise UsageError(f"there is an {FILE} here already", hint="change it by hand, or remove it first")
    files.put(path, starter(source, given).encode())
    say(f"{path.resolve()}: edgekit build {source} reads it")
