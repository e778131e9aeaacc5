"""``edgekit bench``."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgekit.artifact.measure import Measured


@click.command()
@click.argument("artifacts", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--vs", "baseline", type=click.Path(path_type=Path), help="Compare each with this artifact, interleaved."
)
@click.option(
    "--processes", type=click.IntRange(min=1), default=10, show_default=True, help="Fresh processes each."
)
@click.option(
    "--seconds", type=click.FloatRange(min=0.01), default=0.5, show_default=True, help="Steady state each."
)
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    help="Threads of the runtime. (default: as the artifact was built)",
)
@click.option("--cpus", default="", metavar="LIST", help="Processors to run on, as for taskset: 0-3,6.")
@click.option(
    "--governor",
    default="",
    metavar="NAME",
    help="Set the processors' frequency governor while it runs, then put it back. Needs the right to write it.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=1),
    default=600,
    show_default=True,
    help="Seconds that one process may take.",
)
@click.option(
    "--device", default="local", show_default=True, metavar="D[,D…]", help="Where; devices run side by side."
)
@click.option(
    "--binary",
    default="",
    metavar="PATH",
    help="Time with the maker's program (benchmark_model, onnxruntime_perf_test, trtexec), as where no Python runs.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def bench(
    artifacts: tuple[Path, ...],
    baseline: Path | None,
    processes: int,
    seconds: float,
    threads: int | None,
    cpus: str,
    governor: str,
    timeout: float,
    device: str,
    binary: str,
    as_json: bool,
) -> None:
    """Measure latency and memory of ARTIFACTS, here or on devices over SSH or adb.

    Every replicate is a fresh process. Load, first inference and steady state are kept apart; raw samples
    are kept beside the manifest. With --vs the verdict is faster, slower or no detectable difference.
    What a run that is cut short has measured is kept, and marked partial. Directories that hold no
    artifact, and artifacts that cannot run here, are named and left out.
    """
    from edgekit.artifact import manifest
    from edgekit.artifact.measure import measure
    from edgekit.cli._output import print_json, progress, show_error
    from edgekit.devices import catalogue
    from edgekit.devices.bench import BenchSettings, processors
    from edgekit.errors import UsageError

    chosen = [manifest.read(p) for p in artifacts if p.is_dir() and p.suffix != ".failed"]
    runnable = [a for a in chosen if a.manifest.status != "not-run"]
    for artifact in chosen:
        if artifact not in runnable:
            click.echo(
                f"{artifact.target}: not run where it was built; edgekit verify it here first", err=True
            )
    if not runnable:
        raise UsageError(
            "there is no artifact to measure", hint="name artifact directories: edgekit bench build/*"
        )
    chosen_devices = catalogue.select(device)
    if binary:
        chosen_devices = tuple(replace(d, options={**d.options, "binary": binary}) for d in chosen_devices)
    settings = BenchSettings(
        processes=processes,
        seconds=seconds,
        threads=threads or 0,
        cpus=processors(cpus) if cpus else (),
        governor=governor,
        timeout=timeout,
    )
    with noting(), progress() as shown, shown.task("measure", total=len(runnable)) as task:
        found, errors = measure(
            runnable,
            baseline=manifest.read(baseline) if baseline else None,
            devices=chosen_devices,
            settings=settings,
            started=lambda _: task.advance(),
        )
    if as_json:
        print_json({"measurements": [_entry(m) for m in found], "errors": [e.to_json() for e in errors]})
    else:
        _show(found)
    for error in errors:
        show_error(error, as_json=False)
    if errors:
        raise click.exceptions.Exit(errors[0].exit_code)


@contextlib.contextmanager
def noting() -> Iterator[None]:
    """An interrupt's notes are shown: they say what was kept."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        for note in getattr(interrupt, "__notes__", ()):
            click.echo(note, err=True)
        raise


def _entry(measured: Measured) -> dict[str, object]:
    difference = measured.comparison.difference if measured.comparison else None
    return {
        "artifact": str(measured.artifact.directory),
        "target": measured.artifact.target,
        "device": measured.measurement.device,
        "measurement": measured.measurement,
        "difference": difference,
    }


def _show(found: list[Measured]) -> None:
    from edgekit.cli._output import size, table

    rows = []
    for m in found:
        figures, difference = m.measurement, m.comparison.difference if m.comparison else None
        rows.append(
            (
                m.artifact.target,
                figures.device,
                f"{figures.p50_ms:.3g}",
                f"{figures.p90_ms:.3g}",
                "-" if figures.p99_ms is None else f"{figures.p99_ms:.3g}",
                f"{figures.load_ms:.3g}",
                f"{figures.first_ms:.3g}",
                "-" if figures.peak_memory is None else size(figures.peak_memory),
                str(figures.threads),
                "-" if difference is None else f"{difference.verdict} ({difference.ratio:.2f}×)",
                figures.validity,
            )
        )
    columns = (
        "target",
        "device",
        "p50 ms",
        "p90",
        "p99",
        "load",
        "first",
        "peak",
        "threads",
        "against",
        "run",
    )
    table("", columns, rows)
    for m in found:
        for reason in m.measurement.reasons:
            click.echo(f"  {m.artifact.target}: {reason}", err=True)
