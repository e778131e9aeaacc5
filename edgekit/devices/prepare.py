"""``edgekit devices prepare``: runtimes onto a device, into a folder of their own.

The wheels are found here (:mod:`edgekit.devices.wheels`), sent and unpacked there by the device's Python; its own
packages are left as they are, and nothing is done before :class:`Plan` was shown and agreed to.
"""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from edgekit.core.files import temporary
from edgekit.devices import protocol, wire
from edgekit.devices.catalogue import kinds
from edgekit.devices.checkup import check_runtime
from edgekit.devices.transports.connect import send_agent
from edgekit.devices.transports.process import Patience
from edgekit.devices.wheels import Interpreter, Resolved, installable, resolve
from edgekit.devices.wire import Description, Done, Installation, WheelFile
from edgekit.errors import DeviceError, UsageError

if TYPE_CHECKING:
    from edgekit.devices.checkup import RuntimeCheck
    from edgekit.devices.transports.transport import Transport
    from edgekit.types import Device

M = TypeVar("M", bound=wire.Message)

_INSTALL_S = 900.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What would be installed where. ``unchanged`` names backends that are there already, the same files."""

    device: str
    root: str
    python: Interpreter
    resolved: tuple[Resolved, ...]
    unchanged: tuple[str, ...] = ()


@dataclass(kw_only=True)
class Preparation:
    """One device over an open connection: :meth:`plan`, then :meth:`install`."""

    device: Device
    transport: Transport
    folder: Path
    _description: Description | None = None

    def plan(self, backends: Sequence[str] = ()) -> Plan:
        """Find wheels for ``backends`` (default: what is worth using on this kind of device).

        Raises what :func:`edgekit.devices.wheels.resolve` does, and :class:`UsageError` for this machine.
        """
        if not self.transport.remote:
            raise UsageError(
                "this machine is not prepared by edgekit",
                hint="install the extras: pip install 'edgekit-deploy[tflite,openvino]'",
            )
        self._description = description = self._describe()
        python = interpreter(self.device.name, description)
        chosen = tuple(backends) or default_backends(self.device)
        found = tuple(resolve(backend, python, self.folder) for backend in dict.fromkeys(chosen))
        same = tuple(r.backend for r in found if self._is_there(r))
        return Plan(
            device=self.device.name,
            root=description.root,
            python=python,
            resolved=tuple(r for r in found if r.backend not in same),
            unchanged=same,
        )

    def install(self, plan: Plan) -> tuple[RuntimeCheck, ...]:
        """Send, unpack, and import each runtime there; one that cannot be imported is taken away again.

        Raises :class:`DeviceError`.
        """
        return tuple(self._one(resolved) for resolved in plan.resolved)

    def remove(self, backends: Sequence[str]) -> tuple[str, ...]:
        """Take runtimes away; returns which were there (of ``backends``, or all)."""
        prepared = self._describe().prepared
        chosen = [b for b in (backends or prepared) if b in prepared]
        for backend in chosen:
            self._ask(Installation(action="remove", backend=backend), Done)
        return tuple(chosen)

    def _one(self, resolved: Resolved) -> RuntimeCheck:
        wheels = tuple(
            WheelFile(
                path=str(self.transport.put(w.path, f"wheels/{w.path.name}")),
                name=w.name,
                version=w.version,
                sha256=w.sha256,
            )
            for w in resolved.wheels
        )
        unpacked, backend = sum(w.unpacked for w in resolved.wheels), resolved.backend
        self._ask(Installation(action="install", backend=backend, wheels=wheels, unpacked=unpacked), Done)
        check = check_runtime(self.transport, backend, self.folder)
        if not check.versions:
            self._ask(Installation(action="remove", backend=backend), Done)
            raise DeviceError(
                f"{backend} was installed on {self.device.name} and cannot be imported: {check.problem}",
                hint="it was taken away again; the processor may lack instructions that the wheels need",
            )
        return check

    def _is_there(self, resolved: Resolved) -> bool:
        assert self._description is not None
        prepared = self._description.prepared.get(resolved.backend, ())
        return {w.sha256 for w in prepared} == {w.sha256 for w in resolved.wheels}

    def _describe(self) -> Description:
        return self._ask(Installation(action="describe"), Description)

    def _ask(self, request: Installation, answer: type[M]) -> M:
        agent = send_agent(self.transport, "onnxruntime", self.folder)
        events = protocol.Events(self.device.name, {"result": answer, "error": wire.Failure}, 1)
        answers: list[wire.Message] = []
        completed = self.transport.run(
            [self.transport.python, str(agent), "installer"],
            stdin=protocol.encode(request),
            on_line=lambda line: answers.append(events.read(line)),
            patience=Patience(whole=_INSTALL_S),
        )
        message = answers[0] if answers else None
        if isinstance(message, answer):
            return message
        failure = message if isinstance(message, wire.Failure) else wire.Failure()
        problem = failure.message or completed.stderr.strip()[-500:] or "no answer"
        hint = "run it again; if it stays so, report it"
        if failure.errno in (errno.EACCES, errno.ENOSPC, errno.EROFS, errno.EDQUOT):
            hint = "make room there, or name another folder: EDGEKIT_RUNTIMES in the user's environment there"
        raise DeviceError(f"{self.device.name}: {request.action} failed: {problem}", hint=hint)


def interpreter(device: str, description: Description) -> Interpreter:
    """What the device says of its Python. Raises :class:`DeviceError` if no wheels are made for such a one."""
    if description.implementation != "cpython" or not description.libc:
        raise DeviceError(
            f"{device} has a Python that wheels do not fit: {description.implementation}, "
            f"C library {description.libc or 'unknown'}",
            hint="use CPython on glibc or musl there",
        )
    return Interpreter(
        version=description.version,
        machine=description.machine,
        libc=description.libc,
        libc_version=description.libc_version,
        packages=description.packages,
    )


def default_backends(device: Device) -> tuple[str, ...]:
    """Those of the device's kind that come as wheels."""
    kind = kinds().get(str(device.options.get("kind", "")))
    worth = kind.backends if kind is not None else ()
    return tuple(b for b in worth if b in installable()) or ("tflite", "onnxruntime")


def scratch() -> tempfile.TemporaryDirectory[str]:
    """Where the wheels lie until they are sent."""
    return temporary("wheels")
