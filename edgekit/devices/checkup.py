"""What a device has and lacks: reached, Python, each runtime, sensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.core import plugins
from edgekit.core.files import temporary
from edgekit.devices.job import Transcript, run_job
from edgekit.devices.plan import look
from edgekit.devices.transports import android
from edgekit.devices.transports.connect import connect, send_agent, without_python
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
    facts: Mapping[str, Any] = field(default_factory=dict)
    state: Mapping[str, Any] = field(default_factory=dict)
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
                bare = android.look(transport)
                return Checkup(device=device.name, facts=bare.facts, state=bare.state)
            backends = tuple(backends) or tuple(plugins.backends())
            seen = look(transport, send_agent(transport, backends[0], Path(folder)))
            runtimes = tuple(probe(transport, backend, Path(folder)) for backend in backends)
    except (DeviceError, ToolMissingError, UsageError) as error:
        return Checkup(device=device.name, error=error.message, hint=error.hint)
    return Checkup(device=device.name, facts=seen.facts, state=seen.state, runtimes=runtimes)


def probe(transport: Transport, backend: str, folder: Path) -> RuntimeCheck:
    """Import one runtime there and ask whether it can be used; ``folder`` is scratch space here."""
    agent = send_agent(transport, backend, folder)
    argv = [transport.python, str(agent)]
    try:
        result = run_job(transport, backend, argv, {"action": "probe"}, Transcript(), 120)
    except (MissingExtraError, NotRunnableError, BackendError) as error:
        return RuntimeCheck(backend=backend, problem=error.message, hint=error.hint)
    told = result["probe"]
    why = "" if told.get("usable") else str(told.get("why_not", "it cannot be used"))
    return RuntimeCheck(backend=backend, versions=result["versions"], problem=why)
