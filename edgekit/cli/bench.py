"""``edgekit bench``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click

import edgekit
from edgekit.artifact.summary import reason_not_run, size
from edgekit.cli._options import json_flag
from edgekit.cli._output import end_with, harmless, number, print_json, progress, say, table
from edgekit.cli._soak import soaked
from edgekit.core.quantities import SECONDS, quantity
from edgekit.devices import catalogue
from edgekit.devices.bench import processors
from edgekit.devices.soak import MOST_RELOADS, SoakSettings
from edgekit.devices.statistics import Difference, in_times
from edgekit.errors import NotRunnableError, UsageError


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
@click.option(
    "--soak",
    default="",
    metavar="TIME",
    help="Call each for so long in one process (10m, 2h): does memory grow, does it become slower? A gate.",
)
@click.option(
    "--reloads",
    type=click.IntRange(0, MOST_RELOADS),
    default=50,
    show_default=True,
    help="With --soak: how often it is loaded again afterwards.",
)
@click.option("--trust", is_flag=True, help="Load engines that were not built here: engines are code.")
@json_flag
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
    soak: str,
    reloads: int,
    trust: bool,
    as_json: bool,
) -> None:
    """Measure latency and memory of ARTIFACTS, here or on devices over SSH or adb.

    Every replicate is a fresh process. Load, first inference and steady state are kept apart; raw samples
    are kept beside the manifest. With --vs the verdict is faster, slower or no detectable difference.
    What a run that is cut short has measured is kept, and marked partial. Directories that hold no
    artifact, and artifacts that cannot run here, are named and left out. With --soak an artifact whose memory
    grows, or that becomes slower, is exit 5.

    Example: edgekit bench build/ort-int8 --vs build/ort-fp32
    """
    runnable = _runnable(artifacts)
    devices = catalogue.select(device)
    if soak:
        _refuse_idle(baseline=baseline, binary=binary)
        seconds_each = quantity(soak, SECONDS, "--soak")
        long_run = SoakSettings(
            seconds=seconds_each,
            reloads=reloads,
            threads=threads or 0,
            cpus=processors(cpus) if cpus else (),
            governor=governor,
        )
        soaked(runnable, devices, long_run, trust=trust, as_json=as_json)
        return
    if binary:
        devices = tuple(replace(d, options={**d.options, "binary": binary}) for d in devices)
    settings = edgekit.BenchSettings(
        processes=processes,
        seconds=seconds,
        threads=threads or 0,
        cpus=processors(cpus) if cpus else (),
        governor=governor,
        timeout=timeout,
    )
    against = edgekit.open(baseline) if baseline else None
    results = []
    with noting(), progress() as shown, shown.task("measure", total=len(runnable)) as task:
        for artifact in runnable:
            task.advance()
            results.append(artifact.bench(device=devices, baseline=against, settings=settings, trust=trust))
    measured = [m for result in results for m in result.measured]
    errors = [e for result in results for e in result.failures]
    if as_json:
        print_json({"measurements": [_entry(m) for m in measured], "errors": [e.to_json() for e in errors]})
    else:
        _show(measured)
    end_with(errors)


def _runnable(artifacts: tuple[Path, ...]) -> list[edgekit.Artifact]:
    """Those that can run here; the others are named. Raises :class:`UsageError` where there is none, and
    :class:`NotRunnableError` where all wait for a device that runs them."""
    opened = [edgekit.open(p) for p in artifacts if p.is_dir() and p.suffix != ".failed"]
    runnable = [a for a in opened if a.manifest.status != "not-run"]
    waiting = [a for a in opened if a.manifest.status == "not-run"]
    if waiting and not runnable:
        names = ", ".join(harmless(a.target) for a in waiting)
        raise NotRunnableError(
            f"there is nothing to measure: {names} was {harmless(reason_not_run(waiting[0].manifest))}",
            hint=f"first edgekit verify {waiting[0].directory} --device NAME, on a device that runs it; then edgekit "
            "bench measures there",
        )
    for artifact in waiting:
        say(
            f"{harmless(artifact.target)} is left out: it was not run yet; first edgekit verify {artifact.directory} "
            "--device NAME, on a device that runs it",
            err=True,
        )
    if not runnable:
        raise UsageError(
            "there is no artifact to measure", hint="name artifact directories: edgekit bench build/*"
        )
    return runnable


def _refuse_idle(*, baseline: Path | None, binary: str) -> None:
    """Options that have no meaning for a long run."""
    idle = [flag for flag, given in (("--vs", baseline is not None), ("--binary", bool(binary))) if given]
    if idle:
        raise UsageError(
            f"{' and '.join(idle)} has no meaning with --soak",
            hint="leave one of them out: they are two measurements",
        )


@contextlib.contextmanager
def noting() -> Iterator[None]:
    """An interrupt's notes are shown: they say what was kept."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        for note in getattr(interrupt, "__notes__", ()):
            say(harmless(note), err=True)
        raise


def _entry(measured: edgekit.Measured) -> dict[str, object]:
    difference = measured.comparison.difference if measured.comparison else None
    return {
        "artifact": str(measured.artifact.directory),
        "target": measured.artifact.target,
        "device": measured.measurement.device,
        "measurement": measured.measurement,
        "difference": difference,
    }


def _against(difference: Difference) -> str:
    if difference.verdict in ("faster", "slower"):
        return f"{difference.verdict} ({in_times(difference.ratio)})"
    return f"{difference.verdict} ({difference.ratio:.2f}×)"


def _speeds(measured: list[edgekit.Measured]) -> None:
    """How quick language models read and write."""
    rows = []
    for m in measured:
        found = m.measurement.facts.get("language")
        for row in found if isinstance(found, list) else []:
            figures = [number(row[k], ".3g") for k in ("first_ms", "prefill", "decode")]
            rows.append(
                (m.artifact.target, str(row["prompt"]), *figures, size(row["resident"]), size(row["peak"]))
            )
    if rows:
        title = "target, prompt, first token ms, prompt tokens/s, new tokens/s, memory, peak"
        table("language", title.split(", "), rows)


def _show(measured: list[edgekit.Measured]) -> None:
    rows = []
    for m in measured:
        figures, difference = m.measurement, m.comparison.difference if m.comparison else None
        rows.append(
            (
                m.artifact.target,
                figures.device,
                number(figures.p50_ms, ".3g"),
                number(figures.p90_ms, ".3g"),
                number(figures.p99_ms, ".3g"),
                number(figures.load_ms, ".3g"),
                number(figures.first_ms, ".3g"),
                "-" if figures.peak_memory is None else size(figures.peak_memory),
                str(figures.threads),
                "-" if difference is None else _against(difference),
                figures.validity,
            )
        )
    title = "target, device, p50 ms, p90, p99, load, first, peak, threads, against, run"
    table("", title.split(", "), rows)
    _speeds(measured)
    for m in measured:
        for reason in m.measurement.reasons:
            say(harmless(f"  {m.artifact.target}: {reason}"), err=True)
