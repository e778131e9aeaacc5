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
from edgekit.errors import ConfigError, UnknownNameError, UsageError
from edgekit.types import Device, Option

if TYPE_CHECKING:
    from edgekit.devices.wire import DeviceFacts

LOCAL = Device(name="local")

PROGRAMS = ("benchmark_model", "onnxruntime_perf_test", "trtexec")
"""Options of a device that name a program to time with."""

_TAKEN_OVER = ("port", "python", "config", "folder", "emulated")

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
    """This machine and every device of the user's and the project's. A project comes from anywhere: its rows stand in
    for none of the user's, and name neither an ssh configuration nor programs of this machine."""
    known, found = kinds(), {"local": LOCAL}
    return found | {row.name: _device(row, known, path) for row, path in _rows().values()}


def places() -> Mapping[str, Path]:
    """The file of each device that has one."""
    return {name: path for name, (_, path) in _rows().items()}


def _rows() -> Mapping[str, tuple[Row, Path]]:
    found: dict[str, tuple[Row, Path]] = {}
    users, projects = folders()
    for path in (*sorted(users.glob("*.toml")), *sorted(projects.glob("*.toml"))):
        row = structure(Row, toml.read(path), where=str(path))
        if row.name != path.stem:
            raise ConfigError(f"{path} names the device {row.name!r}", hint=f"rename it to {row.name}.toml")
        if row.name in found:
            continue
        if path.parent == projects:
            _refuse_programs(row, path)
        found[row.name] = (row, path)
    return found


def _refuse_programs(row: Row, path: Path) -> None:
    """An ssh configuration runs programs here (ProxyCommand), and a program that is named is sent to the device."""
    here = [name for name in PROGRAMS if getattr(row, name) and not getattr(row, name).startswith("device:")]
    if named := [*(["config"] if row.config else []), *here]:
        raise ConfigError(
            f"{path} names what a project may not: {', '.join(named)}",
            hint=f"read it; if you want it, keep the row as yours, in {folders()[0]}",
        )


def device(name: str) -> Device:
    """One device; an unknown name raises :class:`UnknownNameError` with the nearest."""
    table = devices()
    if name not in table:
        raise UnknownNameError("device", name, table)
    return table[name]


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
