"""What a device has and lacks: reached, Python, each runtime, sensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.core import plugins
from edgekit.core.files import temporary
from edgekit.devices import wire
from edgekit.devices.job import Task, report_device, run_job
from edgekit.devices.transports import android
from edgekit.devices.transports.connect import connect, send_agent, without_python
from edgekit.devices.wire import DeviceFacts, DeviceState
from edgekit.errors import (
    BackendError,
    DeviceError,
    MissingExtraError,
    NotRunnableError,
    ToolMissingError,
    UsageError,
)

if TYPE_CHECKING:
    from edgekit.devices.transports.transport import Transport
    from edgekit.types import Device

_ALSO = {"amd64": "x86_64", "x64": "x86_64", "arm64": "aarch64", "macos": "darwin"}
"""Other names of the same."""


@dataclass(frozen=True, kw_only=True)
class RuntimeCheck:
    """One runtime on a device. ``problem`` is empty where models can run."""

    backend: str
    versions: Mapping[str, str] = field(default_factory=dict)
    problem: str = ""
    hint: str = ""


@dataclass(frozen=True, kw_only=True)
class Checkup:
    """``error`` says why the device could not be looked at; then the rest is empty."""

    device: str
    facts: DeviceFacts = field(default_factory=DeviceFacts)
    state: DeviceState = field(default_factory=DeviceState)
    runtimes: tuple[RuntimeCheck, ...] = ()
    error: str = ""
    hint: str = ""

    @property
    def usable(self) -> bool:
        """Whether any runtime can run there."""
        return any(not r.problem for r in self.runtimes)


def check(device: Device, backends: Sequence[str] = ()) -> Checkup:
    """Look at one device, and at ``backends`` there (default: all).

    A device that cannot be reached is a result, not an exception. One without Python has no runtimes of its own: what
    it has is told, and that artifacts can be timed there.
    """
    try:
        with connect(device) as transport, temporary("check") as folder:
            if without_python(device):
                phone = android.report_phone(transport)
                if other := _another(device, phone.facts):
                    return other
                return Checkup(device=device.name, facts=phone.facts, state=phone.state)
            backends = tuple(backends) or tuple(plugins.backends())
            report = report_device(transport, send_agent(transport, backends[0], Path(folder)))
            if other := _another(device, report.facts):
                return other
            runtimes = tuple(check_runtime(transport, backend, Path(folder)) for backend in backends)
    except (DeviceError, ToolMissingError, UsageError) as error:
        return Checkup(device=device.name, error=error.message, hint=error.hint)
    return Checkup(device=device.name, facts=report.facts, state=report.state, runtimes=runtimes)


def _another(device: Device, facts: DeviceFacts) -> Checkup | None:
    """What to say of a device that is not what its row, or the kind of device that it names, says."""
    system = facts.os.partition(" ")[0]
    for key, stated, there in (("arch", device.arch, facts.arch), ("os", device.os, system)):
        if stated and there and _plainly(stated) != _plainly(there):
            return Checkup(
                device=device.name,
                facts=facts,
                error=f"its row, or its kind, says {key} = {stated!r}; what answers at "
                f"{device.address or device.transport} is {there}",
                hint=f'is that the machine you mean? If so, write {key} = "{there.lower()}" into its row; '
                "edgekit devices list names the file",
            )
    return None


def _plainly(name: str) -> str:
    return _ALSO.get(name.lower(), name.lower())


def check_runtime(transport: Transport, backend: str, folder: Path) -> RuntimeCheck:
    """Import one runtime there and ask whether it can be used; ``folder`` is scratch space here."""
    task = Task(
        id="probe",
        backend=backend,
        agent=send_agent(transport, backend, folder),
        job=wire.Job(action="probe"),
        result=wire.ProbeResult,
        timeout=120,
    )
    try:
        result = run_job(transport, task).result
    except (MissingExtraError, NotRunnableError, BackendError) as error:
        return RuntimeCheck(backend=backend, problem=error.message, hint=error.hint)
    problem = "" if result.probe.usable else result.probe.why_not
    return RuntimeCheck(backend=backend, versions=result.versions, problem=problem)
