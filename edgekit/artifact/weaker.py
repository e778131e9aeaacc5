"""Gates that a manifest records with weaker limits than its target's row: a build's own, or changed since."""

from __future__ import annotations

from collections.abc import Iterator

from edgekit.artifact.gates import Evidence, gates
from edgekit.artifact.manifest import Manifest
from edgekit.artifact.proof import apart
from edgekit.types import Tolerance, Verdict

_AT_MOST = frozenset({"relative-error", "metric-drop", "finite", "range"})
"""Gates whose limit is the most that is allowed; of all others it is the least."""
_SAME = 1e-9
_NO_LIMIT = frozenset({Verdict.SHOWN, Verdict.NOT_RUN})


def notes(manifest: Manifest, row: Tolerance) -> tuple[str, ...]:
    """What to say of the limits that the manifest's gates were judged by, beside those of ``row``."""
    weaker = tuple(_weaker(manifest, row))
    if not weaker:
        return ()
    return (
        f"the manifest's gates were judged by weaker limits than {manifest.target.name}'s ({', '.join(weaker)}): the "
        "build's own (--limit), or changed since; what is repeated here is held to the row's",
    )


def _weaker(manifest: Manifest, row: Tolerance) -> Iterator[str]:
    # What the row asks of this artifact, the widening by the source's own rounding counted in.
    evidence = Evidence(parity=manifest.parity, not_run="not of interest")
    asked = {g.name: g.limit for g in gates(evidence, row)}
    if row.integer_weights is not None:
        asked["integer-weights"] = row.integer_weights
    if row.coverage is not None:
        asked["coverage"] = row.coverage
    for gate in manifest.gates:
        limit = asked.get(gate.name)
        if limit is None or gate.limit is None or gate.verdict in _NO_LIMIT:
            continue
        excess = gate.limit - limit if gate.name in _AT_MOST else limit - gate.limit
        if excess > _SAME:
            own, usual = apart(gate.limit, limit)
            yield f"{gate.name} at {own}, not {usual}"
