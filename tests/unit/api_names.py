"""Every public name with its type; mypy reads this file, nothing runs it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import assert_type

import numpy as np
import torch

import edgekit
from edgekit.artifact import golden, inspect, manifest, measure, profile
from edgekit.compress import recipes
from edgekit.core import config, progress
from edgekit.devices import bench
from edgekit.diff import compare
from edgekit.errors import EdgekitError
from edgekit.package import descriptor
from edgekit.search import limits, run
from edgekit.types import Array, Device, Target


def functions(module: torch.nn.Module, samples: list[Array], listen: Callable[[edgekit.Event], None]) -> None:
    options = edgekit.Options(max_drop=0.01, exclude=("head",), speed_gate=False)
    assert_type(options.max_drop, float | None)
    assert_type(edgekit.Options.load(), edgekit.Options)
    result = edgekit.build(module, samples[0], targets="ort-fp32", calibration=samples, options=options)
    assert_type(result, edgekit.BuildResult)
    assert_type(
        edgekit.build("m.py:f", targets=["a", "b"], out=Path("o"), progress=listen), edgekit.BuildResult
    )
    assert_type(result.artifacts, tuple[edgekit.Artifact, ...])
    assert_type(result.failures, tuple[edgekit.Failure, ...])
    assert_type(result.failures[0].error, edgekit.EdgekitError)
    assert_type(result.raise_for_failures(), edgekit.BuildResult)
    calibrated = edgekit.calibrate(module, samples[0], calibration=samples)
    assert_type(calibrated, edgekit.CalibrationResult)
    assert_type(calibrated.findings, tuple[edgekit.Finding, ...])
    assert_type(calibrated.calibration.range("x"), tuple[float, float])
    compressed = edgekit.compress("m.py:f", recipe="prune", out="o", limits=edgekit.Limits(seconds=60))
    assert_type(compressed, edgekit.CompressResult)
    assert_type(compressed.steps, tuple[edgekit.StepReport, ...])
    assert_type(compressed.recipe, edgekit.Recipe)
    assert_type(compressed.search, edgekit.SearchResult | None)
    assert_type(edgekit.open("build/ort-fp32"), edgekit.Artifact)


def artifacts(artifact: edgekit.Artifact, inputs: list[Mapping[str, Array]]) -> None:
    assert_type(artifact.manifest, edgekit.Manifest)
    assert_type(artifact.target, str)
    assert_type(artifact.model, Path)
    assert_type(artifact.passed, bool)
    assert_type(artifact.predict(inputs, device="pi5"), Iterator[dict[str, Array]])
    assert_type(artifact.predict([np.zeros(3)]), Iterator[dict[str, Array]])
    assert_type(artifact.verify(), edgekit.Replay)
    figures = artifact.bench(device=["pi5", edgekit.Device(name="local")], settings=edgekit.BenchSettings())
    assert_type(figures, edgekit.BenchResult)
    assert_type(figures.measured[0], edgekit.Measured)
    assert_type(figures.measured[0].measurement, edgekit.Measurement)
    assert_type(artifact.profile(), edgekit.Profile)
    assert_type(artifact.diff(), edgekit.Diff)
    assert_type(artifact.diff(artifact).output_db, float)
    spec = edgekit.PackageSpec(format="bundle", name="com.example.a", version="1.0.0")
    assert_type(artifact.package(spec), edgekit.Package)
    assert_type(artifact.inspect(), edgekit.Inspection)


def types(event: edgekit.Event, target: edgekit.Target, model: edgekit.TorchModel) -> None:
    assert_type(edgekit.__version__, str)
    assert_type(event.kind, edgekit.EventKind)
    assert_type(target.precision, edgekit.Precision)
    assert_type(target.scheme, edgekit.Scheme | None)
    assert_type(model.module, torch.nn.Module)


def same(
    names: tuple[
        type[edgekit.Manifest],
        type[edgekit.Replay],
        type[edgekit.Inspection],
        type[edgekit.Measured],
        type[edgekit.Profile],
        type[edgekit.Recipe],
        type[edgekit.Options],
        type[edgekit.Event],
        type[edgekit.BenchSettings],
        type[edgekit.Diff],
        type[edgekit.EdgekitError],
        type[edgekit.PackageSpec],
        type[edgekit.Limits],
        type[edgekit.SearchResult],
        type[edgekit.Device],
        type[edgekit.Target],
    ],
) -> None:
    assert_type(
        names,
        tuple[
            type[manifest.Manifest],
            type[golden.Replay],
            type[inspect.Inspection],
            type[measure.Measured],
            type[profile.Profile],
            type[recipes.Recipe],
            type[config.Options],
            type[progress.Event],
            type[bench.BenchSettings],
            type[compare.Diff],
            type[EdgekitError],
            type[descriptor.PackageSpec],
            type[limits.Limits],
            type[run.SearchResult],
            type[Device],
            type[Target],
        ],
    )


def fields(
    model: edgekit.OnnxModel,
    parity: edgekit.Parity,
    placement: edgekit.Placement,
    sample: edgekit.Sample,
    spec: edgekit.TensorSpec,
) -> None:
    assert_type(model.path, Path)
    assert_type(parity.snr_db, float)
    assert_type(placement.share, float | None)
    assert_type(sample.inputs, Mapping[str, Array])
    assert_type(spec.dtype, str)
