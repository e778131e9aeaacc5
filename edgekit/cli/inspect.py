"""``edgekit inspect``."""

from __future__ import annotations

from pathlib import Path

import click

import edgekit
from edgekit.artifact import manifest
from edgekit.artifact.inspect import inspect_file
from edgekit.artifact.summary import size
from edgekit.artifact.summary import table as summary
from edgekit.cli._contained import contain
from edgekit.cli._options import json_flag
from edgekit.cli._output import end_with, harmless, number, print_json, say, show, table
from edgekit.core.config import Options
from edgekit.core.contained import step
from edgekit.errors import SourceError


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@json_flag
def inspect(file: Path, as_json: bool) -> None:
    """Show what is in FILE: an artifact's directory, or a .onnx or .tflite file of any origin."""
    contain(str(file), Options(), file)
    with step("inspect", quick=True):
        _inspect(file, as_json)


def _inspect(file: Path, as_json: bool) -> None:
    if file.is_dir() or file.name == manifest.FILE_NAME:
        artifact = edgekit.open(file)
        print_json(artifact.manifest) if as_json else _artifact(artifact)
        try:
            manifest.check_files(manifest.read(file))
        except SourceError as error:  # what is shown is of other files
            end_with([error])
        return
    inspection = inspect_file(file)
    print_json(inspection) if as_json else _file(inspection)


def _artifact(artifact: edgekit.Artifact) -> None:
    m = artifact.manifest
    show(summary([artifact]))
    _tensors(m.inputs, m.outputs)
    table(
        "gates",
        ("gate", "value", "limit", "verdict", ""),
        [(g.name, number(g.value), number(g.limit), str(g.verdict), g.message) for g in m.gates],
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
        say(f"note: {harmless(note)}")


def _file(inspection: edgekit.Inspection) -> None:
    facts = ", ".join(f"{k} {v}" for k, v in inspection.facts.items() if v not in ("", [], None))
    say(harmless(f"{inspection.path}: {inspection.format}, {size(inspection.size)}, {facts}"))
    _tensors(inspection.inputs, inspection.outputs)
    table("operators", ("operator", "count"), [(k, str(v)) for k, v in inspection.operators.items()])
    table("weights", ("stored as", "size"), [(k, size(v)) for k, v in inspection.weights.items()])
    if inspection.macs is not None:
        say(f"{inspection.macs:,} multiply-accumulates")


def _tensors(inputs: tuple[edgekit.TensorSpec, ...], outputs: tuple[edgekit.TensorSpec, ...]) -> None:
    rows = []
    for kind, specs in (("input", inputs), ("output", outputs)):
        for s in specs:
            affine = "-" if s.scale is None else f"{s.scale:.6g} × (q - {s.zero_point})"
            rows.append((kind, s.name, s.dtype, " × ".join(map(str, s.shape)), s.layout or "-", affine))
    table("tensors", ("", "name", "type", "shape", "layout", "value"), rows)
