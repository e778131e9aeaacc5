"""An artifact's outputs as an app gets them: run as it is, without a tap between its layers.

To look between two layers splits what a runtime would have computed together. Where it computes that wrongly every
layer is right by itself, and so are the outputs of the walk; those of the artifact are not.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgekit.artifact.run import runnable
from edgekit.devices.execute import run_artifact
from edgekit.diff import Walk
from edgekit.diff.report import distance
from edgekit.diff.resolve import Chain
from edgekit.errors import BackendError, DataError, SourceError

_NOTHING_DB = 45.0
"""Beyond it nothing is lost, however far taps and fusions are apart."""
_APART_DB = 6.0


@dataclass(frozen=True, kw_only=True)
class Shipped:
    """``db``: signal to noise of the artifact's outputs against those of the first form; ``None`` where it was not run,
    and ``why``. ``fused``: the walk's outputs are right, and these are not."""

    db: float | None = None
    why: str = ""
    fused: bool = False


def as_it_ships(chain: Chain, walk: Walk, *, trust: bool) -> Shipped | None:
    """Run the artifact at the end of the chain on the chain's samples; ``None`` where there is none."""
    if chain.artifact is None or not walk.compared:
        return None
    try:
        with run_artifact(runnable(chain.artifact, trust=trust), chain.samples) as result:
            outputs = [list(row.values()) for row in result.outputs]
    except (BackendError, DataError, SourceError) as error:
        return Shipped(why=error.message)
    db = distance(walk.reference, outputs)
    return Shipped(db=db, fused=db < min(_NOTHING_DB, walk.output_db - _APART_DB))
