"""Models with states, step by step: the source's own rollout, samples whose states come from it, and an artifact's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice, repeat
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.artifact.rollout import Rollout, measure
from edgekit.core import versions
from edgekit.devices.arrays import ArrayFile
from edgekit.devices.execute import run_artifact
from edgekit.devices.runnable import Runnable
from edgekit.errors import UsageError
from edgekit.graph.records import read_json
from edgekit.load.data import RANDOM, SampleSet
from edgekit.load.source import Source
from edgekit.load.states import States, at_rest
from edgekit.pipeline import stages
from edgekit.pipeline.cached import Step, run
from edgekit.pipeline.stages import BuildContext, Exported
from edgekit.types import Device, Sample

if TYPE_CHECKING:
    from edgekit.types import Array

STEPS = 200
"""The least that a rollout takes: states that drift have drifted by then. Shorter data are gone through again."""


@dataclass(frozen=True, kw_only=True)
class Rolled:
    """The source's rollout over ``samples``: its ``outputs``, one row a step, from its own states.

    ``given``: the samples have states of their own, which differ; else all begin with the same and mean a stream.
    """

    states: States
    samples: SampleSet
    outputs: ArrayFile
    sha256: str
    given: bool

    def __len__(self) -> int:
        return self.outputs.count

    def inputs(self) -> Iterator[Sample]:
        """What each step was given, with its states."""
        before: dict[str, Array] | None = None
        for sample, row in zip(endless(self.samples), self.outputs, strict=False):
            yield replace(sample, inputs=self.states.fed(sample.inputs, before))
            before = row

    def filled(self) -> SampleSet:
        """The samples, each with the state that the source has by then; as they are where they have their own."""
        if self.given:
            return self.samples
        whole = replace(
            self.samples,
            fingerprint=versions.digest(self.samples.fingerprint, self.sha256, "filled"),
            count=len(self),
            open=self.inputs,
        )
        return whole if len(self) == len(self.samples) else whole.first(len(self.samples))


def endless(samples: SampleSet) -> Iterator[Sample]:
    """The samples again and again."""
    return chain.from_iterable(repeat(samples))


def rolled(
    context: BuildContext, source: Source, exported: Exported, samples: SampleSet, states: States
) -> Rolled | None:
    """The source's rollout; ``None`` where what looked like a state turned out to be none.

    Raises :class:`UsageError` where the user said that it is one.
    """

    def read(directory: Path) -> tuple[str, Rolled | None]:
        facts = read_json(directory / "rollout.json")
        if facts["refused"]:
            return facts["refused"], None
        return "", Rolled(
            states=states,
            samples=samples,
            outputs=ArrayFile(path=directory / "outputs", names=tuple(facts["names"]), count=facts["count"]),
            sha256=facts["sha256"],
            given=facts["given"] and samples.origin != RANDOM,
        )

    steps = max(len(samples), STEPS)
    step = Step(
        name="rollout",
        inputs=(source.sha256, exported.model.sha256, samples.fingerprint),
        options={"states": dict(states.pairs), "steps": steps},
        packages=("torch", "onnxruntime"),
        versions={k: str(v) for k, v in versions.machine().items()},
        produce=lambda out: stages.work(context).rollout(
            source, exported.record, samples, states, steps, out
        ),
        read=read,
    )
    refused, found = run(context.store, step).value
    if found is None and states.declared:
        raise UsageError(f"--state: {refused}", hint="name the output that is the next step's input")
    return found


def rolling(
    context: BuildContext, source: Source, exported: Exported, states: States
) -> Callable[[SampleSet], Rolled | None]:
    """What rolls the source out over samples; nothing for a model without states."""
    return lambda samples: rolled(context, source, exported, samples, states) if states else None


def filled(roll: Callable[[SampleSet], Rolled | None], samples: SampleSet | None) -> SampleSet | None:
    """``samples`` with the states of the source's rollout over them."""
    found = None if samples is None else roll(samples)
    return samples if found is None else found.filled()


def resting(
    context: BuildContext, exported: Exported, states: States, given: Iterable[SampleSet | None]
) -> dict[str, tuple[str, ...]]:
    """Inputs that look like states in all samples of the user's, and nobody said so (see :func:`at_rest`)."""
    model = exported.model
    rows = (s.inputs for data in given if data is not None and data.origin != RANDOM for s in data)
    return at_rest(model.inputs, model.outputs, states, context.options.state, rows)


def measured(
    context: BuildContext,
    runnable: Runnable,
    reference: Rolled,
    fed: SampleSet,
    device: Device | None = None,
) -> Rollout:
    """The artifact's rollout from its own states, beside the source's. ``fed``: the samples as it takes them."""
    samples = (s.inputs for s in islice(endless(fed), len(reference)))
    pairs = reference.states.pairs
    with run_artifact(runnable, samples, device=device or context.device, states=pairs) as result:
        return measure(reference.states, reference.outputs, result.outputs, reference.samples)
