"""The runtimes' vendors' own benchmark tools, for devices on which no Python runs, or whose user names one.

What each prints is read into a :class:`~edgekit.backends.base.Reading`; what it does not say is named there, never
guessed. Their inputs are random, so what they compute is not checked: an artifact is verified elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from edgekit.backends.base import Timing, VendorTool
from edgekit.core import plugins
from edgekit.devices import engines, protocol, wire
from edgekit.devices.job import TaskResult
from edgekit.devices.replicates import Replicate
from edgekit.devices.session import short
from edgekit.devices.transports.connect import send_model, without_python
from edgekit.errors import DeviceError, UsageError

if TYPE_CHECKING:
    from edgekit.devices.runnable import Runnable
    from edgekit.devices.transports.transport import Transport
    from edgekit.types import Device


def tools() -> Mapping[str, VendorTool]:
    """The programs by backend, of those that have one."""
    offered = {name: _tool(name) for name in plugins.backends()}
    return {name: tool for name, tool in offered.items() if tool is not None}


def tool_of(backend: str) -> VendorTool:
    """The program that times a backend's artifacts. Raises :class:`UsageError` where there is none."""
    tool = _tool(backend)
    if tool is None:
        raise UsageError(
            f"no program of its vendor times {backend} artifacts without Python",
            hint=f"on such a device these can be timed: {', '.join(tools())}",
        )
    return tool


def _tool(backend: str) -> VendorTool | None:
    return cast("VendorTool | None", plugins.member(backend, "benchmark", VendorTool))


def applies(device: Device) -> bool:
    """Whether the device is timed this way: it has no Python, or the user named a program."""
    return without_python(device) or bool(device.options.get("binary"))


def threads_of(runnable: Runnable, timing: Timing, facts: wire.DeviceFacts) -> int:
    """As many threads as asked for, else as many as there are processors: our own runners do the same."""
    asked = timing.threads or int(runnable.options.get("threads", 0))
    return asked or len(timing.cpus) or facts.usable_processors or 1


def job(
    transport: Transport,
    device: Device,
    runnable: Runnable,
    timing: Timing,
    facts: wire.DeviceFacts,
    *,
    folder: str,
) -> wire.Job:
    """Put the tool and the model there; the job that times the model once."""
    tool = tool_of(runnable.backend)
    program = _program(transport, device, tool, facts)
    if not without_python(device):
        runnable = engines.ready(transport, runnable)
    model = str(send_model(transport, runnable, folder=folder))
    file = str(transport.root / f"{folder}-times")
    timing = replace(timing, threads=threads_of(runnable, timing, facts))
    return wire.Job(
        action="program",
        scratch=str(transport.root),
        argv=(program, *tool.argv(model, runnable.options, timing, file)),
        file=file,
        cpus=timing.cpus,
    )


def _program(transport: Transport, device: Device, tool: VendorTool, facts: wire.DeviceFacts) -> str:
    """The path there of the program that the user named: sent, or with ``device:`` there already."""
    named = str(device.options.get("binary") or device.options.get(tool.TOOL) or "")
    if not named:
        raise UsageError(
            f"{device.name} has no Python, and no {tool.TOOL} was named to time with",
            hint=f"--binary PATH to {tool.TOOL} for its ABI ({facts.abi or facts.arch}), or "
            f"{tool.TOOL} = … in the device's row; device:PATH is one that is there already",
        )
    if named.startswith("device:"):
        return named.removeprefix("device:")
    here = Path(named).expanduser()
    if not here.is_file():
        raise UsageError(f"there is no {here}", hint=f"give the path of {tool.TOOL} on this machine")
    there = str(transport.put(here, tool.TOOL))
    if transport.remote:
        short(transport, ["chmod", "700", there])
    return there


_HEAD, _LINE = 1 << 18, 1000
"""Of what a tool prints, its first and its last characters are read, and so many of a line: its figures are there, and
patterns take no time over it."""


def legible(text: str) -> str:
    """The parts of a tool's output that have its figures."""
    text = text if len(text) <= 2 * _HEAD else f"{text[:_HEAD]}\n{text[-_HEAD:]}"
    return "\n".join(line[:_LINE] for line in protocol.plain(text).split("\n"))


def replicate(device: str, backend: str, threads: int, done: TaskResult[wire.ProgramResult]) -> Replicate:
    """What one process printed. Raises :class:`~edgekit.errors.BackendError` where no times are in it, and
    :class:`DeviceError` where what stands for them are none."""
    tool = tool_of(backend)
    try:
        reading = tool.read(legible(done.result.text), done.result.file)
    except (ValueError, ArithmeticError, LookupError, TypeError, RecursionError) as error:
        raise DeviceError(
            f"{tool.TOOL} on {device} printed figures that cannot be read: {protocol.plain(str(error))[:200]}",
            hint="run it by hand there; report its output if it should have been read",
        ) from error
    missing = reading.missing()
    silent = (f"{tool.TOOL} does not tell: {', '.join(missing)}",) if missing else ()
    return Replicate(
        samples_ms=reading.steady_ms,
        is_raw=bool(reading.samples_ms),
        threads=threads,
        load_ms=reading.load_ms,
        first_ms=reading.first_ms,
        p90_ms=reading.p90_ms,
        p99_ms=reading.p99_ms,
        peak_memory=reading.peak_memory,
        model_memory=reading.model_memory,
        tool=tool.TOOL,
        notes=(*tool.NOTES, *silent),
    )
