"""Golden vectors: a few real inputs with the reference's outputs, kept beside the artifact.

They let anybody who has the artifact, and nothing else, measure its parity again (:func:`replay`).
File: ``golden.npz`` with arrays ``input/<i>/<name>`` and ``output/<i>/<name>``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from edgekit.artifact import known, tables, weaker
from edgekit.artifact import manifest as manifests
from edgekit.artifact.energy import decibels
from edgekit.artifact.gates import GRAPH, Evidence, gates
from edgekit.artifact.interface import Vector, differences
from edgekit.artifact.limits import Limits
from edgekit.artifact.manifest import Artifact, Status
from edgekit.artifact.parity import compare
from edgekit.artifact.rounding import can_be_rounding
from edgekit.artifact.run import received, runnable
from edgekit.artifact.task import Task
from edgekit.core import targets as catalogue
from edgekit.core import versions
from edgekit.devices.bench import bench_artifact
from edgekit.devices.execute import LOCAL, Ports, run_artifact
from edgekit.devices.statistics import jackknife
from edgekit.errors import SourceError, UsageError
from edgekit.load.array_files import read_npz
from edgekit.types import Device, Gate, Json, Parity, Placement, Sample, Target, Tolerance, Verdict

if TYPE_CHECKING:
    from edgekit.types import Array

Placing: TypeAlias = Callable[[Artifact, Mapping[str, Json] | None], Placement | None]
"""What of an artifact was executed in what, from the runtime's own report of its run."""

FILE = "golden.npz"
MOST = 8
BYTES = 8 << 20


def write(samples: Iterable[Sample], reference: Iterable[Mapping[str, Array]], path: Path) -> int:
    """Keep the first samples (at most :data:`MOST`, about :data:`BYTES`) and their reference outputs.

    Returns how many; at least one.
    """
    arrays: dict[str, Array] = {}
    count = 0
    for sample, outputs in zip(samples, reference, strict=True):
        size = sum(a.nbytes for a in (*arrays.values(), *sample.inputs.values(), *outputs.values()))
        if count == MOST or (count and size > BYTES):
            break
        arrays |= {f"input/{count}/{n}": a for n, a in sample.inputs.items()}
        arrays |= {f"output/{count}/{n}": a for n, a in outputs.items()}
        count += 1
    with path.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # names are data, not keywords
    return count


def read(path: Path) -> tuple[list[dict[str, Array]], list[dict[str, Array]]]:
    """Inputs and reference outputs, one row a sample.

    Raises :class:`SourceError` for a file that is damaged or of another form.
    """
    sides: dict[str, dict[int, dict[str, Array]]] = {"input": {}, "output": {}}
    try:
        for key, array in read_npz(path, kind=SourceError, hint="build the artifact again").items():
            if array.dtype.kind not in "biuf":
                raise ValueError(f"{key} is {array.dtype}")
            side, index, name = key.split("/", 2)
            if not _INDEX.fullmatch(index):
                raise ValueError(f"{key} is no vector's")
            sides[side].setdefault(int(index), {})[name] = array
    except (ValueError, KeyError) as e:
        raise SourceError(f"{path} holds no golden vectors: {e}", hint="build the artifact again") from e
    inputs, outputs = ([rows[i] for i in sorted(rows)] for rows in sides.values())
    if not inputs or len(inputs) != len(outputs):
        raise SourceError(f"{path} holds no golden vectors", hint="build the artifact again")
    return inputs, outputs


_INDEX = re.compile(r"[0-9]{1,6}")


@dataclass(frozen=True, kw_only=True)
class Replay:
    """What an artifact gave for its golden vectors, here and now.

    ``parity`` is ``None`` of a language model, which is compared token by token. ``failed_before``: gates that failed
    when it was built. ``not_repeated``: the names of those that a few vectors
    cannot repeat; ``claimed``: those of them that passed by the manifest's word alone, as the artifact was not built
    here. ``notes``: what is to be said of the limits. ``evaluation``: parity on evaluation samples, where
    ``verify --eval`` ran the source on them. ``placement``: what was executed, where that was asked for.
    """

    parity: Parity | None
    gates: tuple[Gate, ...]
    runtime_versions: Mapping[str, str]
    device: str
    recorded: Parity | None
    failed_before: tuple[Gate, ...] = ()
    not_repeated: tuple[str, ...] = ()
    claimed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    evaluation: Parity | None = None
    placement: Placement | None = None

    @property
    def status(self) -> Status:
        """As :func:`edgekit.artifact.manifest.status_of`; never passed where the build failed, or where gates are
        claimed alone."""
        if self.failed_before:
            return Status.FAILED
        found = manifests.status_of(self.gates)
        return Status.UNPROVEN if found is Status.PASSED and self.claimed else found

    def _repr_html_(self) -> str:
        return tables.titled(f"{self.status} on {self.device}", {"gates": tables.gates(self.gates)})


def replay(
    artifact: Artifact,
    *,
    device: Device = LOCAL,
    limits: Limits | None = None,
    trust: bool = False,
    placing: Placing | None = None,
) -> Replay:
    """Run the golden vectors on the real runtime and gate the result by the target's tolerance, and by ``limits`` in
    place of it. ``trust``: load an engine whoever made it. ``placing`` reads what the runtime executed, which is asked
    for where the gate on it has waited for a machine that runs the artifact.

    The file hashes are checked first. Gates on placement and on the task metric need more than the golden
    vectors; they are not among the result's. Raises what :func:`~edgekit.artifact.run.predict`
    raises, and :class:`SourceError` for an artifact whose files have changed.
    """
    manifests.check_files(artifact)
    manifest = artifact.manifest
    if manifest.golden is None:
        raise SourceError(f"{artifact.directory} has no golden vectors", hint="build the artifact again")
    inputs, expected = read(artifact.directory / manifest.golden.file)
    if len(inputs) != manifest.golden.samples:
        raise SourceError(
            f"{artifact.directory} has {len(inputs)} golden vectors, and was built with {manifest.golden.samples}",
            hint="do not trust this artifact: build it again",
        )
    _refuse_other_inputs(artifact, inputs)
    _refuse_other_outputs(artifact, expected)
    timing = None
    if limits is not None:
        _refuse_unmeasured(limits)
        if limits.timed:
            timing = bench_artifact(replace(runnable(artifact, trust=trust), inputs=inputs[0]), device=device)
    places = placing is not None and any(
        g.name == "placement" and g.verdict is Verdict.NOT_RUN for g in manifest.gates
    )
    with received(str(artifact.directory)):
        answers = run_artifact(runnable(artifact, trust=trust), inputs, device=device, placement=places)
    with answers as run:
        _refuse_another_interface(artifact, run.ports, Vector(inputs=inputs[0], outputs=expected[0]))
        recorded, whole = manifest.golden.parity, manifest.parity
        with received(str(artifact.directory)):
            task = Task(name=manifest.task)
            parity = replace(compare(expected, run.outputs, task=task), data="golden")
            claimed = parity
            if whole is not None and whole.noise:
                claimed = compare(expected, run.outputs, task=task, noise=True)
        if whole is not None and whole.rounding is not None and can_be_rounding(whole.rounding):
            claimed = replace(claimed, rounding=whole.rounding)
        claimed = replace(claimed, data=recorded.data if recorded is not None and recorded.data else "golden")
        row, notes = row_limits(manifest.target)
        notes = (*notes, *weaker.notes(manifest, row))
        placement = placing(artifact, run.placement) if places and placing is not None else None
        evidence = Evidence(parity=parity, size_bytes=manifest.size, measurement=timing, placement=placement)
        found = _judged(evidence, claimed, row, limits)
        found = tuple(_as_sure(g, expected, run.outputs) for g in found)
        found = (*found, *_vouched(manifest, row))
        found = (*found, *never_measured(manifest, {g.name for g in found}, parity))
        names = {g.name for g in found}
        return Replay(
            parity=parity,
            gates=found,
            failed_before=_failed_before(manifest),
            not_repeated=tuple(g.name for g in manifest.gates if g.name not in names),
            claimed=claims(manifest, names),
            notes=notes,
            placement=placement,
            runtime_versions=run.versions,
            device=device.name,
            recorded=recorded,
        )


def _judged(evidence: Evidence, claimed: Parity, row: Tolerance, limits: Limits | None) -> tuple[Gate, ...]:
    """The gates on golden vectors. What fails unless it is as the manifest claims (``claimed``: the vectors are noise
    or random, the source rounds so much by itself) is unproven: without the source and its data nobody can tell."""
    tolerance = replace(
        row,
        metric_drop=None,
        placement=None if evidence.placement is None else row.placement,
        explained=0.0,  # the variance of a few vectors is no estimate of what was gated on all samples
        sample_snr_db=0.0,
    )

    def judged(parity: Parity | None) -> tuple[Gate, ...]:
        found = gates(replace(evidence, parity=parity), tolerance, limits)
        return tuple(
            g for g in found if g.name not in _ONLY_THAT_SOMETHING_IS_LEFT or g.verdict is Verdict.FAIL
        )

    plain = judged(evidence.parity)
    if claimed == evidence.parity:
        return plain
    wider = {g.name: g for g in judged(claimed)}
    return tuple(_by_claim(g, wider.get(g.name)) for g in plain)


def _by_claim(gate: Gate, claimed: Gate | None) -> Gate:
    """A gate that fails on what is here, and would not if the manifest's claims are true."""
    if gate.verdict is not Verdict.FAIL or (claimed is not None and claimed.verdict is Verdict.FAIL):
        return gate
    claim = (
        "; it would not count if the vectors were noise, or the source rounded as much, as the manifest claims: "
        "--source with --eval measures it"
    )
    return replace(gate, verdict=Verdict.UNPROVEN, message=f"{gate.message}{claim}")


def _vouched(manifest: manifests.Manifest, row: Tolerance) -> Iterator[Gate]:
    """What nobody vouches for: a target that is not of the catalogue here, and gates that the target asks for and the
    manifest says nothing of. A build records each gate; where they are missing somebody took them out."""
    if manifest.target.name not in catalogue.known():
        yield _unproven(
            "target", f"no target here is called {manifest.target.name}: its limits are the manifest's own"
        )
    if not manifest.gates:
        yield _unproven("gates", "the manifest records no gate of the build")
        return
    recorded = {g.name for g in manifest.gates}
    asked = {"placement": row.placement, "integer-weights": row.integer_weights}
    for name, limit in asked.items():
        if limit is not None and name not in recorded:
            yield _unproven(name, f"{manifest.target.name} asks for it, and the manifest does not record it")


def claims(manifest: manifests.Manifest, repeated: Collection[str]) -> tuple[str, ...]:
    """Gates that passed by the manifest's word alone: not ``repeated``, of an artifact that was not built here."""
    passed = tuple(g.name for g in manifest.gates if g.verdict is Verdict.PASS and g.name not in repeated)
    return () if not passed or known.is_known(manifest) else passed


def never_measured(
    manifest: manifests.Manifest, repeated: Collection[str], parity: Parity | None
) -> tuple[Gate, ...]:
    """Gates that waited for a machine that runs the artifact, and that golden vectors do not tell: nobody ever measured
    them, so that they are unproven. Not those that outputs like these do not have, by ``parity``, nor what was gated of
    the graph that an engine is made of. What was unproven stays so: nothing has proven it since."""
    graph = any(g.name == GRAPH and g.verdict is Verdict.PASS for g in manifest.gates)
    repeated = (*repeated, GRAPH, *(("slices", "samples") if graph else ()))
    untold = {} if parity is None else {name: getattr(parity, field) for name, field in _FIGURES.items()}
    waited = tuple(
        replace(
            gate,
            verdict=Verdict.UNPROVEN,
            message="not measured where it was built, and golden vectors do not tell it: edgekit verify --eval DATA "
            "--source MODEL does, or edgekit build on the device",
        )
        for gate in manifest.gates
        if gate.verdict is Verdict.NOT_RUN
        and gate.name not in repeated
        and untold.get(gate.name, gate) is not None
    )
    unproven = (g for g in manifest.gates if g.verdict is Verdict.UNPROVEN and g.name not in repeated)
    return (*waited, *unproven)


_FIGURES = {"slices": "explained", "samples": "sample_snr_db", "top1-agreement": "top1_agreement"}
"""The figures of a parity that gates are about which not every output has."""


def _unproven(name: str, message: str) -> Gate:
    return Gate(name=name, verdict=Verdict.UNPROVEN, message=message)


def _failed_before(manifest: manifests.Manifest) -> tuple[Gate, ...]:
    """The gates that failed when it was built; a status of failure that none of them explains counts as one."""
    found = tuple(g for g in manifest.gates if g.verdict is Verdict.FAIL)
    if found or manifest.status is not Status.FAILED:
        return found
    message = "the manifest says that the build failed, and not by which gate"
    return (Gate(name="status", verdict=Verdict.FAIL, message=message),)


def _as_sure(
    gate: Gate, expected: Sequence[Mapping[str, Array]], outputs: Iterable[Mapping[str, Array]]
) -> Gate:
    """A few vectors vary: an SNR below the limit is a failure where it is surely so, else it is unproven."""
    if (
        gate.name != "snr"
        or gate.verdict is not Verdict.FAIL
        or gate.limit is None
        or len(expected) < _FEWEST
    ):
        return gate
    highest = min(_highest_snr(*energies) for energies in _energies(expected, outputs).values())
    if highest < gate.limit:
        return gate
    message = f"{gate.message}; {len(expected)} vectors do not tell: up to {highest:.1f} dB is as likely"
    return replace(gate, verdict=Verdict.UNPROVEN, message=message)


def _highest_snr(signal: Sequence[float], error: Sequence[float]) -> float:
    """The upper end of the 90 % interval of the SNR in dB of all that such vectors could be, by the jackknife."""
    whole = decibels(sum(signal), sum(error))
    parts = [decibels(sum(signal) - s, sum(error) - e) for s, e in zip(signal, error, strict=True)]
    return jackknife(parts, whole).high


_FEWEST = 3
"""Of fewer vectors nothing is known of how they vary."""


def _energies(
    expected: Sequence[Mapping[str, Array]], outputs: Iterable[Mapping[str, Array]]
) -> dict[str, tuple[list[float], list[float]]]:
    """By float output: the energy of the reference and of the error, one number a vector."""
    found: dict[str, tuple[list[float], list[float]]] = {}
    for wanted, got in zip(expected, outputs, strict=True):
        for name, reference in wanted.items():
            if reference.dtype.kind == "f":
                signal, error = found.setdefault(name, ([], []))
                signal.append(float(np.square(reference, dtype=np.float64).sum()))
                error.append(float(np.square(reference - got[name], dtype=np.float64).sum()))
    return found


_ONLY_THAT_SOMETHING_IS_LEFT = {"slices", "samples"}


def _refuse_other_inputs(artifact: Artifact, inputs: Sequence[Mapping[str, Array]]) -> None:
    """What an app is told to feed has to be what was fed. Raises :class:`SourceError`."""
    declared = {s.name for s in artifact.manifest.inputs}
    if any(set(row) != declared for row in inputs):
        raise SourceError(
            f"the manifest of {artifact.directory} declares the inputs {', '.join(sorted(declared))}; the golden "
            f"vectors have {', '.join(inputs[0])}",
            hint="do not trust this artifact: build it again",
        )


def refuse_other_sizes(artifact: Artifact, inputs: Mapping[str, Array]) -> None:
    """What is timed is what an app feeds. Raises :class:`SourceError`."""
    for spec in artifact.manifest.inputs:
        sizes = [d for d in spec.shape if isinstance(d, int)]
        given = inputs.get(spec.name)
        static = len(sizes) == len(spec.shape)
        if given is None or (static and math.prod(sizes) != given.size):
            raise SourceError(
                f"the manifest of {artifact.directory} declares {spec}; the golden vectors have "
                f"{'none' if given is None else list(given.shape)}",
                hint="do not trust this artifact: build it again",
            )


def _refuse_other_outputs(artifact: Artifact, expected: Sequence[Mapping[str, Array]]) -> None:
    """Vectors that say nothing of an output would let it be anything."""
    wanted = {o.name for o in artifact.manifest.outputs}
    for number, row in enumerate(expected):
        if set(row) != wanted or not any(a.size for a in row.values()):
            raise SourceError(
                f"golden vector {number} of {artifact.directory} has the outputs {', '.join(row) or 'none'}; the "
                f"artifact gives {', '.join(sorted(wanted))}",
                hint="do not trust this artifact: build it again",
            )


def _refuse_another_interface(artifact: Artifact, ports: Ports, vector: Vector) -> None:
    """Apps are written, and code is generated, by the manifest."""
    manifest = artifact.manifest
    for problem in differences(manifest.inputs, manifest.outputs, manifest.channels_moved, ports, vector):
        raise SourceError(
            f"the manifest of {artifact.directory} says that {problem}",
            hint="do not trust this artifact: build it again",
        )


def row_limits(target: Target) -> tuple[Tolerance, tuple[str, ...]]:
    """The limits of the catalogue's row of this name, whatever the manifest claims them to be, and what is to be said:
    where the manifest's are weaker, or where there is no such row here and the manifest's have to do."""
    row = catalogue.known().get(target.name)
    if row is None:
        return _not_below_any_row(target), (
            f"no target here is called {target.name}: the limits are the manifest's own, and no weaker than those of "
            f"any {target.precision} target",
        )
    less = [name for name, weak in _compared(target.tolerance, row.tolerance) if weak]
    if not less:
        return row.tolerance, ()
    return row.tolerance, (
        f"the manifest's limits of {', '.join(less)} are weaker than those of {target.name}: its row's count",
    )


def _not_below_any_row(target: Target) -> Tolerance:
    """The manifest's own limits, but for those that are weaker than the weakest of all rows of this precision."""
    rows = [r for r in catalogue.known().values() if r.precision is target.precision]
    limits: dict[str, float] = {}
    for field in fields(Tolerance):
        known = [v for r in rows if (v := getattr(r.tolerance, field.name)) is not None]
        if 2 * len(known) <= len(rows):
            continue  # most targets are without this gate
        own, at_most = getattr(target.tolerance, field.name), field.name in _AT_MOST
        weakest = max(known) if at_most else min(known)
        if own is None or (own > weakest if at_most else own < weakest):
            limits[field.name] = weakest
    return replace(target.tolerance, **limits)  # every field is a number


_AT_MOST = ("relative_error", "metric_drop", "perplexity")
"""The fields of a tolerance where more is weaker."""


def _compared(claimed: Tolerance, row: Tolerance) -> Iterator[tuple[str, bool]]:
    """Each limit's name, and whether the claimed one asks for less."""
    for field in fields(Tolerance):
        ours, theirs = getattr(row, field.name), getattr(claimed, field.name)
        if ours is not None:
            less = theirs is None or (theirs > ours if field.name in _AT_MOST else theirs < ours)
            yield field.name.replace("_", " "), less


UNMEASURED = ("metric_drop", "placement", "integer_weights", "coverage", "rollout", "decisions")
"""What a few vectors without labels, run on files alone, cannot tell: fields of a tolerance."""


def _refuse_unmeasured(limits: Limits) -> None:
    asked = [field.replace("_", "-") for field in UNMEASURED if field in limits.tolerance]
    if asked:
        raise UsageError(
            f"golden vectors do not tell {', '.join(asked)}",
            hint="edgekit verify --eval measures metric-drop and placement; the others are edgekit build's",
        )


def adopt(artifact: Artifact, result: Replay) -> Artifact:
    """Write the replay into an artifact that could not be run where it was built."""
    if artifact.manifest.status is not Status.NOT_RUN or artifact.manifest.golden is None:
        return artifact
    manifest = replace(
        artifact.manifest,
        status=result.status,
        gates=result.gates,
        parity=result.parity,
        placement=result.placement or artifact.manifest.placement,
        golden=replace(artifact.manifest.golden, parity=result.parity),
        runtime_versions=result.runtime_versions,
        machine=versions.machine() if result.device == LOCAL.name else {"device": result.device},
    )
    manifests.write(manifest, artifact.directory)
    known.remember(manifest)
    return replace(artifact, manifest=manifest)
