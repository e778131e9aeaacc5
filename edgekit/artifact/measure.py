"""Measure artifacts: what ``edgekit bench`` does, and what ends in their manifests."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from edgekit.artifact import golden, history, language_again, tables
from edgekit.artifact import manifest as manifests
from edgekit.artifact.manifest import Artifact
from edgekit.artifact.run import runnable
from edgekit.artifact.summary import Table, size
from edgekit.core import files
from edgekit.core.store import canonical_json
from edgekit.devices.bench import BenchSettings, Comparison, bench_devices
from edgekit.devices.execute import LOCAL
from edgekit.devices.runnable import Runnable
from edgekit.errors import EdgekitError, SourceError, UsageError
from edgekit.graph.records import read_json
from edgekit.types import Device, Json, Measurement

RAW = "measurements.json"
PARTIAL = "cut short"
"""The member of ``measurements.json`` that has runs cut short, by device. (No device can have this name.)"""
SOAK = "soak"
"""The member of a measurement's facts that has the figures of the last long run on that device."""
JOURNAL = "measurements.part"
"""Each process's figures as they come in; gone once they are recorded."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One artifact's figures, and how it compares with the baseline where there was one."""

    artifact: Artifact
    measurement: Measurement
    comparison: Comparison | None = None

    def _repr_html_(self) -> str:
        return figures([self]).html()


def figures(measured: Iterable[Measured]) -> Table:
    """Latency (ms) and memory by artifact and device; the last columns only where there was a baseline."""
    rows = []
    for one in measured:
        m, comparison = one.measurement, one.comparison
        rows.append(
            (
                one.artifact.manifest.target.name,
                m.device,
                str(m.threads),
                f"{m.load_ms:.3g}",
                f"{m.p50_ms:.3g}",
                f"{m.p90_ms:.3g}",
                tables.NOTHING if m.p99_ms is None else f"{m.p99_ms:.3g}",
                tables.NOTHING if m.peak_memory is None else size(m.peak_memory),
                ": ".join(filter(None, (m.validity, "; ".join(m.reasons)))),
                tables.NOTHING if comparison is None else f"{comparison.difference.ratio:.3g}×",
                tables.NOTHING if comparison is None else comparison.difference.verdict,
            )
        )
    columns = ("target", "device", "threads", "load ms", "p50 ms", "p90 ms", "p99 ms", "peak", "validity")
    return tables.known((*columns, "of baseline", "verdict"), rows)


def timeable(artifact: Artifact) -> Runnable:
    """The artifact with its first golden input. Raises :class:`SourceError` where it has none or was changed."""
    if language_again.is_language(artifact):
        return replace(runnable(artifact), inputs=language_again.question(artifact))
    manifests.check_files(artifact)
    manifest = artifact.manifest
    if manifest.golden is None:
        raise SourceError(f"{artifact.directory} has no golden vectors", hint="build the artifact again")
    inputs, _ = golden.read(artifact.directory / manifest.golden.file)
    golden.refuse_other_sizes(artifact, inputs[0])
    return replace(runnable(artifact), inputs=inputs[0])


def refuse_unwritable(artifact: Artifact) -> None:
    """Raise :class:`UsageError` where figures could not be kept: before they are measured, not after."""
    if not os.access(artifact.directory, os.W_OK):
        raise UsageError(
            f"{artifact.directory} cannot be written: the figures would find no place",
            hint="copy the artifact to a folder of yours, or make this one writable",
        )


def measure(
    artifacts: Sequence[Artifact],
    *,
    baseline: Artifact | None = None,
    devices: Sequence[Device] = (LOCAL,),
    settings: BenchSettings | None = None,
    started: Callable[[Artifact], None] | None = None,
    trust: bool = False,
) -> tuple[list[Measured], list[EdgekitError]]:
    """Measure each artifact on each device, the devices side by side; with a ``baseline`` each is
    interleaved with it (ABBA) and compared.

    A device that fails does so alone: its error is among the second result. What it had measured until then is
    kept and marked partial, and so it is when the whole run is interrupted. ``trust``: engines are loaded whoever made
    them.
    """
    found: list[Measured] = []
    errors: list[EdgekitError] = []
    for artifact in artifacts:
        if started is not None:
            started(artifact)
        compared = baseline is not None and baseline.directory != artifact.directory
        runnables = [timeable(baseline)] if baseline is not None and compared else []
        runnables.append(timeable(artifact))
        runnables = [replace(r, trusted=True) for r in runnables] if trust else runnables
        results, partial = _bench(runnables, artifact, devices, settings)
        for name, result in results.items():
            if isinstance(result, EdgekitError):
                errors.append(result)
            outcome = partial.get(name) if isinstance(result, EdgekitError) else result
            if outcome is not None and not isinstance(outcome, EdgekitError):
                where = next(d for d in devices if d.name == name)
                found.append(_measured(artifact, _spoken(artifact, outcome, where)))
                artifact = found[-1].artifact
    return found, errors


def _spoken(
    artifact: Artifact, outcome: Measurement | Comparison, device: Device
) -> Measurement | Comparison:
    """With how quick a language model reads and writes among the facts."""
    measurement = _measurement(outcome)
    if not language_again.is_language(artifact) or _partial(measurement):
        return outcome
    found = language_again.speed(artifact, device=device)
    measurement = replace(measurement, facts=language_again.with_speed(measurement.facts, found))
    return replace(outcome, second=measurement) if isinstance(outcome, Comparison) else measurement


Results = Mapping[str, Measurement | Comparison | EdgekitError]
Partial = dict[str, Measurement | Comparison]


def _bench(
    runnables: Sequence[Runnable],
    artifact: Artifact,
    devices: Sequence[Device],
    settings: BenchSettings | None,
) -> tuple[Results, Partial]:
    """The results by device, and what was measured on those that failed, with a note on their errors."""
    refuse_unwritable(artifact)
    _recover(artifact)
    partial: Partial = {}
    journal = artifact.directory / JOURNAL

    def cut(outcome: Measurement | Comparison) -> None:
        partial[_measurement(outcome).device] = outcome

    chosen = replace(settings or BenchSettings(), on_partial=cut, keep=journal)
    try:
        results = bench_devices(runnables, devices, settings=chosen)
    except BaseException as error:
        for outcome in partial.values():
            measured = _measured(artifact, outcome)
            artifact = measured.artifact
            error.add_note(_note(artifact, measured.measurement.device, _cut(measured.measurement)))
        # A second Ctrl-C does not wait for the devices to say what they have: the journal has it.
        for device, count in _recover(artifact, known=partial).items():
            error.add_note(_note(artifact, device, f"{count} processes"))
        raise
    for name, outcome in partial.items():
        failed = results[name]
        if isinstance(failed, EdgekitError):
            failed.add_note(f"{_cut(_measurement(outcome))} were measured before; they are kept in {RAW}")
    journal.unlink(missing_ok=True)
    return results, partial


def _measurement(outcome: Measurement | Comparison) -> Measurement:
    return outcome.second if isinstance(outcome, Comparison) else outcome


def _measured(artifact: Artifact, outcome: Measurement | Comparison) -> Measured:
    """Record it, and say so."""
    measurement = _measurement(outcome)
    recorded = record(artifact, measurement)
    history.remember(history.Kind.BENCH, recorded, measurement=measurement)
    return Measured(
        artifact=recorded,
        measurement=measurement,
        comparison=outcome if isinstance(outcome, Comparison) else None,
    )


def _cut(measurement: Measurement) -> str:
    partial = _partial(measurement) or {}
    return f"{partial['processes']} of {partial['of']} processes"


def _partial(measurement: Measurement) -> Mapping[str, Json] | None:
    """How much of a run that was cut short is there; ``None`` for a complete one."""
    partial = measurement.facts.get("partial")
    return partial if isinstance(partial, Mapping) else None


def _note(artifact: Artifact, device: str, what: str) -> str:
    return f"{what} on {device} are kept in {artifact.directory / RAW}, marked partial"


def record(artifact: Artifact, measurement: Measurement) -> Artifact:
    """Put the figures into the manifest in place of older ones of the same device, and the raw samples
    into ``measurements.json`` beside it. A partial measurement takes no complete one's place: then only its raw
    samples are kept."""
    device, partial = measurement.device, _partial(measurement)
    _write_raw(artifact, device, measurement.samples, partial)
    before = [m for m in artifact.manifest.measurements if m.device == device]
    if partial and any("partial" not in m.facts for m in before):
        return artifact
    others = [m for m in artifact.manifest.measurements if m.device != device]
    kept = {k: v for m in before for k, v in m.facts.items() if k == SOAK}  # of the same files
    slim = replace(measurement, samples=(), facts={**_figures(measurement), **kept, "raw": RAW})
    manifest = replace(artifact.manifest, measurements=(*others, slim))
    manifests.write(manifest, artifact.directory)
    return replace(artifact, manifest=manifest)


def _write_raw(
    artifact: Artifact,
    device: str,
    samples: Sequence[Sequence[float]],
    partial: Mapping[str, Json] | None,
) -> None:
    path = artifact.directory / RAW
    found = dict(read_json(path)) if path.is_file() else {}
    cut = {k: v for k, v in found.pop(PARTIAL, {}).items() if k != device}
    if partial:
        cut[device] = {**partial, "samples": samples}
    else:
        found[device] = samples
    files.write(path, canonical_json({**found, **({PARTIAL: cut} if cut else {})}))


def _figures(measurement: Measurement) -> dict[str, Json]:
    per_process = ("contention", "memory", "warmup")
    return {k: v for k, v in measurement.facts.items() if k not in per_process}


def _recover(artifact: Artifact, *, known: Collection[str] = ()) -> dict[str, int]:
    """Keep what a run that ended without a word had measured of this artifact (the last variant of its journal),
    but for the devices that are ``known``. Returns how many processes, by device."""
    journal = artifact.directory / JOURNAL
    try:
        lines = files.read(journal).splitlines()
    except OSError:  # there is none, as usual, or no file of ours
        return {}
    rows: dict[str, dict[str, list[list[float]]]] = {}
    for line in lines:
        with suppress(ValueError, KeyError, TypeError):  # a line that was cut short
            entry = json.loads(line)
            attempt = (entry["task"].partition("-")[0], entry["variant"])
            times = [float(x) for x in entry["result"]["samples_ms"]]
            rows.setdefault(entry["device"], {}).setdefault("/".join(attempt), []).append(times)
    found = {device: attempts[max(attempts)] for device, attempts in rows.items() if device not in known}
    for device, samples in found.items():
        _write_raw(artifact, device, samples, {"processes": len(samples), "why": "the run was killed"})
    journal.unlink()
    return {device: len(samples) for device, samples in found.items()}
