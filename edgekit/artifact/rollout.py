"""A model with states over many steps, each with the states that it made itself: what drifts is seen only here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekit.artifact import proof
from edgekit.artifact.decisions import Decisions
from edgekit.artifact.parity import compare
from edgekit.artifact.proof import apart
from edgekit.load.data import SampleSet
from edgekit.load.states import States
from edgekit.types import Gate, Tolerance, Verdict

if TYPE_CHECKING:
    from edgekit.types import Array


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """An artifact's outputs, states aside, over ``steps`` steps of its own, against the source's over the same.

    ``states`` has the output that each state takes, by its input. ``explained`` is the share of variance that the worst
    slice keeps, ``explained_at`` says which. ``decisions`` is the share of equal ones among ``decided``: the highest of
    several scores, a score between 0 and 1 from 0.5 on, a logit above 0; ``None`` where no output decides anything.
    ``data`` is what the inputs are, ``noise`` says that they were noise.
    """

    steps: int
    states: Mapping[str, str]
    nonfinite: int
    explained: float | None
    explained_at: str
    decisions: float | None
    decided: int
    data: str
    noise: bool


def measure(
    states: States,
    reference: Iterable[Mapping[str, Array]],
    outputs: Iterable[Mapping[str, Array]],
    data: SampleSet,
) -> Rollout:
    """Hold ``outputs`` against ``reference``, step by step, but for the states; both are read twice.

    Raises what :func:`edgekit.artifact.parity.compare` raises.
    """
    noise = data.noise
    parity = compare((states.others(row) for row in reference), outputs, noise=noise)
    tallies: dict[str, Decisions] = {}
    for row, got in zip(reference, outputs, strict=True):
        for name, array in states.others(row).items():
            if array.dtype.kind == "f" and array.size:
                tallies.setdefault(name, Decisions()).add(array, got[name])
    counts = {n: found for n, t in tallies.items() if (found := t.counted()) is not None}
    shares = {n: equal / decided for n, (equal, decided) in counts.items()}
    least = min(shares, key=lambda n: shares[n], default="")
    return Rollout(
        steps=parity.samples,
        states=dict(states.pairs),
        nonfinite=parity.nonfinite,
        explained=parity.explained,
        explained_at=parity.explained_at,
        decisions=shares.get(least),
        decided=counts[least][1] if least else 0,
        data=data.origin,
        noise=noise,
    )


def rollout_gates(
    rollout: Rollout | None, tolerance: Tolerance, resting: Mapping[str, Sequence[str]]
) -> tuple[Gate, ...]:
    """Whether the outputs stay with the source's over the steps, and whether the same is decided.

    ``resting``: inputs that may be states, which no rollout moved. What passed without them is unproven.
    """
    both = (None, None) if rollout is None else (_stays(rollout, tolerance), _decided(rollout, tolerance))
    stays, decided = both
    if resting and (stays is None or stays.verdict is not Verdict.FAIL):
        stays = _unmoved(resting, tolerance)
    return tuple(g for g in (stays, decided) if g is not None)


def _unmoved(resting: Mapping[str, Sequence[str]], tolerance: Tolerance) -> Gate | None:
    if tolerance.rollout_limit is None:
        return None
    told = []
    for name, outputs in resting.items():
        has = "has" if len(outputs) == 1 else "have"
        flags = " or ".join(f"--state {name}={output}" for output in outputs)
        told.append(
            f"input {name} is zero in every sample and {' and '.join(outputs)} {has} its shape: is it a state? {flags} "
            f"measures it; --state {name}=none says that it is not"
        )
    return Gate(
        name="rollout",
        verdict=Verdict.UNPROVEN,
        limit=tolerance.rollout_limit,
        message="unproven: " + "; ".join(told),
    )


def _stays(rollout: Rollout, tolerance: Tolerance) -> Gate | None:
    limit = tolerance.rollout_limit
    if limit is None or rollout.explained is None:
        return None
    where = f"over {rollout.steps} steps with the artifact's own states"
    if rollout.nonfinite:
        message = f"{rollout.nonfinite} values are not finite {where}"
        return Gate(name="rollout", verdict=Verdict.FAIL, limit=limit, message=message)
    shown, wanted = apart(rollout.explained, limit)
    message = f"{rollout.explained_at}: {shown} of the variance explained {where}, at least {wanted} wanted"
    verdict = Verdict.PASS if rollout.explained >= limit else Verdict.FAIL
    return Gate(name="rollout", verdict=verdict, limit=limit, value=rollout.explained, message=message)


def _decided(rollout: Rollout, tolerance: Tolerance) -> Gate | None:
    limit = tolerance.decisions
    if rollout.decisions is None:
        return None
    share = proof.Share(value=rollout.decisions, rows=rollout.decided, what="decisions")
    if rollout.data in proof.NOT_DATA or rollout.noise:
        where = f"{rollout.steps} steps of noise" if rollout.noise else f"{rollout.steps} random steps"
        return proof.shown("decisions", share, limit, where, judged=False)
    return proof.agreement("decisions", share, limit)
