"""Keeps in an artifact's manifest what a comparison with its source found of each layer."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import replace

from edgekit.artifact import manifest as manifests
from edgekit.artifact.manifest import Artifact, ComparedLayer, Comparison
from edgekit.core.versions import EDGEKIT
from edgekit.diff import Walk
from edgekit.diff.resolve import Chain

EXACT_DB = 200.0
_DIGITS = 2


def keep(chain: Chain, walk: Walk) -> Artifact | None:
    """Write what ``walk`` found into the manifest of the artifact at the end of ``chain``; the artifact with it.

    ``None``, and nothing written, where no source was compared with it, its files are not those that were built, or its
    folder is not to be written.
    """
    artifact = chain.artifact
    if (
        artifact is None
        or chain.source is None
        or chain.tampered
        or not os.access(artifact.directory, os.W_OK)
    ):
        return None
    compared = Comparison(
        edgekit=EDGEKIT, samples=walk.samples, reference=walk.stages[0].before, layers=tuple(layers(walk))
    )
    # Read again: a measurement may have come in meanwhile.
    there = manifests.read(artifact.directory)
    if there.manifest.digest != artifact.manifest.digest:
        return None
    manifest = replace(there.manifest, compared=compared)
    manifests.write(manifest, artifact.directory)
    return replace(there, manifest=manifest)


def layers(walk: Walk) -> Iterator[ComparedLayer]:
    """Each layer of each stage, as it is named there."""
    for stage in walk.stages:
        for layer in stage.layers:
            if not math.isfinite(layer.local_db):  # no number of JSON's
                continue
            beyond = layer.excess_db if layer.local_db < EXACT_DB and math.isfinite(layer.excess_db) else None
            yield ComparedLayer(
                node=layer.node,
                tensor=layer.tensor,
                module=layer.module,
                local_db=round(layer.local_db, _DIGITS),
                beyond_db=None if beyond is None else round(beyond, _DIGITS),
            )
