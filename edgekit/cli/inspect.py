"""``edgekit inspect``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import click

import edgekit
from edgekit.artifact import manifest
from edgekit.artifact.explorer.write import draw_named, write
from edgekit.artifact.inspect import Reach, StoredWeight, Takes, inspect_file, reach
from edgekit.artifact.summary import messages, size
from edgekit.artifact.summary import table as summary
from edgekit.cli._contained import contain
from edgekit.cli._graph import graph_option, show_graph
from edgekit.cli._options import json_flag
from edgekit.cli._output import end_with, listing, number, print_json, say, show, table
from edgekit.core.config import Options
from edgekit.core.contained import step
from edgekit.core.structure import to_builtins
from edgekit.errors import EdgekitError, SourceError

_MOST = 40
"""Lines of a table that a stranger's file may make as long as it likes; ``--layers`` and ``--json`` have all."""
_LONGEST = 60
"""Characters of a name out of such a file."""


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--layers", is_flag=True, help="Also show every weight: its type, its scales, the bytes it takes."
)
@graph_option
@json_flag
def inspect(file: Path, layers: bool, graph: Path | None, as_json: bool) -> None:
    """Show what is in FILE: an artifact's directory, or a model file of any origin. Nothing of it is executed.

    Files are .onnx, .tflite, .xml (OpenVINO), .engine, .pt2, .gguf and .ekz: inputs and outputs, operators, parameters,
    multiply-accumulates, how weights are quantized, and which targets can be built from it.

    Example: edgekit inspect model.onnx --layers
    """
    contain(str(file), Options(), file)
    with step("inspect", quick=True):
        drawn = None if graph is None else draw_named(file)
        _inspect(file, layers, as_json)
    if graph is not None and drawn is not None:
        show_graph(write(drawn, graph), as_json=as_json)


def _inspect(file: Path, layers: bool, as_json: bool) -> None:
    if file.is_dir() or file.name == manifest.FILE_NAME:
        _folder(file, layers, as_json)
        return
    inspection = inspect_file(file)
    inspection = replace(inspection, targets=reach.of(inspection))
    print_json(inspection) if as_json else _file(inspection, layers)


def _folder(file: Path, layers: bool, as_json: bool) -> None:
    """An artifact: what its manifest says, and what is in its model."""
    artifact = edgekit.open(file)
    errors: list[EdgekitError] = []
    try:
        manifest.check_files(manifest.read(file))
    except SourceError as error:  # what is shown is of other files
        errors.append(error)
    inspection = None
    try:
        inspection = inspect_file(artifact.model)
    except EdgekitError as error:
        errors += [] if errors else [error]
    if as_json:
        print_json({**to_builtins(artifact.manifest), "inspection": inspection})
    else:
        _artifact(artifact)
        if inspection is not None:
            say("")
            _content(inspection, layers)
    end_with(errors)


def _artifact(artifact: edgekit.Artifact) -> None:
    m = artifact.manifest
    show(summary([artifact]))
    _tensors(m.inputs, m.outputs)
    table(
        "gates",
        ("gate", "value", "limit", "verdict", ""),
        [
            (g.name, number(g.value), number(g.limit), str(g.verdict), message)
            for g, message in zip(m.gates, messages(m.gates), strict=True)
        ],
    )
    if m.placement is not None:
        kernels = ", ".join(f"{k} ×{n}" for k, n in list(m.placement.kernels.items())[:12])
        table("placement", ("what", ""), [("operators", str(m.placement.operators)), ("kernels", kernels)])
        rows = [(f.op, str(f.count), f"{f.share:.1%}", f.reason) for f in m.placement.fallbacks]
        if rows:
            table("not as asked", ("operator", "count", "share of MACs", "why"), rows)
    table(
        "steps",
        ("step", "seconds", "output"),
        [(s.name, f"{s.seconds:.3g}", s.output_sha256[:12]) for s in m.steps],
    )
    table("files", ("file", "size", "sha256"), [(f.name, size(f.size), f.sha256[:16]) for f in m.files])
    for note in m.notes:
        say(f"note: {note}", indent="  ")


def _file(inspection: edgekit.Inspection, layers: bool) -> None:
    _content(inspection, layers)
    _targets(inspection.targets)


def _content(inspection: edgekit.Inspection, layers: bool) -> None:
    say(f"{inspection.path}: {inspection.format}, {size(inspection.size)}")
    facts = [f"{k} {_fact(v)}" for k, v in inspection.facts.items() if v not in ("", [], {}, None)]
    if facts:
        say(", ".join(facts), indent="  ")
    counts = []
    if inspection.parameters is not None:
        counts.append(f"{inspection.parameters:,} parameters")
    if inspection.macs is not None:
        counts.append(f"{inspection.macs:,} multiply-accumulates")
    if counts:
        say(", ".join(counts))
    for note in inspection.notes:
        say(f"note: {note}", indent="  ")
    _tensors(inspection.inputs, inspection.outputs)
    if inspection.operators:
        say("")
        _operators(inspection.operators.items())
    _weights(inspection)
    if layers and inspection.layers:
        say("")
        table(
            "layers",
            ("weight", "operator", "type", "scales", "shape", "size"),
            [_layer(w) for w in inspection.layers],
        )


def _fact(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {_fact(v)}" for k, v in value.items())
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _operators(counts: Iterable[tuple[str, int]]) -> None:
    """In one paragraph: there may be a hundred kinds."""
    items = [f"{_short(name)} ×{count:,}" for name, count in counts]
    more = [f"and {len(items) - _MOST} kinds more (--json)"] if len(items) > _MOST else []
    listing("operators", [*items[:_MOST], *more])


def _weights(inspection: edgekit.Inspection) -> None:
    """By type of storage; of layers' weights also what shares a scale."""
    groups: dict[tuple[str, ...], list[StoredWeight]] = {}
    for weight in inspection.layers:
        groups.setdefault((weight.dtype, _scales(weight), weight.op or "-", weight.input or "-"), []).append(
            weight
        )
    if groups:
        rows = [
            (*key, str(len(w)), f"{sum(x.count for x in w):,}", size(sum(x.size for x in w)))
            for key, w in sorted(groups.items(), key=lambda item: -sum(x.size for x in item[1]))
        ]
        say("")
        table(
            "weights of layers",
            ("stored as", "scales", "operator", "input", "layers", "values", "size"),
            rows[:_MOST],
        )
    if inspection.weights:
        say("")
        listing("all constants", [f"{kind} {size(count)}" for kind, count in inspection.weights.items()])


def _scales(weight: StoredWeight) -> str:
    if weight.scales is None:
        return "-"
    return f"per {weight.scales}" + (f" of {weight.block}" if weight.block else "")


def _layer(weight: StoredWeight) -> tuple[str, ...]:
    shape = " × ".join(map(str, weight.shape))
    return (_short(weight.name), weight.op or "-", weight.dtype, _scales(weight), shape, size(weight.size))


def _targets(rows: Sequence[Reach]) -> None:
    """Targets that share an answer stand together."""
    groups: dict[tuple[Takes, str], list[str]] = {}
    for row in rows:
        groups.setdefault((row.takes, row.reason), []).append(row.target)
    if len(groups) == 1 and (Takes.NO, rows[0].reason) in groups:
        say("")
        say(f"no target can be built from it: {rows[0].reason}", indent="  ")
        return
    titles = {
        Takes.YES: "can be built from it",
        Takes.UNCHECKED: "can perhaps be built from it",
        Takes.NO: "cannot be built from it",
    }
    for takes, title in titles.items():
        for (answer, reason), names in groups.items():
            if answer is takes:
                say("")
                say(f"{title}{': ' + reason if reason else ''}", indent="  ")
                listing("", names)


def _tensors(inputs: tuple[edgekit.TensorSpec, ...], outputs: tuple[edgekit.TensorSpec, ...]) -> None:
    rows = []
    for kind, specs in (("input", inputs), ("output", outputs)):
        for s in specs:
            affine = "-" if s.scale is None else f"{s.scale:.6g} × (q - {s.zero_point})"
            shape = " × ".join(map(_short, map(str, s.shape))) or "scalar"
            rows.append((kind, _short(s.name), s.dtype, shape, s.layout or "-", affine))
    columns = ("", "name", "type", "shape", "layout", "value")
    used = [i for i in range(len(columns)) if i < 4 or any(row[i] != "-" for row in rows)]
    if rows:
        say("")
        table("tensors", [columns[i] for i in used], [[row[i] for i in used] for row in rows[:_MOST]])
    if len(rows) > _MOST:
        say(f"… and {len(rows) - _MOST} more (--json)")


def _short(name: str) -> str:
    """A name that a stranger's file may make as long as it likes; its two ends are what tells it from others."""
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST // 2]}…{name[-(_LONGEST // 2 - 1) :]}"
