"""``edgekit build``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from edgekit.cli._options import Grouped, declared, json_flag

if TYPE_CHECKING:
    from edgekit.core.config import Options
    from edgekit.pipeline.build import Outcome, Request


@click.command(cls=Grouped)
@click.argument("source")
@click.option("--dry-run", is_flag=True, help="Check everything that can be checked and say what would run.")
@json_flag
@declared("build")
def build(source: str, options: Options, dry_run: bool, as_json: bool) -> None:
    """Build, verify and gate artifacts of SOURCE for one or more targets.

    SOURCE is file.py:factory, package.module:factory, model.pt2, model.onnx, hf:DIR, a SavedModel
    directory or a .keras/.h5 file. Each artifact is run on its real runtime and compared with the source;
    what does not pass its gates ends in DIR/<target>.failed and a non-zero exit.
    """
    from edgekit.cli._output import progress
    from edgekit.core.store import Store
    from edgekit.pipeline.build import check, run
    from edgekit.pipeline.stages import BuildContext

    request = _request(source, options)
    if dry_run:
        check(request)
        _plan(request, as_json)
        return
    with progress() as shown:
        outcomes = run(request, BuildContext(store=Store(report=shown.note), options=options, progress=shown))
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
