"""Run an artifact on inputs of one's own: what it gives on its real runtime, in the source's terms."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from edgekit.artifact.layout import Restored, to_runtime
from edgekit.artifact.manifest import Artifact
from edgekit.devices.execute import LOCAL, RunResult, RunSettings, run_artifact
from edgekit.types import Device, names

if TYPE_CHECKING:
    from edgekit.types import Array


def predict(
    artifact: Artifact, inputs: Iterable[Mapping[str, Array]], *, device: Device = LOCAL
) -> Iterator[dict[str, Array]]:
    """The artifact's outputs for each of ``inputs``, by the source's names, shapes and layouts.

    The same agent runs it in a fresh process, here or on ``device``, with the runtime options that the
    manifest records. Raises what :func:`edgekit.devices.execute.run_artifact` does.
    """
    with running(artifact, inputs, device=device) as run:
        for outputs in Restored(run.outputs, artifact.manifest.channels_moved):
            yield dict(outputs)


@contextmanager
def running(
    artifact: Artifact, inputs: Iterable[Mapping[str, Array]], *, device: Device = LOCAL
) -> Iterator[RunResult]:
    """The finished run, whose outputs are still the runtime's own; its files go when the block ends."""
    manifest = artifact.manifest
    settings = RunSettings(
        outputs=names(manifest.outputs),
        quantize=True,
        files=tuple(artifact.directory / f.name for f in manifest.files[1:]),
    )
    with run_artifact(
        manifest.target.backend,
        artifact.model,
        inputs=(to_runtime(row, manifest.channels_moved) for row in inputs),
        options=manifest.runtime,
        device=device,
        settings=settings,
    ) as run:
        yield run
