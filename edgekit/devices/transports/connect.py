"""From a :class:`~edgekit.types.Device` to an open transport, and what every job sends over it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from edgekit.core import contained
from edgekit.devices.catalogue import check_port
from edgekit.devices.pack import pack
from edgekit.devices.transports.adb import AdbTransport, adb_options
from edgekit.devices.transports.local import LocalTransport
from edgekit.devices.transports.ssh import SshOptions, SshTransport
from edgekit.errors import BackendError, SourceError, UnknownNameError, UsageError

if TYPE_CHECKING:
    from edgekit.devices.runnable import Runnable
    from edgekit.devices.transports.transport import Transport
    from edgekit.types import Device

TRANSPORTS = ("local", "ssh", "adb")


def open_transport(device: Device) -> Transport:
    """Connect to ``device``; the caller closes."""
    if device.transport == "local":
        return LocalTransport(device.name, python=str(device.options.get("python", sys.executable)))
    if device.transport == "ssh":
        return SshTransport(device.name, ssh_options(device))
    if device.transport == "adb":
        return AdbTransport(device.name, adb_options(device.address, device.options))
    raise UnknownNameError("transport", device.transport, TRANSPORTS, where=f"device {device.name}")


def without_python(device: Device) -> bool:
    """Whether no agent can run there: a phone, unless its row names an interpreter."""
    return device.transport == "adb" and not device.options.get("python")


def ssh_options(device: Device) -> SshOptions:
    """The row's ``address`` (``user@host``, an alias, or with ``:port``) and ``options`` as SSH takes them."""
    host, _, port = (
        device.address.rpartition(":") if device.address.count(":") == 1 else (device.address, "", "")
    )
    number = device.options.get("port", port or None)
    try:
        parsed = None if number is None else int(number)
    except ValueError as error:
        raise UsageError(f"{device.address}: {number!r} is no port", hint="write user@host:22") from error
    if parsed is not None:
        check_port(parsed, f"{device.name}: {parsed}")
    config = device.options.get("config")
    return SshOptions(
        host=host,
        port=parsed,
        config=None if config is None else Path(str(config)).expanduser(),
        python=str(device.options.get("python", "python3")),
        connect_s=float(device.options.get("connect_s", 15)),
    )


@contextmanager
def connect(device: Device) -> Iterator[Transport]:
    """An open transport to ``device``, closed in the end, also when the time of ``--timeout`` is over."""
    with contained.elsewhere() if device.transport != "local" else nullcontext():
        transport = open_transport(device)
        try:
            yield transport
        finally:
            transport.close()


def send_model(transport: Transport, runnable: Runnable, *, folder: str = "model") -> PurePosixPath:
    """Send the model with its companions into ``folder``; returns the main file's path there.

    Raises :class:`SourceError` for a companion that is not beside the main file, where no runtime would look for it.
    """
    for path in (runnable.main, *runnable.companions):
        if not path.is_file():
            raise BackendError(f"{path} does not exist", hint="build the artifact first: edgekit build")
    for path in runnable.companions:
        if not path.is_relative_to(runnable.main.parent):
            raise SourceError(
                f"{path.name} does not lie beside {runnable.main.name}, which is in {runnable.main.parent}",
                hint="no model has files outside of its folder: do not trust who wrote this",
            )
    for path in runnable.companions:
        transport.put(path, f"{folder}/{path.relative_to(runnable.main.parent)}")
    return transport.put(runnable.main, f"{folder}/{runnable.main.name}")


def send_agent(transport: Transport, backend: str, scratch: Path) -> PurePosixPath:
    """Send the agent with the runner of ``backend``; returns the archive's path there."""
    archive = pack(backend)
    return transport.put(archive.write(scratch), archive.filename)
