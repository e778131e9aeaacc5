"""Write the generated tables of README.md and docs/ between their markers, or check that they are current.

    python tools/docs_tables.py            # write
    python tools/docs_tables.py --check    # exit 1 and name the files that are out of date

A table sits between ``<!-- begin NAME -->`` and ``<!-- end NAME -->``; everything outside is left alone.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import edgekit
from edgekit.compress.registry import default_options, registry
from edgekit.compress.step import Step
from edgekit.core import targets
from edgekit.core.config import Options
from edgekit.core.declared import OptionField, declared_options
from edgekit.types import Target

ROOT = Path(__file__).resolve().parent.parent


def targets_table() -> str:
    """One line a target, in catalogue order: what it is, what it runs on, what it needs."""
    lines = [
        "| target | precision | activations × weights | calibration | extra | why |",
        "|---|---|---|---|---|---|",
    ]
    for path in sorted((ROOT / "targets").glob("*/target.toml")):
        lines += [_target_line(row) for row in targets.read_rows(path, "edgekit")]
    return "\n".join(lines)


def _target_line(row: Target) -> str:
    scheme = f"{row.scheme.activation} × {row.scheme.weight}" if row.scheme else "–"
    cells = (
        f"`{row.name}`",
        str(row.precision),
        scheme,
        "needed" if row.needs_calibration else "–",
        f"`{row.extra}`" if row.extra else "core",
        row.why,
    )
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def options_table() -> str:
    """A section a group of options, one line an option: how each surface spells it, its type, default and meaning."""
    groups: dict[str, list[OptionField]] = {}
    for field in declared_options(Options).values():
        groups.setdefault(field.declared.group, []).append(field)
    lines: list[str] = []
    for title, fields in groups.items():
        lines += ["", f"## {title}", "", "| Python, TOML | command line | environment | value | default | |"]
        lines += ["|---|---|---|---|---|---|", *map(_option_line, fields)]
    return "\n".join(lines[1:])


def _option_line(field: OptionField) -> str:
    declared = field.declared
    spelled = f"`{', '.join(field.flags)}`" if declared.commands else "–"
    variable = (
        f"`{field.variable}`" + (" (off only)" if declared.personal else "") if declared.commands else "–"
    )
    value = " ".join(f"`{c}`" for c in declared.choices) or field.in_words
    default = f"`{field.default}`" if field.default not in ("", (), {}, None) else "–"
    if isinstance(field.default, tuple) and field.default:
        default = f"`{', '.join(field.default)}`"
    where = f" ({', '.join(declared.commands)})" if declared.commands else ""
    cells = (
        f"`{field.name}`",
        spelled,
        variable,
        value,
        default.replace("True", "true").replace("False", "false"),
    )
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in (*cells, declared.help + where)) + " |"


def api_names() -> str:
    """The functions and the methods of artifacts with their signatures, and every public type in a line."""
    public = [(name, getattr(edgekit, name)) for name in edgekit.__all__ if not name.startswith("_")]
    types = [(name, value) for name, value in public if isinstance(value, type)]
    functions = [(name, value) for name, value in public if not isinstance(value, type)]
    methods = [
        (f"Artifact.{name}", value)
        for name, value in vars(edgekit.Artifact).items()
        if inspect.isfunction(value) and not name.startswith("_")
    ]
    lines = ["```text", *(_signature(name, value) for name, value in (*functions, *methods)), "```", ""]
    lines += ["| type | |", "|---|---|", *(f"| `{name}` | {_first_line(value)} |" for name, value in types)]
    return "\n".join(lines)


def _signature(name: str, value: Callable[..., object]) -> str:
    function = type(value).__call__ if inspect.ismodule(value) else value
    annotated = str(inspect.signature(function))
    return name + re.sub(
        r"(: |-> )'([^']*)'", r"\1\2", annotated
    )  # annotations are texts; defaults keep their quotes


def _first_line(value: type) -> str:
    return (
        (inspect.getdoc(value) or "")
        .split("\n\n")[0]
        .replace("\n", " ")
        .replace("|", "\\|")
        .replace("``", "`")
    )


def steps_page() -> str:
    """A section a step: what it does, its own options, and the method with its papers."""
    return "\n".join(line for name, kind in registry().items() for line in _step_lines(name, kind))


def _step_lines(name: str, kind: type[Step]) -> Iterator[str]:
    own = {k: v for k, v in default_options(name).items() if not k.startswith("training.")}
    yield from (f"## {name}", "", _markdown(inspect.getdoc(kind) or ""), "")
    if own:
        yield from ("| option | default |", "|---|---|")
        yield from (f"| `{k}` | {_spelled(v)} |" for k, v in own.items())
        yield ""
    yield from (line for method in _methods(kind) for line in (method, ""))


def _methods(kind: type[Step]) -> list[str]:
    """What the modules say that do the step: their methods, with the papers."""
    folder = Path(inspect.getfile(kind)).parent
    stem = Path(inspect.getfile(kind)).stem
    files = [folder / f"{stem}.py", *sorted(folder.glob(f"{stem}_*.py"))]
    texts = (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "" for file in files)
    return [_markdown(text) for text in texts if re.search(r"\b(19|20)\d\d\b", text)]


def _markdown(docstring: str) -> str:
    """A docstring as Markdown."""
    return re.sub(r":\w+:`~?([^`]*)`", r"`\1`", docstring).replace("``", "`")


def _spelled(value: object) -> str:
    if value == "":
        return "–"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


TABLES: Mapping[str, Mapping[str, Callable[[], str]]] = {
    "README.md": {"targets": targets_table},
    "docs/api.md": {"api": api_names},
    "docs/options.md": {"options": options_table},
    "docs/steps.md": {"steps": steps_page},
}


def rendered(text: str, tables: Mapping[str, Callable[[], str]]) -> str:
    """``text`` with each table's current content between its markers; a missing marker raises."""
    for name, table in tables.items():
        begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
        pattern = re.compile(re.escape(begin) + r"\n.*?" + re.escape(end), re.DOTALL)
        if len(pattern.findall(text)) != 1:
            raise SystemExit(f"the markers {begin} … {end} must be there exactly once")
        block = f"{begin}\n{table()}\n{end}"
        text = pattern.sub(lambda _: block, text)  # noqa: B023 - used at once
    return text


def stale() -> list[str]:
    """The files whose tables are out of date."""
    files = ((name, ROOT / name) for name in TABLES)
    return [n for n, p in files if rendered(p.read_text(encoding="utf-8"), TABLES[n]) != p.read_text("utf-8")]


def main(argv: list[str]) -> int:
    """Write, or with ``--check`` only compare."""
    if argv == ["--check"]:
        for name in (names := stale()):
            print(f"{name} is out of date: run make docs", file=sys.stderr)
        return 1 if names else 0
    for name in stale():
        path = ROOT / name
        path.write_text(rendered(path.read_text(encoding="utf-8"), TABLES[name]), encoding="utf-8")
        print(f"wrote {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
