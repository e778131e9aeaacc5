"""A first ``edgekit.toml``: every option of a build with its default, commented out, beside what is given."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from edgekit.core.config import CONTRACTS, Options
from edgekit.core.declared import OptionField, declared_options

_WIDTH = 98
_EXAMPLES: Mapping[str, str] = {
    "max_drop": '"1%"',
    "set": '{ io_layout = "nhwc" }',
    "shape": '{ input = "1x128" }',
    "bind": "{ sr = 16000 }",
    "state": '{ h0 = "hn" }',
    "limit": '{ snr = 30, agreement = "99%" }',
    "memory": '"8GB"',
    "timeout": "3600",
    "sequence_length": "128",
    "preprocessing": "{ resize = [224, 224], mean = [0.485, 0.456, 0.406], std = [0.229, 0.224, 0.225] }",
    "postprocessing": '{ kind = "softmax" }',
}
"""Values of options that have no default to show."""


def starter(source: str, given: Mapping[str, object]) -> str:
    """The file's text. ``given``: the options that are set in it, by name; ``source`` is in its first line."""
    lines = [
        f"# edgekit build {_one_line(source)}",
        "# reads this file in the folder that it is called in. What the command line says counts more.",
        "# Lines that begin with a name are in force; the others show each option with its default, or an example.",
    ]
    groups: dict[str, list[OptionField]] = {}
    for field in declared_options(Options).values():
        declared = field.declared
        if ("build" in declared.commands and not declared.personal) or field.name in CONTRACTS:
            groups.setdefault(declared.group, []).append(field)
    for title, fields in groups.items():
        lines += ["", f"# --- {title} {'-' * (70 - len(title))}"]
        for field in fields:
            lines += ["", *(f"# {line}" for line in textwrap.wrap(field.declared.help, _WIDTH))]
            if field.name in given:
                lines.append(f"{field.name} = {_toml(given[field.name])}")
            else:
                lines.append(f"# {field.name} = {_shown(field)}")
    return "\n".join(lines) + "\n"


def _shown(field: OptionField) -> str:
    if field.name in _EXAMPLES:
        return _EXAMPLES[field.name]
    return _toml(field.declared.choices[0] if field.declared.choices and not field.default else field.default)


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, str | Path):
        return json.dumps(str(value), ensure_ascii=False)  # a basic string of TOML is one of JSON
    if isinstance(value, Sequence):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, Mapping):
        return (
            "{ " + ", ".join(f"{json.dumps(k)} = {_toml(v)}" for k, v in value.items()) + " }"
            if value
            else "{}"
        )
    return '""'


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)
