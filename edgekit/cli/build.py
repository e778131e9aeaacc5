"""``edgekit build``."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from edgekit.core.config import Options
    from edgekit.pipeline.build import Outcome, Request


@click.command()
@click.argument("source")
@click.option("--target", "-t", metavar="T[,T…]|all", help="What to build for; edgekit targets lists them.")
@click.option(
    "--calib", metavar="DATA", help="Calibration inputs: file.py:callable, a directory of .npz or images."
)
@click.option(
    "--eval", "evaluate", metavar="DATA", help="Evaluation inputs, with labels where there are any."
)
@click.option("--recipe", metavar="FILE|STEPS", help="Compress first: a recipe file, or steps on one line.")
@click.option("--task", metavar="TASK", help="What a recipe's steps learn; see edgekit compress.")
@click.option("--train", metavar="DATA", help="Labelled inputs that a recipe's steps train on.")
@click.option("--metric", metavar="FILE:CALLABLE", help="Your own task metric: (outputs, labels) → float.")
@click.option("--max-drop", metavar="1%", help="How far the task metric may fall below the reference.")
@click.option("--method", metavar="NAME", help="Range method: auto, minmax, percentile, entropy, mse …")
@click.option(
    "--exclude", multiple=True, metavar="PATTERN", help="Keep layers in float: module path, node, operator."
)
@click.option(
    "--int16", multiple=True, metavar="PATTERN", help="Give layers INT16 activations, where there are any."
)
@click.option(
    "--correct", "corrections", multiple=True, metavar="NAME", help="Weight corrections: auto, equalize …"
)
@click.option("--no-speed-gate", is_flag=True, help="Do not time INT8 artifacts against their fp32 siblings.")
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    help="How many calibration samples to use at most, spread over all of them.",
)
@click.option("--out", "-o", metavar="DIR", help="Where artifacts go: DIR/<target>/ (default: build).")
@click.option(
    "--device", metavar="NAME", help="Quantize for this device's processor, and run and gate there."
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="An option of the target, or fold_preprocessing=true, pixels=uint8.",
)
@click.option("--allow-not-run", is_flag=True, help="Accept artifacts that this machine cannot run.")
@click.option(
    "--accept-data", is_flag=True, help="Calibrate even with samples that the calibration doctor refuses."
)
@click.option("--trust", is_flag=True, help="Allow sources that execute code when loaded (pickles).")
@click.option("--network", is_flag=True, help="Allow a source to download.")
@click.option("--dry-run", is_flag=True, help="Check everything that can be checked and say what would run.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def build(
    source: str,
    target: str | None,
    evaluate: str | None,
    no_speed_gate: bool,
    settings: tuple[str, ...],
    dry_run: bool,
    as_json: bool,
    **flags: Any,
) -> None:
    """Build, verify and gate artifacts of SOURCE for one or more targets.

    SOURCE is file.py:factory, package.module:factory, model.pt2, model.onnx, hf:DIR, a SavedModel
    directory or a .keras/.h5 file. Each artifact is run on its real runtime and compared with the source;
    what does not pass its gates ends in DIR/<target>.failed and a non-zero exit.
    """
    from edgekit.cli._output import progress
    from edgekit.core import config
    from edgekit.core.store import Store
    from edgekit.pipeline.build import check, run
    from edgekit.pipeline.stages import BuildContext

    options = config.load(
        {**flags, "target": target, "eval": evaluate, "set": config.parse_settings(settings)}
    )
    if no_speed_gate:
        options = replace(options, speed_gate=False)
    request = _request(source, options)
    if dry_run:
        check(request)
        _plan(request, as_json)
        return
    with progress() as shown:
        outcomes = run(request, BuildContext(store=Store(), options=options, progress=shown))
    _finish(outcomes, options, as_json)


def _request(source: str, options: Options) -> Request:
    from edgekit.core import targets
    from edgekit.load import parse
    from edgekit.pipeline.build import Request

    return Request(
        source=parse(source),
        targets=targets.select(options.target),
        options=options,
        calibration=options.calib or None,
        evaluation=options.eval or None,
    )


def _plan(request: Request, as_json: bool) -> None:
    from edgekit.cli._output import print_json, table
    from edgekit.core import plugins

    rows = [(t, plugins.backend(t.backend).available()) for t in request.targets]
    if as_json:
        print_json(
            {"source": request.source.text, "targets": [{"name": t.name, "available": a} for t, a in rows]}
        )
        return
    table(
        f"{request.source.text} ({request.source.kind})",
        ("target", "calibration", "runs here", "fixed shapes"),
        [
            (
                t.name,
                "needed" if t.needs_calibration else "-",
                "yes" if a.usable else a.why_not,
                str(t.fixed_shapes),
            )
            for t, a in rows
        ],
    )


def _finish(outcomes: tuple[Outcome, ...], options: Options, as_json: bool) -> None:
    from edgekit.cli._output import print_json, show_error, summary
    from edgekit.pipeline.build import failure

    errors = [(o, failure(o, options)) for o in outcomes]
    if as_json:
        print_json({"targets": [_entry(o, e) for o, e in errors]})
    else:
        summary([o.artifact for o in outcomes if o.artifact is not None])
    failed = [e for _, e in errors if e is not None]
    for error in failed:
        show_error(error, as_json=False)
    if failed:
        raise click.exceptions.Exit(failed[0].exit_code)


def _entry(outcome: Outcome, error: Any) -> dict[str, Any]:
    from edgekit.core.structure import to_builtins

    entry: dict[str, Any] = {"target": outcome.target.name, "status": "error"}
    if outcome.artifact is not None:
        entry["status"] = outcome.artifact.manifest.status
        entry["directory"] = str(outcome.artifact.directory)
        entry["manifest"] = to_builtins(outcome.artifact.manifest)
    if error is not None:
        entry["error"] = error.to_json()
    return entry
