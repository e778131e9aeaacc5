"""Devices by name: kinds that edgekit knows (``devices/*.toml``) and the user's own (a row each).

A user's row lies in ``~/.config/edgekit/devices/NAME.toml`` or the project's ``.edgekit/devices/NAME.toml``: an
``address`` for SSH or adb and a ``kind``, whose fields it inherits.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edgekit.core import files, toml
from edgekit.core.plugins import data_dir
from edgekit.core.structure import structure
from edgekit.core.targets import user_dir
from edgekit.errors import ConfigError, EdgekitError, UnknownNameError, UsageError
from edgekit.types import Device, Option

if TYPE_CHECKING:
    from edgekit.devices.wire import DeviceFacts

LOCAL = Device(name="local")

PROGRAMS = ("benchmark_model", "onnxruntime_perf_test", "trtexec")
"""Options of a device that name a program to time with."""

_TAKEN_OVER = ("port", "python", "config", "folder", "emulated")

_HOTTEST = 150.0

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A model of device. ``backends`` are those worth using on it, best first; ``cool_down_celsius`` is what
    a benchmark waits for before it starts."""

    name: str
    title: str
    transport: str
    arch: str = ""
    os: str = ""
    processor: str = ""
    isa: tuple[str, ...] = ()
    backends: tuple[str, ...] = ()
    cool_down_celsius: float | None = None
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A user's device. Empty fields come from its kind. ``emulated``: its latency is not a device's.

    ``address`` is what SSH takes, or adb's serial number (empty: the only one connected). ``folder`` can be
    written by adb's user. ``benchmark_model``, ``onnxruntime_perf_test`` and ``trtexec`` are programs of the
    runtimes' vendors (see :mod:`edgekit.devices.vendor`).
    """

    name: str
    address: str = ""
    kind: str = "linux-ssh"
    arch: str = ""
    os: str = ""
    port: int | None = None
    python: str = ""
    config: str = ""
    folder: str = ""
    benchmark_model: str = ""
    onnxruntime_perf_test: str = ""
    trtexec: str = ""
    cool_down_celsius: float | None = None
    emulated: bool = False

    def __post_init__(self) -> None:
        check_name(self.name)
        if self.port is not None:
            check_port(self.port, f"port = {self.port}")
        cool = self.cool_down_celsius
        if cool is not None and not 0 < cool <= _HOTTEST:
            raise UsageError(
                f"cool_down_celsius = {cool}: no device cools down to that",
                hint=f"a temperature above 0 and up to {_HOTTEST:g} degrees Celsius, such as 55",
            )


@dataclass(frozen=True, kw_only=True)
class Unusable:
    """A file that should describe the device ``name`` and does not: ``error`` says why. ``claims`` is the name that it
    states itself."""

    name: str
    path: Path
    error: EdgekitError
    claims: str = ""


def check_port(port: int, what: str) -> None:
    """Raise :class:`UsageError` for a number that is no TCP port."""
    if not 1 <= port <= 65535:
        raise UsageError(
            f"{what} is no port", hint="a number from 1 to 65535; sshd's is 22 where nothing is said"
        )


def check_name(name: str) -> None:
    """Raise :class:`UsageError` unless ``name`` can name a device: it becomes a file's name."""
    if not _NAME.fullmatch(name) or name == "local":
        raise UsageError(
            f"{name!r} cannot name a device", hint="use letters, digits, '.', '_' and '-'; 'local' is taken"
        )


def kinds() -> Mapping[str, Kind]:
    """The kinds that edgekit knows."""
    found = [
        structure(Kind, toml.read(p), where=str(p)) for p in sorted((data_dir() / "devices").glob("*.toml"))
    ]
    return {kind.name: kind for kind in found}


def devices() -> Mapping[str, Device]:
    """This machine and every device of the user's and the project's whose file can be used. A project comes from
    anywhere: its rows stand in for none of the user's, and name neither an ssh configuration nor programs of this
    machine."""
    return {"local": LOCAL} | {name: device for name, (device, _) in _rows()[0].items()}


def places() -> Mapping[str, Path]:
    """The file of each device that has one."""
    return {name: path for name, (_, path) in _rows()[0].items()}


def unusable() -> tuple[Unusable, ...]:
    """The files that describe no device that can be used, each with its reason."""
    return _rows()[1]


def _rows() -> tuple[Mapping[str, tuple[Device, Path]], tuple[Unusable, ...]]:
    known, found = kinds(), dict[str, tuple[Device, Path]]()
    wrong: dict[str, Unusable] = {}
    users, projects = folders()
    for path in (*sorted(users.glob("*.toml")), *sorted(projects.glob("*.toml"))):
        if path.stem in found or path.stem in wrong:  # the user's, whether it can be used or not
            continue
        try:
            found[path.stem] = _device(_row(path, own=path.parent == users), known, path), path
        except EdgekitError as error:
            wrong[path.stem] = Unusable(
                name=path.stem, path=path, error=error.about(str(path)), claims=_claimed(path)
            )
    return found, tuple(wrong.values())


def _claimed(path: Path) -> str:
    try:
        return str(toml.read(path).get("name", ""))
    except ConfigError:
        return ""


def _row(path: Path, *, own: bool) -> Row:
    row = structure(Row, toml.read(path), where=str(path))
    if row.name != path.stem:
        raise ConfigError(f"{path} names the device {row.name!r}", hint=f"rename it to {row.name}.toml")
    if not own:
        _refuse_programs(row, path)
    return row


def _refuse_programs(row: Row, path: Path) -> None:
    """An ssh configuration runs programs here (ProxyCommand), and a program that is named is sent to the device."""
    here = [name for name in PROGRAMS if getattr(row, name) and not getattr(row, name).startswith("device:")]
    if named := [*(["config"] if row.config else []), *here]:
        raise ConfigError(
            f"{path} names what a project may not: {', '.join(named)}",
            hint=f"read it; if you want it, keep the row as yours, in {folders()[0]}",
        )


def device(name: str) -> Device:
    """One device; an unknown name raises :class:`UnknownNameError` with the nearest, one whose file cannot be used what
    is wrong with it."""
    table = devices()
    if name in table:
        return table[name]
    for row in unusable():
        if name in (row.name, row.claims):
            raise row.error
    raise UnknownNameError("device", name, table)


def select(text: str) -> tuple[Device, ...]:
    """Devices from ``"a,b"``, each once, in the order given."""
    names = dict.fromkeys(filter(None, (part.strip() for part in text.split(","))))
    if not names:
        raise UsageError("no device given", hint="--device NAME[,NAME…]; edgekit devices list shows them")
    return tuple(device(name) for name in names)


def folders() -> tuple[Path, Path]:
    """Where rows are looked for: the user's folder, then the project's."""
    return user_dir() / "devices", Path.cwd() / ".edgekit" / "devices"


def kind_of(transport: str, facts: DeviceFacts) -> str:
    """The kind of a device that says of itself what it is; the general one where it is none that we know."""
    if transport == "ssh":
        return "linux-ssh"
    if not facts.os.startswith("Android"):
        return "linux-adb"
    model = facts.model.lower()
    return (
        "pixel"
        if model.startswith("google pixel")
        else "galaxy"
        if model.startswith("samsung")
        else "android"
    )


def write(row: Row) -> Path:
    """Keep a device in the user's folder; one of the same name is replaced."""
    known = kinds()
    if row.kind not in known:
        raise UnknownNameError("kind of device", row.kind, known)
    folder = folders()[0]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{row.name}.toml"
    values = msgspec.to_builtins(row)
    lines = [f"{key} = {_toml(value)}" for key, value in values.items() if value not in ("", None, False)]
    files.write(path, ("\n".join(lines) + "\n").encode())
    return path


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    return msgspec.json.encode(str(value)).decode()  # a JSON string is a TOML basic string


def _device(row: Row, known: Mapping[str, Kind], path: Path) -> Device:
    if row.kind not in known:
        raise UnknownNameError("kind of device", row.kind, known, where=str(path))
    kind = known[row.kind]
    options: dict[str, Option] = {"kind": kind.name}
    for name in (*_TAKEN_OVER, *PROGRAMS):
        if getattr(row, name):
            options[name] = getattr(row, name)
    cool = row.cool_down_celsius if row.cool_down_celsius is not None else kind.cool_down_celsius
    if cool is not None:
        options["cool_down_celsius"] = cool
    return Device(
        name=row.name,
        transport=kind.transport,
        address=row.address,
        arch=row.arch or kind.arch,
        os=row.os or kind.os,
        options=options,
    )
