"""Measure artifacts: what ``edgekit bench`` does, and what ends in their manifests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from edgekit import golden
from edgekit import manifest as manifests
from edgekit.bench import BenchSettings, Comparison, Variant, bench_devices
from edgekit.devices.execute import LOCAL
from edgekit.errors import EdgekitError, SourceError
from edgekit.layout import to_runtime
from edgekit.manifest import Artifact
from edgekit.records import write_json
from edgekit.types import Device, Measurement

RAW = "measurements.json"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One artifact's figures, and how it compares with the baseline where there was one."""

    artifact: Artifact
    measurement: Measurement
    comparison: Comparison | None = None


def variant(artifact: Artifact) -> Variant:
    """The artifact with its first golden input, as the benchmark takes it."""
    manifests.check_files(artifact)
    manifest = artifact.manifest
    if manifest.golden is None:
        raise SourceError(f"{artifact.directory} has no golden vectors", hint="build the artifact again")
    inputs, _ = golden.read(artifact.directory / manifest.golden.file)
    return Variant(
        backend=manifest.target.backend,
        model=artifact.model,
        inputs=to_runtime(inputs[0], manifest.channels_moved),
        options=manifest.runtime,
        files=tuple(artifact.directory / f.name for f in manifest.files[1:]),
        quantize=True,
    )


def measure(
    artifacts: Sequence[Artifact],
    *,
    baseline: Artifact | None = None,
    devices: Sequence[Device] = (LOCAL,),
    settings: BenchSettings | None = None,
    started: Callable[[Artifact], None] | None = None,
) -> tuple[list[Measured], list[EdgekitError]]:
    """Measure each artifact on each device, the devices side by side; with a ``baseline`` each is
    interleaved with it (ABBA) and compared.

    A device that fails does so alone: its error is among the second result.
    """
    found: list[Measured] = []
    errors: list[EdgekitError] = []
    for artifact in artifacts:
        if started is not None:
            started(artifact)
        compared = baseline is not None and baseline.directory != artifact.directory
        variants = [variant(baseline)] if baseline is not None and compared else []
        results = bench_devices([*variants, variant(artifact)], devices, settings=settings)
        for result in results.values():
            if isinstance(result, EdgekitError):
                errors.append(result)
                continue
            comparison = result if isinstance(result, Comparison) else None
            measurement = result.second if isinstance(result, Comparison) else result
            artifact = record(artifact, measurement)
            found.append(Measured(artifact=artifact, measurement=measurement, comparison=comparison))
    return found, errors


def record(artifact: Artifact, measurement: Measurement) -> Artifact:
    """Put the figures into the manifest in place of older ones of the same device, and the raw samples
    into ``measurements.json`` beside it."""
    others = [m for m in artifact.manifest.measurements if m.device != measurement.device]
    raw = artifact.directory / RAW
    earlier = _raw(artifact)
    write_json({**earlier, measurement.device: measurement.samples}, raw)
    slim = replace(measurement, samples=(), facts={**_figures(measurement), "raw": RAW})
    manifest = replace(artifact.manifest, measurements=(*others, slim))
    manifests.write(manifest, artifact.directory)
    return replace(artifact, manifest=manifest)


def _figures(measurement: Measurement) -> dict[str, object]:
    per_process = ("contention", "memory", "warmup")
    return {k: v for k, v in measurement.facts.items() if k not in per_process}


def _raw(artifact: Artifact) -> dict[str, object]:
    from edgekit.records import read_json

    path = artifact.directory / RAW
    return dict(read_json(path)) if path.is_file() else {}
