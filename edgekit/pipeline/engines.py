"""The stage after lowering, for runtimes whose engines are built on the device that runs them."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from edgekit.core import plugins, versions
from edgekit.core.structure import to_builtins
from edgekit.devices import engines
from edgekit.devices.engines import Built, builder_of
from edgekit.devices.transports.connect import connect
from edgekit.errors import NotRunnableError
from edgekit.graph.records import write_json
from edgekit.pipeline.cached import Step, reader, run
from edgekit.pipeline.lower import Lowering
from edgekit.pipeline.stages import BuildContext, LoweredFiles
from edgekit.pipeline.verify import one_at_a_time
from edgekit.types import CHECKED, Json, Lowered, Target, sha256_file

DETAIL = "engine"
"""Where a manifest's details say how the engine was built."""


def on_device(context: BuildContext, lowering: Lowering) -> Lowering:
    """``lowering`` with the engine that the device made of it, where there is a device with a GPU; else as it is: then
    the artifact is the graph and its recipe, and was checked, not run.

    Raises what :func:`edgekit.devices.engines.engine_for` does.
    """
    subject = lowering.subject
    target, files = subject.target, subject.files
    builder = builder_of(target.backend)
    main = files.directory / files.lowered.files[0]
    if builder is None or not builder.needs_engine(main) or not _there(context, target):
        return lowering
    try:
        built = _built(context, target, files, main)
    except NotRunnableError:
        return lowering
    made = _beside(context, files, built)
    return replace(lowering, subject=replace(subject, files=made), steps=(*lowering.steps, made.step))


def _there(context: BuildContext, target: Target) -> bool:
    """Whether something to build with may be there."""
    return context.site is not None or plugins.backend(target.backend).available().usable


def _built(context: BuildContext, target: Target, files: LoweredFiles, main: Path) -> Built:
    label = f"build the engine of {target.name} on {context.device.name}"
    with (
        one_at_a_time,
        engines.told(context.progress, label, files.modules) as telling,
        connect(context.device) as transport,
    ):
        return engines.engine_for(transport, target.backend, main, store=context.store, telling=telling)


def _beside(context: BuildContext, files: LoweredFiles, built: Built) -> LoweredFiles:
    """The engine first, what it was built of beside it."""

    def produce(out: Path) -> None:
        names = engines.copy_into(built, out)
        for name in (*files.lowered.files, "modules.json"):
            shutil.copyfile(files.directory / name, out / name)
        write_json(_lowered(files.lowered, built, names), out / "lowered.json")

    step = Step(
        name="engine-files",
        inputs=(files.sha256, sha256_file(built.engine)),
        options={"lowered": to_builtins(files.lowered), "facts": dict(built.facts)},
        produce=produce,
        read=reader(Lowered, "lowered.json"),
        quick=True,
    )
    done = run(context.store, step)
    digest = versions.digest(*(sha256_file(done.result.directory / n) for n in done.value.files))
    record = done.record(digest, done.value.notes)
    return LoweredFiles(directory=done.result.directory, lowered=done.value, step=record)


def _lowered(lowered: Lowered, built: Built, names: tuple[str, ...]) -> Lowered:
    facts: dict[str, Json] = {k: v for k, v in built.facts.items() if k != "notes"}  # type: ignore[misc]
    notes = tuple(str(n) for n in built.facts["notes"])  # type: ignore[attr-defined]
    on_gpu = facts.get("on_gpu")
    if on_gpu:
        notes += (f"{len(on_gpu)} layers do not run on the DLA: {', '.join(map(str, on_gpu))[:500]}",)  # type: ignore[arg-type]
    return replace(
        lowered,
        files=(*names, *lowered.files),
        minimum_runtime=str(built.facts["version"]),
        notes=(*lowered.notes[:-1], f"the engine was built where it runs, by {built.facts['via']}", *notes),
        details={
            **lowered.details,
            DETAIL: facts,
            CHECKED: f"engine built by {facts['via']} of TensorRT {facts['version']}",
        },
    )
