"""The source run step by step, each with the states that it made in the one before."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import chain, islice, repeat
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgekit.devices.arrays import write_arrays
from edgekit.graph.records import ModelRecord
from edgekit.load.data import SampleSet
from edgekit.load.states import States
from edgekit.pipeline.reference import answers
from edgekit.types import Json, OnnxModel, Sample, TorchModel, sha256_file

if TYPE_CHECKING:
    from edgekit.types import Array


def roll_out(
    model: TorchModel | OnnxModel,
    record: ModelRecord,
    samples: SampleSet,
    states: States,
    steps: int,
    path: Path,
    advance: Callable[[], None],
) -> dict[str, Json]:
    """Write the outputs of ``steps`` steps to ``path``; ``samples`` are gone through again where they are fewer.

    Gives the facts of the file, ``given`` (the samples have states that differ), and ``refused``: why the outputs
    cannot be the next states, where that is so.
    """
    first = next(iter(samples)).inputs
    once = next(answers(model, record, [Sample(inputs=first)]))
    refused = _refused(states, first, once)
    facts: dict[str, Json] = {"refused": refused, "given": _differ(states, samples)}
    if refused:
        return facts
    stored = write_arrays(path, _rows(model, record, _again(samples, steps), states, advance))
    rows = iter(stored)
    bad = next((i for i, row in enumerate(rows) if not _finite(row)), None)
    if bad is not None:
        refused = f"after {bad} steps the source's own outputs are not finite"
        return {**facts, "refused": refused}
    return {**facts, "names": stored.names, "count": stored.count, "sha256": sha256_file(path)}


def _rows(
    model: TorchModel | OnnxModel,
    record: ModelRecord,
    samples: Iterator[Sample],
    states: States,
    advance: Callable[[], None],
) -> Iterator[dict[str, Array]]:
    if isinstance(model, OnnxModel):
        yield from answers(model, record, samples, states.pairs)
        return
    before: dict[str, Array] | None = None

    def fed() -> Iterator[Sample]:
        for sample in samples:
            yield Sample(inputs=states.fed(sample.inputs, before))

    # In PyTorch an answer is computed when it is asked for: the next sample is made after it.
    for before in answers(model, record, fed()):
        advance()
        yield before


def _again(samples: SampleSet, steps: int) -> Iterator[Sample]:
    return islice(chain.from_iterable(repeat(samples)), steps)


def _refused(states: States, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> str:
    for name, output in states.pairs.items():
        state, after = inputs[name], outputs[output]
        if state.shape != after.shape or state.dtype != after.dtype:
            return (
                f"{output} is {after.dtype} {list(after.shape)} after a step, {name} takes "
                f"{state.dtype} {list(state.shape)}"
            )
    return ""


def _differ(states: States, samples: SampleSet) -> bool:
    """Whether samples bring states of their own: one constant in all of them is where a stream begins."""
    first: dict[str, Array] = {}
    for sample in samples:
        for name in states.pairs:
            if not np.array_equal(first.setdefault(name, sample.inputs[name]), sample.inputs[name]):
                return True
    return False


def _finite(row: Mapping[str, Array]) -> bool:
    return all(bool(np.isfinite(a).all()) for a in row.values() if a.dtype.kind == "f")
