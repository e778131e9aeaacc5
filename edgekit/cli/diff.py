"""``edgekit diff``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import click

from edgekit.artifact.explorer import KINDS
from edgekit.artifact.explorer.write import draw_named, write
from edgekit.artifact.manifest import BUILT, GoldenRecord
from edgekit.cli._contained import contain
from edgekit.cli._graph import graph_option, show_graph
from edgekit.cli._options import Grouped, declared, json_flag
from edgekit.cli._output import paint, print_json, progress, say, show_error, table
from edgekit.core.config import Options
from edgekit.diff.apply import Rebuild, apply
from edgekit.diff.compare import Diff, compare
from edgekit.diff.order import is_artifact
from edgekit.diff.overlay import of_walk
from edgekit.diff.report import LayerDiff, StageDiff
from edgekit.diff.suggest import Suggestion
from edgekit.errors import ConfigError, DataError, EdgekitError, GateFailedError, UsageError
from edgekit.pipeline.api import context as build_context
from edgekit.pipeline.stages import BuildContext

_ROWS = 5
_SAME_DB = 100.0
"""Stages this close need no table: reordered float32 sums."""


@dataclass(frozen=True, kw_only=True)
class Applied:
    """What the rebuilt artifact gave beside the old one; figures are SNR in dB of the golden outputs."""

    suggestion: Suggestion
    status: str
    directory: str
    before_db: float | None
    after_db: float | None


@click.command(cls=Grouped)
@click.argument("a")
@click.argument("b", required=False, default="")
@click.option(
    "--data", metavar="DATA", help="Inputs to compare with (default: the artifact's golden inputs)."
)
@click.option(
    "--min-snr", type=float, metavar="DB", help="Also fail when the last form's outputs are below this SNR."
)
@click.option(
    "--apply", "build_again", is_flag=True, help="Build again with the first suggestion, and verify it."
)
@click.option("--out", "-o", metavar="DIR", help="Where --apply builds to (default: where the artifact is).")
@click.option("--all", "everything", is_flag=True, help="Show every layer, not the most suspicious ones.")
@graph_option
@json_flag
@declared("diff")
def diff(
    a: str, b: str, options: Options, data: str | None, min_snr: float | None, build_again: bool, out: str | None,
    everything: bool, graph: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Find the layer where B begins to differ from A, and say what to build differently.

    A and B are any of: a SOURCE as for edgekit build, an artifact's directory, a .onnx or a .tflite file. The finer
    of the two is the reference, whatever their order. An artifact alone is compared with its source, through the
    ONNX graphs between them. Every layer is fed with the earlier form's tensors: its error is its own.

    Exits with 0 when rounding explains every difference, with 5 when it does not.
    """
    if min_snr is not None and not math.isfinite(min_snr):
        raise ConfigError(f"--min-snr {min_snr}: no limit", hint="a number of decibels, like 30")
    names = tuple(filter(None, (a, b)))
    if graph is not None:
        _to_draw(names)
    contain(" and ".join(names), options, *map(Path, names), parts=names)
    with progress() as shown:
        context = build_context(options, shown.tell)
        result = compare(a, b, data, context)
        applied = _apply(result, options, out or "", context) if build_again else None
    if as_json:
        print_json(_document(result, applied))
    else:
        _show(result, applied, len(result.walk.stages[0].layers) if everything else _ROWS)
    if graph is not None:
        _draw(result, _to_draw(names), graph, as_json=as_json)
    error = None if applied is not None and applied.status in BUILT else _failure(result, min_snr)
    if error is not None:
        show_error(error)
        raise click.exceptions.Exit(error.exit_code)


def _to_draw(names: tuple[str, ...]) -> Path:
    """The artifact or model file among what is compared, the last that was named."""
    for path in map(Path, reversed(names)):
        if is_artifact(str(path)) or (path.suffix.lower() in KINDS and path.is_file()):
            return path
    raise UsageError(
        "--graph shows a model file, and none is compared", hint="name an artifact, a .onnx or a .tflite file"
    )


def _draw(diff: Diff, file: Path, folder: Path, *, as_json: bool) -> None:
    """Lay what was found over the graph of the artifact that was compared, else of ``file``."""
    artifact = diff.chain.artifact
    drawn = draw_named(file if artifact is None else artifact.directory)
    found = list(of_walk(drawn.graphs, diff.walk))
    show_graph(write(drawn, folder, found), found, as_json=as_json)


def _apply(diff: Diff, options: Options, out: str, context: BuildContext) -> Applied | None:
    artifact = diff.chain.artifact
    if artifact is None:
        raise UsageError(
            "--apply builds an artifact again, and B is none", hint="edgekit diff ARTIFACT --apply"
        )
    if not diff.suggestions:
        return None
    rebuild = Rebuild(source=diff.chain.source, calibration=options.calib, evaluation=options.eval, out=out)
    outcome = apply(artifact, diff.suggestions[0], rebuild, context)
    if outcome.error is not None:
        raise outcome.error
    assert outcome.artifact is not None
    return Applied(
        suggestion=diff.suggestions[0],
        status=outcome.artifact.manifest.status,
        directory=str(outcome.artifact.directory),
        before_db=_golden_db(artifact.manifest.golden),
        after_db=_golden_db(outcome.artifact.manifest.golden),
    )


def _golden_db(golden: GoldenRecord | None) -> float | None:
    return golden.parity.snr_db if golden is not None and golden.parity is not None else None


def _show(diff: Diff, applied: Applied | None, rows: int) -> None:
    found = diff.walk
    for note in found.notes:
        say(f"note: {note}")
    for stage in found.stages:
        _stage(stage, rows)
    start, broken = found.starts_at, found.broken
    _shipped(diff)
    if start is None or broken is None:
        figure = f"outputs {found.output_db:.1f} dB" if found.compared else "no output of A is finite"
        say(f"no layer is off by more than rounding explains; {figure}")
        return
    what = {
        "weights": "what it computes",
        "clipping": "its output is clipped",
        "rounding": "its output's scale",
        "scale": "one scale for values of unlike size",
    }
    why = f" ({what[start.cause]})" if start.cause else ""
    place = paint(start.place, bold=True)
    say(f"starts at {place} in {broken.after}: {start.op} {start.node}{why}, {_cost(start)}")
    others = [layer for layer in broken.wrong if layer is not start]
    for also in others[:_ROWS]:
        say(f"also off: {also.place} ({also.op} {also.node}), {_cost(also)}")
    if len(others) > _ROWS:
        say(f"and {len(others) - _ROWS} layers more")
    for idea in diff.suggestions:
        say(f"try: {idea.text + ': ' if idea.text else ''}{idea.why}")
    if applied is not None:
        figures = f"{_db(applied.before_db)} → {_db(applied.after_db)}"
        with_what = applied.suggestion.text or "the data given"
        say(f"built again with {with_what}: {applied.status}, {figures}, {applied.directory}")


def _shipped(diff: Diff) -> None:
    shipped = diff.shipped
    if shipped is not None and shipped.why:
        say(f"note: not run as it ships: {shipped.why}")
    if shipped is None or shipped.db is None:
        return
    fused = (
        ": what the runtime computes together is not what it computes layer by layer" if shipped.fused else ""
    )
    say(f"as it ships, without a look between its layers: outputs {shipped.db:.1f} dB{fused}")


def _cost(layer: LayerDiff) -> str:
    if layer.loses and layer.explained is not None:
        return f"which alone leaves a channel of the outputs {max(layer.explained, 0):.0%} of its variance"
    return f"{layer.excess_db:.0f} dB beyond rounding"


def _stage(stage: StageDiff, rows: int) -> None:
    if not stage.wrong and stage.output_db > _SAME_DB and rows == _ROWS:
        say(f"{stage.before} → {stage.after}: {len(stage.layers)} layers agree, {_db(stage.output_db)}")
        return
    title = f"{stage.before} → {stage.after}: outputs {stage.output_db:.1f} dB, {stage.source_db:.1f} dB from the first"
    columns = (
        "",
        "module",
        "node",
        "operator",
        "local dB",
        "accumulated dB",
        "beyond rounding dB",
        "alone dB",
        "",
    )
    lines = []
    for rank, layer in enumerate(stage.layers[:rows], start=1):
        figures = (layer.local_db, layer.accumulated_db, layer.excess_db, layer.alone_db)
        cells = [_plain(figure) for figure in figures]
        lines.append(
            (str(rank), layer.module or "-", layer.node, layer.op, *cells, "off" if layer.wrong else "")
        )
    table(title, columns, lines)


def _plain(value: float | None) -> str:
    if value is None:
        return "-"
    return "exact" if value >= 200 else "none" if value <= -200 else f"{value:.1f}"


def _db(value: float | None) -> str:
    return "?" if value is None else f"{value:.1f} dB"


def _document(diff: Diff, applied: Applied | None) -> dict[str, object]:
    found, start = diff.walk, diff.starts_at
    return {
        "differs": start is not None,
        "starts_at": start,
        "stage": found.broken.after if found.broken else None,
        "samples": found.samples,
        "output_db": found.output_db,
        "shipped": diff.shipped,
        "stages": found.stages,
        "suggestions": [{"flags": i.flags, "target": i.target, "why": i.why} for i in diff.suggestions],
        "applied": applied,
        "notes": found.notes,
    }


def _failure(diff: Diff, min_snr: float | None) -> EdgekitError | None:
    found, start = diff.walk, diff.starts_at
    if start is not None:
        return GateFailedError(
            f"{start.place} computes something else than in {found.broken.before if found.broken else 'A'}",
            hint="see the suggestions above; edgekit diff --json has every layer",
            gates=["diff"],
        )
    if diff.shipped is not None and diff.shipped.fused:
        return GateFailedError(
            f"as it ships its outputs are {diff.shipped.db:.1f} dB from those of A, layer by layer "
            f"{found.output_db:.1f}: the runtime computes wrongly what it fuses",
            hint="leave layers in float, from the outputs on (--exclude), or take another target; and report it with "
            "this model",
            gates=["diff"],
        )
    if not found.compared:
        return DataError(
            "no output of A is finite on these inputs: there is nothing to compare with",
            hint="give inputs that the model is made for (--data), or look at the model itself",
        )
    if min_snr is not None and found.output_db < min_snr:
        return GateFailedError(
            f"outputs are {found.output_db:.1f} dB from those of A, the limit is {min_snr:g} dB",
            hint="rounding adds up without one layer being wrong: try a target with more bits, or --max-drop",
            gates=["min-snr"],
        )
    return None
