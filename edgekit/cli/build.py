"""``edgekit build``."""

from __future__ import annotations

import click

import edgekit
from edgekit.artifact.summary import table as summary
from edgekit.cli._contained import contain_source
from edgekit.cli._options import Grouped, declared, json_flag
from edgekit.cli._output import end_with, print_json, progress, say, show, table
from edgekit.core import plugins, targets
from edgekit.core.config import Options
from edgekit.load.spec import parse


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
    contain_source(parse(source), options)
    if dry_run:
        _plan(source, options, as_json)
        return
    with progress() as shown:
        result = edgekit.build(source, options=options, progress=shown.tell)
    if as_json:
        print_json({"targets": _entries(result, options)})
    else:
        show(
            summary([a for a in (*result.artifacts, *(f.artifact for f in result.failures)) if a is not None])
        )
        if len(options.target) > 1 and result.artifacts:
            say(f"edgekit report {options.out} writes a page about all of them", err=True)
    end_with([failure.error for failure in result.failures], [failure.target for failure in result.failures])


def _plan(source: str, options: Options, as_json: bool) -> None:
    from edgekit.pipeline import api

    request = api.checked(source, options)
    rows = [(t, plugins.backend(t.backend).available()) for t in request.targets]
    if as_json:
        document = [{"name": t.name, "available": a} for t, a in rows]
        print_json({"source": request.source.text, "targets": document})
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


def _entries(result: edgekit.BuildResult, options: Options) -> list[dict[str, object]]:
    entries = {a.target: _entry(a, None) for a in result.artifacts}
    entries |= {f.target: _entry(f.artifact, f.error) | {"target": f.target} for f in result.failures}
    return [entries[target.name] for target in targets.select(options.target)]


def _entry(artifact: edgekit.Artifact | None, error: edgekit.EdgekitError | None) -> dict[str, object]:
    entry: dict[str, object] = {"status": "error"}
    if artifact is not None:
        entry = {"target": artifact.target, "status": artifact.manifest.status}
        entry |= {"directory": str(artifact.directory), "manifest": artifact.manifest}
    if error is not None:
        entry["error"] = error.to_json()
    return entry
