"""``edgekit demo``."""

from __future__ import annotations

import click

TARGETS = "ort-fp32,ort-int8,openvino-fp32,openvino-int8,tflite-fp32,tflite-int8"


@click.command()
@click.option("--target", "-t", default=TARGETS, show_default=True, help="What to build for.")
@click.option("--out", "-o", default="build/demo", show_default=True, help="Where the artifacts go.")
def demo(target: str, out: str) -> None:
    """Build, verify, benchmark and report the digits example: real handwriting, no questions.

    Trains a small network on scikit-learn's digits (seconds), takes it to each target, runs every
    artifact on its real runtime, and ends with one table.
    """
    from edgekit.artifact.measure import measure
    from edgekit.cli._output import progress, show_error, summary
    from edgekit.core import plugins, targets
    from edgekit.core.config import Options
    from edgekit.core.store import Store
    from edgekit.devices.bench import BenchSettings
    from edgekit.errors import SourceError
    from edgekit.load import parse
    from edgekit.pipeline.build import Request, failure, run
    from edgekit.pipeline.stages import BuildContext

    example = plugins.data_dir() / "examples" / "digits"
    if not example.is_dir():
        raise SourceError(f"the digits example is not at {example}", hint="run the demo from a checkout")
    options = Options.load({"target": target, "out": out})
    request = Request(
        source=parse(f"{example}/model.py:digits"),
        targets=targets.select(options.target),
        options=options,
        calibration=f"{example}/data.py:calibration",
        evaluation=f"{example}/data.py:evaluation",
    )
    with progress() as shown:
        outcomes = run(request, BuildContext(store=Store(report=shown.note), options=options, progress=shown))
        passed = [o.artifact for o in outcomes if o.artifact is not None and failure(o, options) is None]
        with shown.task("benchmark", total=len(passed)) as task:
            settings = BenchSettings(processes=5, seconds=0.3)
            measured, failed = measure(passed, settings=settings, started=lambda _: task.advance())
    summary([m.artifact for m in measured])
    errors = [*(e for o in outcomes if (e := failure(o, options)) is not None), *failed]
    for error in errors:
        show_error(error, as_json=False)
    if errors:
        raise click.exceptions.Exit(errors[0].exit_code)
