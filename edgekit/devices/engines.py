"""Engines on devices: built where they run, kept by what they belong to, and refused where they do not fit.

A runtime whose backend names an :class:`~edgekit.backends.base.EngineBuilder` runs nothing but engines. What is to run
passes :func:`ready`, which looks at the device first: an engine that is not for it is refused before it is sent, and of
a portable graph one is built there, once for each graph, GPU, runtime, driver and set of flags.
"""

from __future__ import annotations

import shutil
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

from edgekit.backends import own_engines
from edgekit.backends.base import EngineBuilder, EngineHost, EngineOrder
from edgekit.core import plugins
from edgekit.core.files import temporary
from edgekit.core.progress import Progress, watcher
from edgekit.core.store import Key, Store
from edgekit.devices import wire
from edgekit.devices.job import Task, TaskResult, run_job
from edgekit.devices.plan import Watch, mended, run_plan
from edgekit.devices.protocol import plain
from edgekit.devices.transports.connect import send_agent
from edgekit.errors import (
    BackendError,
    DeviceError,
    EngineBuildError,
    EngineMismatchError,
    SourceError,
    UnsupportedNode,
    UnsupportedOperatorsError,
)
from edgekit.graph.records import read_json, write_json
from edgekit.types import sha256_file

if TYPE_CHECKING:
    from edgekit.devices.runnable import Runnable
    from edgekit.devices.transports.transport import Transport

R = TypeVar("R", bound=wire.Message)

ENGINE, LAYERS, LOG, CACHE = "model.engine", "layers.json", "build.log", "timing.cache"
BUILD = "engine-build.json"
STEP = "engine"

IDENTIFY_S = 120.0
MEND_S = 300.0
"""How long to try to reach a device again whose link broke under a build."""
LINGER_S = MEND_S + 60
"""How long the build goes on there meanwhile."""
BUSY_S = 5.0
MOST_BYTES = 64 << 20
"""Of a log, a timing cache or the layers' description."""
JOURNAL = "engine-journal"


@dataclass(frozen=True, kw_only=True)
class Telling:
    """Who hears how a build goes on: what it is at, and percent. ``modules``: of the graph's nodes, for refusals."""

    phase: Callable[[str], None] | None = None
    percent: Callable[[int], None] | None = None
    modules: Mapping[str, str] = field(default_factory=dict)


@contextmanager
def told(progress: Progress, label: str, modules: Mapping[str, str] | None = None) -> Iterator[Telling]:
    """A build as a task of a hundred steps."""
    before = 0
    with progress.task(label, total=100) as task:

        def percent(done: int) -> None:
            nonlocal before
            task.advance(max(0, done - before))
            before = max(before, done)

        yield Telling(percent=percent, modules=modules or {})


@dataclass(frozen=True, kw_only=True)
class Built:
    """An engine in the cache. ``facts`` are what :data:`BUILD` says of it."""

    folder: Path
    facts: Mapping[str, object]

    @property
    def engine(self) -> Path:
        """The file."""
        return self.folder / ENGINE


def builder_of(backend: str) -> EngineBuilder | None:
    """Who builds the backend's engines; ``None`` where its files run as they are."""
    return cast("EngineBuilder | None", plugins.member(backend, "engines", EngineBuilder))


def ready(transport: Transport, runnable: Runnable) -> Runnable:
    """What runs on this device: an engine that fits it, or ``runnable`` itself where its runtime has none.

    Raises:
        EngineMismatchError: the engine is damaged, or for another GPU, runtime, driver or graph.
        SourceError: it is neither an engine nor a graph.
        UntrustedEngineError: it was built elsewhere, and ``runnable.trusted`` is false.
        UnsupportedOperatorsError: the parser there refuses the graph.
        EngineBuildError: no engine can be built there.
        DeviceError: the device failed.
    """
    builder = builder_of(runnable.backend)
    if builder is None:
        return runnable
    main = runnable.main
    if builder.is_engine(main):
        own_engines.refuse_others(main, trust=runnable.trusted)
        if found := builder.contradictions(main, runnable.backend, {}):
            raise EngineMismatchError(
                f"{main.name} is not what its record says: {'; '.join(found)}. It was not loaded",
                differences=found,
            )
        builder.check(main, runnable.backend, identify(transport, runnable.backend), where=transport.name)
    elif builder.needs_engine(main):
        with told(watcher(), f"build the engine on {transport.name}") as telling:
            main = engine_for(transport, runnable.backend, main, telling=telling).engine
    else:
        raise SourceError(
            f"{main} is neither an engine nor what one is built from",
            hint="build it again, or ask the sender",
        )
    companions = tuple(main.with_name(name) for name in builder.files_read(main))
    return replace(runnable, main=main, companions=companions)


_hosts: weakref.WeakKeyDictionary[object, EngineHost] = weakref.WeakKeyDictionary()
"""A device is asked once a connection."""


def identify(transport: Transport, backend: str) -> EngineHost:
    """What engines are built for and by there.

    Raises :class:`~edgekit.errors.NotRunnableError` where there is no GPU, and what a missing runtime raises.
    """
    if (known := _hosts.get(transport)) is not None:
        return known
    with temporary("identify") as folder:
        agent = mended(transport, partial(send_agent, transport, backend, Path(folder)))
        task = Task(
            id="identify",
            backend=backend,
            agent=agent,
            job=wire.Job(action="identify", scratch=str(transport.root)),
            result=wire.EngineHost,
            timeout=IDENTIFY_S,
        )
        found = _run(transport, task, Watch(exclusive=False, state_s=0, journal="identify-journal")).result
    host = EngineHost(
        gpu=plain(found.gpu),
        compute_capability="{}.{}".format(*found.compute_capability),
        version=found.tensorrt,
        driver=plain(found.driver),
        via=found.via,
        dla_cores=found.dla_cores,
    )
    _hosts[transport] = host
    return host


def engine_for(
    transport: Transport,
    backend: str,
    main: Path,
    *,
    store: Store | None = None,
    telling: Telling | None = None,
) -> Built:
    """The engine of the graph ``main`` for this device: from the cache, else built there."""
    builder, store = builder_of(backend), store or Store()
    assert builder is not None
    host = identify(transport, backend)
    with temporary("engine") as scratch:
        order = _order(builder, main, host, Path(scratch), (telling or Telling()).modules)
        key = Key(name=STEP, inputs=(order.key,), options={}, versions={})

        def produce(out: Path) -> None:
            _build(transport, backend, order, out, telling or Telling(), _timing_cache(store, host))
            builder.write_record(out / ENGINE, order)
            own_engines.remember(out / ENGINE, store)

        folder = store.step(key, produce).directory
    return Built(folder=folder, facts=read_json(folder / BUILD))


def _order(
    builder: EngineBuilder, main: Path, host: EngineHost, out: Path, modules: Mapping[str, str]
) -> EngineOrder:
    """What to build; nodes that cannot be written for the parser there are named with their modules."""
    try:
        return builder.order(main, host, out)
    except UnsupportedOperatorsError as error:
        nodes = [replace(n, module_path=n.module_path or _module(n.node, modules)) for n in error.nodes]
        raise UnsupportedOperatorsError(f"{error.target} with TensorRT {host.version}", nodes) from error


def _build(
    transport: Transport, backend: str, order: EngineOrder, out: Path, telling: Telling, cache: Path | None
) -> None:
    """Send the graph, build, and bring back engine, layers, log and timing cache into ``out``."""
    folder = "engine"
    external = sorted(p for p in order.onnx.parent.glob(f"{order.onnx.name}.data*"))
    for path in external:
        mended(transport, partial(transport.put, path, f"{folder}/{path.name}"))
    onnx = mended(transport, partial(transport.put, order.onnx, f"{folder}/{order.onnx.name}"))
    timing = ""
    if cache is not None:
        timing = str(mended(transport, partial(transport.put, cache, f"{folder}/timing.before")))
    spec = {
        **order.spec,
        "onnx": str(onnx),
        "folder": str(transport.root / f"{folder}-made"),
        "timing_cache": timing,
    }
    agent = mended(transport, partial(send_agent, transport, backend, out))
    (out / agent.name).unlink(missing_ok=True)
    task = Task(
        id="build",
        backend=backend,
        agent=agent,
        job=wire.Job(action="build", scratch=str(transport.root), engine=spec),
        result=wire.EngineBuilt,
        timeout=order.seconds,
    )
    watch = Watch[wire.EngineBuilt](
        state_s=0,
        mend_s=MEND_S,
        linger_s=LINGER_S,
        wait_s=BUSY_S,
        journal=JOURNAL,
        on_phase=telling.phase,
        on_progress=telling.percent,
    )
    built = _run(transport, task, watch).result
    fetch = partial(_fetch, transport, f"{folder}-made", out)
    if LOG in built.files:
        fetch(LOG, MOST_BYTES)
    if built.refused or built.failure:
        raise _refusal(transport.name, backend, built, out / LOG, telling.modules)
    for name in (LAYERS, CACHE):
        if name in built.files:
            fetch(name, MOST_BYTES)
    fetch(ENGINE, built.size)
    if (out / ENGINE).stat().st_size != built.size or sha256_file(out / ENGINE) != built.sha256:
        raise DeviceError(f"{transport.name}: the engine came back damaged", hint="run it again")
    facts = {
        "version": built.version,
        "via": built.via,
        "layers": built.layers,
        "seconds": round(built.seconds, 3),
        "argv": list(built.argv),
        "on_gpu": list(built.on_gpu),
        "notes": list(order.notes),
    }
    write_json(facts, out / BUILD)


def _fetch(transport: Transport, folder: str, out: Path, name: str, most: int) -> None:
    mended(transport, partial(transport.get, f"{folder}/{name}", out / name, most))


def _run(transport: Transport, task: Task[R], watch: Watch[R]) -> TaskResult[R]:
    """Directly here; under the supervisor, with its lock and journal, across a link."""
    try:
        if not transport.remote:
            return run_job(transport, task, watch.on_progress, watch.on_phase)
        return run_plan(transport, [task], watch)[task.id]
    except BackendError as error:
        if type(error) is not BackendError:
            raise
        raise EngineBuildError(error.message, hint=error.hint) from error


def _refusal(
    device: str, backend: str, built: wire.EngineBuilt, log: Path, modules: Mapping[str, str]
) -> EngineBuildError | UnsupportedOperatorsError:
    title = plugins.info(backend).title
    if built.refused:
        nodes = [
            UnsupportedNode(
                op=n.op or "graph",
                node=n.node or "input or output",
                reason=n.message.removeprefix("Assertion failed: "),
                module_path=_module(n.node, modules),
            )
            for n in built.refused
        ]
        return UnsupportedOperatorsError(f"{title} {built.version} on {device}", nodes)
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    tail = plain("\n".join(line[:300] for line in lines[-12:]))
    return EngineBuildError(
        f"{title} {built.version} on {device} cannot build the engine: {built.failure}",
        hint="the last lines of its log:\n" + tail
        if tail
        else "build it by hand there, by recipe.json, and look at what it prints",
    )


def _module(node: str, modules: Mapping[str, str]) -> str:
    """The module of a node, or of the one that it was made of (``NODE//Mul_3``, ``NODE/Slice_0``)."""
    while node and node not in modules:
        node = node.rpartition("/")[0].rstrip("/")
    return modules.get(node, "")


def _timing_cache(store: Store, host: EngineHost) -> Path | None:
    """What the last build for such a device learned of its kernels' times; the builder there checks that it fits."""
    newest: tuple[float, Path] | None = None
    for folder in store.results(STEP):
        path = folder / CACHE
        try:
            record = read_json(folder / "engine.json")
            same = (record["gpu"], record["version"], record["driver"]) == (
                host.gpu,
                host.version,
                host.driver,
            )
            age = path.stat().st_mtime
        except (OSError, ValueError, KeyError):
            continue
        if same and (newest is None or age > newest[0]):
            newest = (age, path)
    return None if newest is None else newest[1]


def copy_into(built: Built, out: Path) -> tuple[str, ...]:
    """Put the engine, its record, layers and log into ``out``; returns their names, the engine first."""
    builder_files = (ENGINE, "engine.json", LAYERS, LOG, BUILD)
    names = tuple(name for name in builder_files if (built.folder / name).is_file())
    for name in names:
        shutil.copyfile(built.folder / name, out / name)
    return names
