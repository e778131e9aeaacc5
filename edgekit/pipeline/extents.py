"""Sizes that an engine is built for, held against the samples that it will be run on, before it is built."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from edgekit.core import config, plugins
from edgekit.errors import DataError
from edgekit.graph.records import read_json, write_json
from edgekit.load.data import SampleSet
from edgekit.pipeline.cached import Step, run
from edgekit.pipeline.stages import BuildContext
from edgekit.types import Target, TensorSpec, WithExtents

_Extents = Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]


def refuse_outside(
    context: BuildContext, target: Target, inputs: Sequence[TensorSpec], samples: SampleSet
) -> None:
    """Raise :class:`DataError` where samples have sizes that the target's engine does not take.

    Backends whose artifacts take every size, or have fixed shapes, are not asked.
    """
    backend = plugins.backend(target.backend)
    if not isinstance(backend, WithExtents):
        return
    options = config.target_options(target, context.options.set)
    extents = backend.extents(inputs, options)
    if not extents:
        return
    seen = _seen(context, extents, samples)
    wrong = [
        (spec, axis, low, high)
        for spec in inputs
        if spec.name in extents
        for axis, (low, high) in enumerate(seen.get(spec.name, ()))
        if isinstance(spec.shape[axis], str)
        and not extents[spec.name][0][axis] <= low <= high <= extents[spec.name][1][axis]
    ]
    if not wrong:
        return
    said, ways = [], dict[str, tuple[int, int, int]]()
    for spec, axis, low, high in wrong:
        least, most = (end[axis] for end in extents[spec.name])
        name, has = str(spec.shape[axis]), str(low) if low == high else f"{low} to {high}"
        said.append(f"{name} of {spec.name} is {has}, and the engine takes {least} to {most}")
        lowest, usual, highest = ways.get(name, (least, high, most))  # inputs share names
        ways[name] = min(lowest, low), max(usual, high), max(highest, high)
    axes = ",".join(f"{name}={':'.join(map(str, sizes))}" for name, sizes in ways.items())
    raise DataError(
        f"{target.name} would be built for other sizes than its samples have: {'; '.join(said)}",
        hint=f"--set axes={axes} (smallest:usual:largest), or give samples of the sizes that it is built for",
    )


def _seen(context: BuildContext, extents: _Extents, samples: SampleSet) -> dict[str, list[tuple[int, int]]]:
    """The smallest and largest size of each axis among the samples, by input."""

    def produce(out: Path) -> None:
        found: dict[str, list[list[int]]] = {}
        for sample in samples:
            for name in extents:
                sizes = sample.inputs[name].shape
                ends = found.setdefault(name, [[size, size] for size in sizes])
                for end, size in zip(ends, sizes, strict=True):
                    end[:] = min(end[0], size), max(end[1], size)
        write_json(found, out / "extents.json")

    step = Step(
        name="extents",
        inputs=(samples.fingerprint,),
        options={"inputs": sorted(extents)},
        packages=("numpy",),
        produce=produce,
        read=lambda directory: read_json(directory / "extents.json"),
    )
    return {
        name: [(low, high) for low, high in ends] for name, ends in run(context.store, step).value.items()
    }
