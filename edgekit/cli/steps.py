"""``edgekit steps``."""

from __future__ import annotations

import inspect
from collections.abc import Mapping

import click

from edgekit.cli._options import json_flag
from edgekit.cli._output import print_json, say, table
from edgekit.compress.registry import default_options, registry


@click.command()
@click.argument("name", required=False, default="")
@json_flag
def steps(name: str, as_json: bool) -> None:
    """List the steps of a recipe, or show NAME with its options and their defaults.

    Example: edgekit steps prune
    """
    names = (name,) if name else tuple(registry())
    options = {n: default_options(n) for n in names}
    texts = {n: inspect.getdoc(registry()[n]) or "" for n in names}
    if as_json:
        print_json({"steps": [{"name": n, "help": texts[n], "options": options[n]} for n in names]})
    elif name:
        say(_plain(texts[name]))
        table("", ("option", "default"), [(k, _spelled(v)) for k, v in options[name].items()])
        say(f"edgekit compress SOURCE --recipe '{name}({_example(options[name])})'")
    else:
        rows = [(n, _plain(texts[n].partition("\n")[0]), ", ".join(_own(options[n]))) for n in names]
        table("", ("step", "", "options besides training"), rows)


def _plain(text: str) -> str:
    """A docstring for the terminal."""
    return text.replace("``", "")


def _spelled(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value) if value != "" else '""'


def _own(options: Mapping[str, object]) -> list[str]:
    return [option for option in options if not option.startswith("training.")]


def _example(options: Mapping[str, object]) -> str:
    first = next(iter(options.items()), None)
    return "" if first is None else f"{first[0]}={_spelled(first[1])}"
