"""What ``edgekit bench --soak`` does and shows."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace

import edgekit
from edgekit.artifact import manifest
from edgekit.artifact.soak import Soak, soak, summary
from edgekit.cli._output import end_with, number, print_json, progress, say, table
from edgekit.core.progress import Task
from edgekit.devices.soak import SoakSettings
from edgekit.errors import EdgekitError
from edgekit.types import Device


def soaked(
    artifacts: Sequence[edgekit.Artifact],
    devices: Sequence[Device],
    settings: SoakSettings,
    *,
    trust: bool,
    as_json: bool,
) -> None:
    """Soak each artifact on each device, show the verdicts, and end with 5 where a gate failed."""
    found: list[Soak] = []
    errors: list[EdgekitError] = []
    runs = len(artifacts) * len(devices)
    with progress() as shown, shown.task("soak", total=int(runs * settings.seconds)) as task:
        for artifact in artifacts:
            told = replace(settings, on_progress=_Elapsed(task, len(devices)))
            more, failures = soak(
                manifest.read(artifact.directory), devices=devices, settings=told, trust=trust
            )
            found += more
            errors += failures
    if as_json:
        print_json({"measurements": [_entry(one) for one in found], "errors": [e.to_json() for e in errors]})
    else:
        for one in found:
            _show(one)
    end_with([*errors, *(one.error for one in found if one.error is not None)])


class _Elapsed:
    """Seconds of a run as steps of the command's task; of several devices side by side those of the first to say so
    count for all."""

    def __init__(self, task: Task, devices: int) -> None:
        self._task, self._devices, self._done, self._lock = task, devices, 0, threading.Lock()

    def __call__(self, seconds: int) -> None:
        """``seconds`` of the run are done."""
        with self._lock:
            if seconds > self._done:
                self._task.advance((seconds - self._done) * self._devices)
                self._done = seconds


def _entry(one: Soak) -> dict[str, object]:
    return {
        "artifact": str(one.artifact.directory),
        "target": one.artifact.target,
        "device": one.figures.device,
        "soak": summary(one.figures, one.gates),
    }


def _show(one: Soak) -> None:
    figures = one.figures
    title = (
        f"{one.artifact.target} on {figures.device}: {figures.calls:,} calls in {figures.seconds:,.0f} s, "
        f"p50 {number(figures.p50_ms, '.3g')} ms, p99 {number(figures.p99_ms, '.3g')} ms, "
        f"{len(figures.reloads)} reloads"
    )
    table(title, ("gate", "verdict", ""), [(g.name, str(g.verdict), g.message) for g in one.gates])
    for reason in figures.reasons:
        say(f"  {one.artifact.target}: {reason}", err=True, indent="    ")
