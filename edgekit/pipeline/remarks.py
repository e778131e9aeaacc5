"""What is said of a target's artifact beside its verdict."""

from __future__ import annotations

from collections.abc import Sequence

from edgekit.artifact.proof import better_than_source, source_at_chance
from edgekit.pipeline.candidates import Candidate
from edgekit.pipeline.stages import BuildContext
from edgekit.quantize.options import Cause
from edgekit.types import Gate, Target, Verdict

_WORTH_A_NOTE = 0.01
"""Of the multiply-accumulates."""


def tell(context: BuildContext, target: Target, made: Candidate, verdicts: Sequence[Gate]) -> None:
    """What nobody should have to look for in the manifest: shapes that had to be fixed, what is unproven, and what is
    too good to be true."""
    if made.lowering.subject.target.fixed_shapes and not target.fixed_shapes:
        shapes = ", ".join(str(spec) for spec in made.lowering.subject.model.inputs)
        context.progress.note(
            f"{target.name}: the runtime does not take the model with open axes, so its shapes are fixed: {shapes}"
        )
    report = made.lowering.report
    if report is not None and (front := report.of(Cause.FRONT)):
        context.progress.note(
            f"{target.name}: a spectral front end stays in float, {front:.0%} of the MACs: integers cannot hold "
            "energies whose logarithm is taken"
        )
    if report is not None and (island := report.of(Cause.ISLAND)) >= _WORTH_A_NOTE:
        context.progress.note(
            f"{target.name}: products of activations with activations stay in float, {island:.0%} of the MACs: small "
            "ones are quicker so, and a quotient's divisor needs more than 8 bits"
        )
    for gate in verdicts:
        if gate.verdict is Verdict.UNPROVEN:
            context.progress.note(f"{target.name}: {gate.name}: {gate.message}")
    parity = made.verified.parity
    if parity is not None and 0 < parity.labelled < parity.samples:
        context.progress.note(
            f"{target.name}: {parity.labelled} of {parity.samples} samples have labels: "
            f"{parity.metric_name} is measured on these"
        )
    told = {g.name for g in verdicts if g.verdict is Verdict.UNPROVEN}
    if parity is None or "metric-drop" in told:
        return
    for remark in (better_than_source(parity), source_at_chance(parity)):
        if remark:
            context.progress.note(f"{target.name}: {remark}")
