"""``edgekit demo``."""

from __future__ import annotations

from pathlib import Path

import click

import edgekit
from edgekit.artifact.summary import table as summary
from edgekit.cli._output import end_with, progress, say, show
from edgekit.core import plugins
from edgekit.core.config import Options
from edgekit.errors import SourceError
from edgekit.report import write

TARGETS = "ort-fp32,ort-int8,openvino-fp32,openvino-int8,tflite-fp32,tflite-int8"


@click.command()
@click.option("--target", "-t", default=TARGETS, show_default=True, help="What to build for.")
@click.option("--out", "-o", default="build/demo", show_default=True, help="Where the artifacts go.")
def demo(target: str, out: str) -> None:
    """Build, verify, benchmark and report the digits example: real handwriting, no questions.

    Trains a small network on scikit-learn's digits (seconds), takes it to each target, runs every
    artifact on its real runtime, and ends with one table and a report.
    """
    example = plugins.data_dir() / "examples" / "digits"
    if not example.is_dir():
        raise SourceError(f"the digits example is not at {example}", hint="run the demo from a checkout")
    options = Options.load(
        {
            "target": target,
            "out": out,
            "calib": f"{example}/data.py:calibration",
            "eval": f"{example}/data.py:evaluation",
        }
    )
    with progress() as shown:
        result = edgekit.build(f"{example}/model.py:digits", options=options, progress=shown.tell)
        settings = edgekit.BenchSettings(processes=5, seconds=0.3)
        figures = []
        with shown.task("benchmark", total=len(result.artifacts)) as task:
            for artifact in result.artifacts:
                figures.append(artifact.bench(settings=settings))
                task.advance()
    show(summary([m.artifact for one in figures for m in one.measured]))
    if result.artifacts:
        page = Path(out) / "report.html"
        write([a.directory for a in result.artifacts], page)
        say(f"report: {page}")
    end_with([*(f.error for f in result.failures), *(e for one in figures for e in one.failures)])
