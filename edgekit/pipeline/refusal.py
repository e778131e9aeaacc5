"""Why an artifact does not count as built, and what its user can do: what a manifest says, in an error's words.

Light to import: a sweep asks it of every cell that was finished before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgekit.artifact.manifest import Artifact, Status
from edgekit.core import targets
from edgekit.errors import EdgekitError, GateFailedError, NotRunnableError
from edgekit.quantize.options import Cause
from edgekit.types import Json, Precision, Target, Verdict

SPEED = "speed"
"""The name of the gate that an INT8 artifact which is slower than float fails."""


def refusal(artifact: Artifact, *, allow_not_run: bool, strict: bool = False) -> EdgekitError | None:
    """Why this artifact must not count as built, or ``None``. ``strict`` refuses what is unproven."""
    manifest = artifact.manifest
    if manifest.status is Status.FAILED:
        failed = [g for g in manifest.gates if g.verdict is Verdict.FAIL]
        lines = "; ".join(f"{g.name}: {g.message}" for g in failed)
        return GateFailedError(
            f"{artifact.target} failed {len(failed)} of {len(manifest.gates)} gates: {lines}",
            hint=_what_to_do(artifact, [g.name for g in failed]),
            gates=[g.name for g in failed],
        )
    if manifest.status is Status.NOT_RUN and not allow_not_run:
        reason = next((g.message for g in manifest.gates if g.verdict is Verdict.NOT_RUN), "nothing ran it")
        return NotRunnableError(
            f"{artifact.target} was built but not run: {reason}",
            hint=f"edgekit verify {artifact.directory} on a machine that can run it, or --allow-not-run",
        )
    if manifest.status is Status.UNPROVEN and strict:
        unproven = [g for g in manifest.gates if g.verdict is Verdict.UNPROVEN]
        return GateFailedError(
            f"{artifact.target} is not proven: " + "; ".join(f"{g.name}: {g.message}" for g in unproven),
            hint="evaluate on as many rows as it says, set the limit that you can accept (--limit NAME=VALUE), or "
            "leave --strict out",
            gates=[g.name for g in unproven],
        )
    return None


def _what_to_do(artifact: Artifact, failed: Sequence[str]) -> str:
    """Where to look; of a precision that was not delivered, what is in the way and how to leave it out."""
    look = f"look at {artifact.directory}: edgekit inspect shows placement and parity per output"
    if SPEED in failed:
        look = f"--no-speed-gate takes a slower artifact, for its size or for another device; {look}"
    placement = artifact.manifest.placement
    if {"rollout", "decisions"} & set(failed) and (rows := _float_activations(artifact)):
        return f"states keep what each step rounds: --target {' or '.join(rows)} leaves activations in float; {look}"
    if "placement" not in failed or placement is None:
        rows = _float_activations(artifact) if _LOSSES & set(failed) else ()
        ways = (
            f"--target {' or '.join(rows)} fixes no ranges of activations, --exclude leaves layers in float; "
            if rows
            else ""
        )
        return ways + look
    largest = max(placement.fallbacks, key=lambda f: f.share, default=None)
    if largest is None or not largest.share:
        return look
    named = largest.nodes[0].partition(" ")[0] if largest.nodes else _largest_in_float(artifact)
    why = f"{largest.op} ×{largest.count}, {largest.share:.0%} of the MACs: {largest.reason}"
    if artifact.manifest.target.precision is Precision.FP32:  # there is nothing that could be excluded
        return (
            f"{why}. The source computes so itself: build its float model, or say --limit placement=0; {look}"
        )
    if not named:
        return f"{why}; {look}"
    return f"{why}. What is meant to stay in float does not count: --exclude {named!r}; {look}"


_PLACED = 0.9
"""The share that stands for the placement gate's where there is none."""

_LOSSES = frozenset(
    {"snr", "slices", "samples", "top1-agreement", "integers", "boxes", "masks", "coverage", "metric-drop"}
)
"""Gates of what a model answers, not of how it runs."""


def _float_activations(artifact: Artifact) -> tuple[str, ...]:
    """The backend's other INT8 rows that can hold, where ``artifact``'s has ranges for its activations."""
    target = artifact.manifest.target
    if not target.needs_calibration:
        return ()
    kinds = (Precision.INT8_WEIGHTS, Precision.INT8_DYNAMIC)
    rows = [r for r in targets.known().values() if r.backend == target.backend and r.precision in kinds]
    return tuple(r.name for r in rows if not _products_alone(r) or _are_products(artifact))


def _products_alone(target: Target) -> bool:
    """Whether the row quantizes products with constant matrices, and leaves convolutions in float."""
    return target.scheme is not None and target.scheme.quantizer == "dynamic"


def _are_products(artifact: Artifact) -> bool:
    """Whether so much of the arithmetic is products with constant matrices that the placement gate holds."""
    wanted = next((g.limit for g in artifact.manifest.gates if g.name == "placement" and g.limit), _PLACED)
    nodes = _nodes(artifact)
    products = (n for n in nodes if n.get("op") in ("Gemm", "MatMul") and n.get("weights"))
    return sum(map(_macs, products)) >= wanted * sum(map(_macs, nodes))


def _largest_in_float(artifact: Artifact) -> str:
    """The graph's node with the most arithmetic among those that the quantizer left in float: runtimes that rename
    operators do not tell it, and ``--exclude`` takes names of the graph."""
    left = [n for n in _nodes(artifact) if not n.get("quantized")]
    left = [n for n in left if n.get("cause") != Cause.EXCLUDED and _macs(n)]
    return str(max(left, key=_macs)["node"]) if left else ""


def _nodes(artifact: Artifact) -> list[Mapping[str, Json]]:
    report = artifact.manifest.details.get("quantization")
    nodes = report.get("nodes") if isinstance(report, Mapping) else None
    rows = nodes if isinstance(nodes, Sequence) else ()
    return [n for n in rows if isinstance(n, Mapping)]


def _macs(node: Mapping[str, Json]) -> float:
    macs = node.get("macs")
    return float(macs) if isinstance(macs, int | float) else 0.0
