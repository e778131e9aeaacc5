"""Run an artifact on inputs of one's own: what it gives on its real runtime, in the source's terms."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from edgekit.artifact import language
from edgekit.artifact.manifest import Artifact
from edgekit.core import plugins
from edgekit.devices.execute import LOCAL, run_artifact
from edgekit.devices.runnable import Runnable, sizes
from edgekit.errors import BackendError, SourceError
from edgekit.types import Device, names

if TYPE_CHECKING:
    from edgekit.types import Array


def runnable(artifact: Artifact, *, trust: bool = False) -> Runnable:
    """An artifact with the runtime options that its manifest records. ``trust``: load an engine whoever made it.

    Raises :class:`SourceError` for files that would make the runtime do more than run a model.
    """
    manifest = artifact.manifest
    plugins.refuse_received(manifest.target.backend, artifact.model)
    return Runnable(
        backend=manifest.target.backend,
        trusted=trust,
        main=artifact.model,
        companions=tuple(artifact.directory / f.name for f in manifest.files[1:]),
        options=manifest.runtime,
        outputs=language.OUTPUTS if manifest.target.task == language.TASK else names(manifest.outputs),
        channels_moved=manifest.channels_moved,
        quantize=True,
        sizes={} if manifest.target.task else sizes(manifest.outputs),
    )


@contextmanager
def received(what: str) -> Iterator[None]:
    """Around a run of files that nobody vouches for: what the runtime refuses is their fault, :class:`SourceError`."""
    try:
        yield
    except BackendError as error:
        if (
            type(error) is not BackendError
        ):  # it is missing, crashed, has not the hardware, or builds no engine
            raise
        raise SourceError(
            f"{what} cannot be run: {error.message}",
            hint="it is damaged, does not fit its description, or is for another version of the runtime: build it "
            "again, or ask the sender",
        ) from error


def predict(
    artifact: Artifact,
    inputs: Iterable[Mapping[str, Array]],
    *,
    device: Device = LOCAL,
    trust: bool = False,
) -> Iterator[dict[str, Array]]:
    """The artifact's outputs for each of ``inputs``, by the source's names, shapes and layouts.

    The same agent runs it in a fresh process, here or on ``device``, with the runtime options that the
    manifest records. Raises what :func:`edgekit.devices.execute.run_artifact` does.
    """
    language.refuse(artifact.manifest.target, "predict")
    with run_artifact(runnable(artifact, trust=trust), inputs, device=device) as run:
        yield from run.outputs
