"""Measure artifacts: what ``edgekit bench`` does, and what ends in their manifests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from edgekit import golden
from edgekit import manifest as manifests
from edgekit.bench import BenchSettings, Comparison, Variant, bench_artifact, compare_artifacts
from edgekit.devices.execute import LOCAL
from edgekit.errors import SourceError
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
        inputs=to_runtime(inputs[0], manifest.inputs),
        options=manifest.runtime,
        files=tuple(artifact.directory / f.name for f in manifest.files[1:]),
        quantize=True,
    )


def measure(
    artifacts: Sequence[Artifact],
    *,
    baseline: Artifact | None = None,
    device: Device = LOCAL,
    settings: BenchSettings | None = None,
    started: Callable[[Artifact], None] | None = None,
) -> list[Measured]:
    """Measure each artifact; with a ``baseline`` each is interleaved with it (ABBA) and compared.

    Raises what :func:`edgekit.bench.bench_artifact` raises.
    """
    found = []
    for artifact in artifacts:
        if started is not None:
            started(artifact)
        if baseline is None or baseline.directory == artifact.directory:
            measurement, comparison = (
                bench_artifact(variant(artifact), device=device, settings=settings),
                None,
            )
        else:
            comparison = compare_artifacts(
                variant(baseline), variant(artifact), device=device, settings=settings
            )
            measurement = comparison.second
        found.append(
            Measured(artifact=record(artifact, measurement), measurement=measurement, comparison=comparison)
        )
    return found


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
