"""Where the time goes: microseconds and placement of every operator of an artifact, on its real runtime.

A run of its own: runtimes are slower while they measure themselves, so these times say which operator is the
expensive one, and ``edgekit bench`` says how long the model takes.
"""

from __future__ import annotations

import dataclasses
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from edgekit.artifact import language, tables
from edgekit.artifact.measure import timeable
from edgekit.artifact.summary import Table
from edgekit.core.files import temporary
from edgekit.core.structure import structure
from edgekit.devices import wire
from edgekit.devices.arrays import write_arrays
from edgekit.devices.execute import LOCAL, model_job
from edgekit.devices.job import Task
from edgekit.devices.plan import Watch, run_plan
from edgekit.devices.transports.connect import connect, send_agent
from edgekit.types import Device

if TYPE_CHECKING:
    from edgekit.artifact.manifest import Artifact
    from edgekit.devices.runnable import Runnable
    from edgekit.devices.transports.transport import Transport


@dataclass(frozen=True, kw_only=True)
class OperatorTime:
    """One operator as the runtime executes it.

    ``us`` are microseconds a run (the mean of the middle half of the runs), ``None`` where the runtime tells
    only the placement; ``share`` is its part of all operators' time, 0 to 1. ``placed`` is what executed it: a
    delegate, provider or kernel. ``module`` is the PyTorch module it came from, empty where that is not known
    or the runtime made the operator itself; ``nodes`` are its names in the file.
    """

    name: str
    op: str
    module: str
    us: float | None
    share: float | None
    placed: str
    precision: str
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Profile:
    """All operators in order of execution. ``whole_us`` is the median of the same runs as a whole, slowed by
    the profiler; ``notes`` say what this runtime does not tell."""

    device: str
    backend: str
    runs: int
    threads: int
    operators: tuple[OperatorTime, ...]
    whole_us: float
    versions: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def by_module(self) -> dict[str, float]:
        """Microseconds by PyTorch module, most expensive first; ``""`` gathers what has none."""
        sums: dict[str, float] = {}
        for operator in self.operators:
            sums[operator.module] = sums.get(operator.module, 0.0) + (operator.us or 0.0)
        return dict(sorted(sums.items(), key=lambda item: -item[1]))

    def _repr_html_(self) -> str:
        line = f"{self.backend} on {self.device}, {self.threads} threads, {self.runs} runs"
        return tables.titled(line, {"operators": _table(self.operators)}) + tables.listed(self.notes)


def _table(profiled: Sequence[OperatorTime]) -> Table:
    """Operators in order of execution: what ran each, in which precision, and how long."""
    rows = [
        (
            o.module or tables.NOTHING,
            o.op,
            tables.NOTHING if o.us is None else f"{o.us:.1f}",
            tables.NOTHING if o.share is None else f"{o.share:.1%}",
            o.precision or tables.NOTHING,
            o.placed or tables.NOTHING,
            o.name,
        )
        for o in profiled
    ]
    return tables.known(("module", "operator", "µs", "share", "precision", "ran on", "name"), rows)


def profile_artifact(
    artifact: Artifact,
    *,
    device: Device = LOCAL,
    runs: int = 50,
    warmup: int = 5,
    timeout: float = 600.0,
    trust: bool = False,
) -> Profile:
    """Profile an artifact on its first golden input. ``trust``: an engine is loaded whoever made it.

    Raises what :func:`edgekit.devices.bench.bench_artifact` does. ``timeout`` in seconds.
    """
    language.refuse(artifact.manifest.target, "a profile")
    modules = structure(dict[str, str], artifact.manifest.details.get("modules", {}), where="modules")
    runnable = dataclasses.replace(timeable(artifact), trusted=trust)
    with connect(device) as transport, temporary("profile") as folder:
        task = _task(transport, runnable, wire.ProfileJob(runs=runs, warmup=warmup), Path(folder), timeout)
        done = run_plan(transport, [task], Watch[wire.ProfileResult](state_s=0, wait_s=0))[task.id]
    report = done.result.profile
    return Profile(
        device=device.name,
        backend=runnable.backend,
        runs=runs,
        threads=done.result.threads,
        operators=read_operators(report.operators, modules),
        whole_us=statistics.median(report.whole_us),
        versions=done.versions,
        notes=report.notes,
    )


def _task(
    transport: Transport, runnable: Runnable, asked: wire.ProfileJob, folder: Path, timeout: float
) -> Task[wire.ProfileResult]:
    sample = write_arrays(folder / "inputs", [runnable.bind(runnable.inputs)])
    job = replace(model_job(transport, runnable, sample), action="profile", profile=asked)
    agent = send_agent(transport, runnable.backend, folder)
    return Task(
        id="profile",
        backend=runnable.backend,
        agent=agent,
        job=job,
        result=wire.ProfileResult,
        timeout=timeout,
    )


def read_operators(
    reports: Sequence[wire.ProfiledOperator], modules: Mapping[str, str]
) -> tuple[OperatorTime, ...]:
    """What the runner reported (see ``devices/agent/profiling.py``), with modules and shares."""
    times = [None if report.us is None else middle(report.us) for report in reports]
    total = sum(t for t in times if t is not None)
    return tuple(
        OperatorTime(
            name=report.name,
            op=report.op,
            module=module_of(report.origin, modules),
            us=us,
            share=us / total if us is not None and total else None,
            placed=report.placed,
            precision=report.precision,
            nodes=report.origin,
        )
        for report, us in zip(reports, times, strict=True)
    )


def middle(values: Sequence[float]) -> float:
    """The mean of the middle half: as robust as a median, finer than a clock of whole microseconds."""
    ordered = sorted(values)
    cut = len(ordered) // 4
    return statistics.fmean(ordered[cut : len(ordered) - cut])


_SUFFIX = re.compile(r"[^A-Za-z0-9](?!\d)")
"""What may follow a node's name where a runtime appended something: ``node_add_1`` is no form of ``node_add``."""


def module_of(names: Sequence[str], modules: Mapping[str, str]) -> str:
    """The PyTorch module of an operator by its names in the file; where it fused several, the first that is known.

    A runtime appends to the name of the node that it rewrote (``node_conv2d_quant``, ``node_linear:0``);
    edgekit's own TFLite files carry the module in the name (``layer1.0.conv1/relu``).
    """
    for name in names:
        if name in modules:
            return modules[name]
    for name in names:
        roots = [node for node in modules if name.startswith(node) and _SUFFIX.match(name, len(node))]
        if roots:
            return modules[max(roots, key=len)]
    known = set(modules.values())
    for name in names:
        path, slash, _ = name.rpartition("/")
        if slash and path in known:
            return path
    return ""
