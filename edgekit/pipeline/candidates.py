"""A target's artifact made in one way, run and measured: plainly, or with ``--max-drop`` as the budget needs it.

What all targets share comes in as :class:`Prepared`. Targets that are not in the cache are made side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeAlias, TypeVar

from edgekit.core import plugins
from edgekit.core import targets as catalogue
from edgekit.core.contained import out_of_memory
from edgekit.core.files import refused_by_system
from edgekit.devices.catalogue import device
from edgekit.devices.engines import builder_of
from edgekit.errors import DefectError, EdgekitError, MissingExtraError
from edgekit.load.data import SampleSet
from edgekit.pipeline import guard, speed, stages
from edgekit.pipeline.cached import NotCachedError, ReadOnly
from edgekit.pipeline.engines import on_device
from edgekit.pipeline.extents import refuse_outside
from edgekit.pipeline.lower import Graph, Lowering, lower_for
from edgekit.pipeline.rollouts import Rolled
from edgekit.pipeline.side_by_side import side_by_side, spooled, workers
from edgekit.pipeline.stages import BuildContext, Calibrated
from edgekit.pipeline.verify import Verified, reference_of, verify
from edgekit.quantize.options import QuantizeOptions
from edgekit.types import Coverage, Finding, Json, Measurement, Parity, Target

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Data:
    """The samples of a build by what they are for. ``verification`` is what parity is measured on; ``rolled`` is the
    source's rollout, where the model has states; ``resting`` has the inputs that may be states, with their outputs."""

    calibration: SampleSet | None
    evaluation: SampleSet | None
    verification: SampleSet
    rolled: Rolled | None = None
    resting: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Everything that all targets share. ``covered``: the activations on evaluation samples that leave the calibrated
    ranges; ``None`` where there are no such samples or no ranges. ``example``: the same of the source's example inputs,
    where there are no evaluation samples."""

    graph: Graph
    data: Data
    calibrated: Calibrated | None
    findings: tuple[Finding, ...]
    refused: Mapping[str, EdgekitError]
    covered: tuple[Coverage, ...] | None = None
    example: tuple[Coverage, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One way of making a target's artifact, run and measured."""

    lowering: Lowering
    verified: Verified
    guard: Mapping[str, Json] | None = None


def candidate(
    context: BuildContext, prepared: Prepared, target: Target, quantization: QuantizeOptions
) -> Candidate:
    """Quantize as asked, lower, run and compare."""
    graph, data = prepared.graph, prepared.data
    lowering = on_device(context, lower_for(context, graph, target, data.calibration, quantization))
    verified = verify(
        context, lowering.subject, graph.source, graph.exported, data.verification, graph.origin, data.rolled
    )
    return Candidate(lowering=lowering, verified=verified)


Result: TypeAlias = Candidate | EdgekitError | None
"""What a target gives without a search, or its error; ``None`` where only its files are in the cache as yet."""


@contextmanager
def plain_candidates(
    context: BuildContext, prepared: Prepared, targets: Sequence[Target]
) -> Iterator[tuple[Prepared, Mapping[str, Result]]]:
    """Each target quantized as asked, lowered and run, by its name: read from the cache, or made side by side.

    Nothing is timed here: speed is judged afterwards, on a machine that does nothing else. What comes after must take
    the samples of the :class:`Prepared` that is given beside them, which are files while the block lasts: what the
    quantizer keeps of a model for the next scheme reads them again.
    """
    results: dict[str, Result] = {}
    kept = replace(context, store=ReadOnly(context.store))
    missing: list[Target] = []
    for target in targets:
        try:
            results[target.name] = guarded(target, partial(plain_candidate, kept, prepared, target))
        except NotCachedError:
            missing.append(target)
    done: list[Result]
    at_once = workers(len(missing), prepared.graph.model.path)
    with shared(context, prepared) if at_once > 1 else nullcontext() as beside:
        if beside is None:
            done = [guarded(t, partial(plain_candidate, context, prepared, t)) for t in missing]
        else:
            # The user's metric runs in this process: with one, only the files are made here.
            make = lower_only if context.options.metric else plain_candidate
            jobs: list[Callable[[], Result]] = [
                partial(guarded, t, partial(make, context, beside, t)) for t in missing
            ]
            done = side_by_side(jobs, at_once)
        yield beside or prepared, results | dict(zip((t.name for t in missing), done, strict=True))


@contextmanager
def shared(context: BuildContext, prepared: Prepared) -> Iterator[Prepared | None]:
    """What targets take that are made side by side, with all that runs the user's code done already: the samples in
    files, the source's answers in the cache. ``None`` where the samples are too large for that."""
    data, graph = prepared.data, prepared.graph
    with spooled(s for s in (data.calibration, data.verification) if s is not None) as copies:
        if copies is None:
            yield None
            return
        calibration = data.calibration and copies[data.calibration.fingerprint]
        verification = replace(copies[data.verification.fingerprint], origin=data.verification.origin)
        reference_of(context, graph.source, graph.exported, verification, graph.pixels)
        if graph.origin is not None and verification.labelled:
            reference_of(context, graph.origin, graph.exported, verification, graph.pixels)
        yield replace(prepared, data=replace(data, calibration=calibration, verification=verification))


def plain_candidate(context: BuildContext, prepared: Prepared, target: Target) -> Candidate:
    """As the options ask for it, refused first where that is known to be in vain."""
    if target.name in prepared.refused:
        raise prepared.refused[target.name]
    refuse_missing_runtime(context, target)
    if prepared.graph.pixels is None and not target.fixed_shapes:
        refuse_outside(context, target, prepared.graph.model.inputs, prepared.data.verification)
    return candidate(context, prepared, target, QuantizeOptions.of(context.options, target))


def lower_only(context: BuildContext, prepared: Prepared, target: Target) -> None:
    """The target's files into the cache."""
    if target.name not in prepared.refused:
        refuse_missing_runtime(context, target)
        lower_for(context, prepared.graph, target, prepared.data.calibration)


def guarded(target: Target, work: Callable[[], T]) -> T | EdgekitError:
    """What ``work`` gives, or the error that is the target's own; a defect in one backend is one too."""
    try:
        return work()
    except NotCachedError:
        raise
    except EdgekitError as error:
        return error
    except MemoryError:
        return out_of_memory(target.name)
    except Exception as error:  # noqa: BLE001 - must not cost the other targets their artifacts
        return refused_by_system(error) or DefectError.of(error, target.name)


def refuse_missing_runtime(context: BuildContext, target: Target) -> None:
    """A runtime that is missing, here or on the device, is known before anything is quantized for it."""
    refuse_missing_backend(target)
    if (
        context.site is not None and builder_of(target.backend) is None
    ):  # others need not be able to run there
        context.site.refuse(target)


def refuse_missing_backend(target: Target) -> None:
    """Raise :class:`MissingExtraError` for a backend that is not installed."""
    available = plugins.backend(target.backend).available()
    if not available.installed:
        requirement = plugins.info(target.backend).requirement or target.extra
        raise MissingExtraError(f"the runtime of {target.name}", requirement=requirement)


def within_budget(context: BuildContext, prepared: Prepared, target: Target, plain: Candidate) -> Candidate:
    """The plain candidate; with ``--max-drop``, one in which as few layers as possible fall back to hold it."""
    parity = plain.verified.parity
    budget = context.options.max_drop
    if budget is None or not target.needs_calibration or parity is None:
        return plain
    assert prepared.calibrated is not None
    if guard.drop_of(parity)[1] <= budget or guard.spent_by_recipe(parity) > budget:
        return plain

    def measure(choice: QuantizeOptions) -> Parity | None:
        return candidate(context, prepared, target, choice).verified.parity

    model, _ = stages.in_float32(context, prepared.graph.model)
    found = guard.search(context, model, target, prepared.calibrated, budget, measure)
    made = candidate(context, prepared, target, found.choice)
    if found.in_float is not None and (slow := too_slow(context, prepared, made)):
        other = candidate(context, prepared, target, found.in_float)
        drop = guard.drop_of(other.verified.parity)[1] if other.verified.parity else float("inf")
        if drop <= max(budget, found.drop):
            found, made = found.as_float(drop, f"with INT16 activations: {slow}"), other
    return replace(made, guard=found.account)


def too_slow(context: BuildContext, prepared: Prepared, made: Candidate) -> str:
    """Why the artifact is slower than its float sibling; empty where it is not."""
    swiftness = against_sibling(context, prepared, made)
    if swiftness is None or not speed.slower(swiftness):
        return ""
    return speed.gate(swiftness, made.verified.placement, made.lowering.subject.target).message


def measured(context: BuildContext, prepared: Prepared, made: Candidate) -> Measurement | None:
    """Latency and memory of the artifact on the device that was asked for; ``None`` where a clock means nothing."""
    if made.verified.not_run or (context.site and context.site.emulated):
        return None
    name, subject = context.options.device, made.lowering.subject
    example = prepared.graph.exported.example_inputs()
    inputs = example if subject.pixels is None else subject.pixels.fed(example)
    return speed.measure(context, subject, inputs, device(name) if name else context.device)


def against_sibling(context: BuildContext, prepared: Prepared, made: Candidate) -> speed.Speed | None:
    """The quantized artifact's speed against the float target of the same backend, where there is one; timed only
    where speed is to be judged."""
    row = speed.sibling(made.lowering.subject.target, catalogue.known())
    timed = context.options.speed_gate and not (context.site and context.site.emulated)
    if not timed or row is None or made.verified.not_run:
        return None
    against = lower_for(context, prepared.graph, row).subject
    example = prepared.graph.exported.example_inputs()
    if against.pixels is not None:
        example = against.pixels.fed(example)
    return speed.compare(context, made.lowering.subject, against, example)
