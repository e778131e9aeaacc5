"""The one door for targets and backends: the entry-point group ``edgekit.plugins``.

An entry point names a :class:`Plugin`. edgekit's own backends come in the same way (see
``[project.entry-points]`` in pyproject.toml). A plug-in's module must be cheap to import: backends are
given by module name and imported when they are used.

    # pyproject.toml of a third-party wheel
    [project.entry-points."edgekit.plugins"]
    acme = "edgekit_acme:plugin"

    # edgekit_acme/__init__.py
    plugin = Plugin(name="acme", data=Path(__file__).parent / "targets",
                    backends={"acme": "edgekit_acme.backend"})

``data`` is laid out like edgekit's own ``targets/``: ``<backend>/target.toml`` and ``<backend>/runner.py``.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

from edgekit.core.root import PACKAGE
from edgekit.errors import PluginError, UnknownNameError

if TYPE_CHECKING:
    from edgekit.types import Backend, Loader

GROUP = "edgekit.plugins"


@dataclass(frozen=True, kw_only=True)
class Plugin:
    """What one distribution adds: a directory of targets, the backends that they name, and loaders of sources.

    ``backends`` and ``loaders`` are names of modules, by the backend's name and by the kind of source.
    """

    name: str
    data: Path
    backends: Mapping[str, str] = field(default_factory=dict)
    loaders: Mapping[str, str] = field(default_factory=dict)


def data_dir() -> Path:
    """Where edgekit's own ``targets/`` and ``devices/`` are: in the wheel, or beside the source tree."""
    installed = PACKAGE / "_data"
    return installed if installed.is_dir() else PACKAGE.parent


builtin = Plugin(
    name="edgekit",
    data=data_dir() / "targets",
    backends={
        "onnxruntime": "edgekit.backends.onnxruntime",
        "openvino": "edgekit.backends.openvino",
        "tflite": "edgekit.backends.tflite",
        "tensorrt_rtx": "edgekit.backends.nvidia.tensorrt_rtx",
        "tensorrt": "edgekit.backends.nvidia.tensorrt",
    },
    loaders={
        "factory": "edgekit.load.factory",
        "pt2": "edgekit.load.exported",
        "pt": "edgekit.load.pickled",
        "onnx": "edgekit.load.onnx_file",
        "hf": "edgekit.load.huggingface",
        "savedmodel": "edgekit.load.tensorflow",
        "keras": "edgekit.load.tensorflow",
        "plan": "edgekit.compress.plan",
    },
)


@functools.cache
def plugins() -> tuple[Plugin, ...]:
    """Every installed plug-in, edgekit's own first.

    Raises :class:`PluginError` when one cannot be loaded or edgekit itself is not installed.
    ``EDGEKIT_DISABLE_PLUGINS=name,…`` leaves some out.
    """
    disabled = set(filter(None, os.environ.get("EDGEKIT_DISABLE_PLUGINS", "").split(",")))
    points = [p for p in importlib.metadata.entry_points(group=GROUP) if p.name not in disabled]
    found = [_load(p) for p in sorted(points, key=lambda p: (p.name != "edgekit", p.name))]
    if not any(p.name == "edgekit" for p in found):
        raise PluginError("edgekit's own targets are not registered", hint="install it: pip install -e .")
    return tuple(found)


def backends(found: Iterable[Plugin] | None = None) -> dict[str, tuple[str, Plugin]]:
    """Module name and owner of every backend. A name claimed twice raises :class:`PluginError`."""
    table: dict[str, tuple[str, Plugin]] = {}
    for plugin in plugins() if found is None else found:
        for name, module in plugin.backends.items():
            if name in table:
                raise clash("backend", name, table[name][1].name, plugin.name)
            table[name] = (module, plugin)
    return table


def backend(name: str) -> Backend:
    """Import the backend called ``name``."""
    table = backends()
    if name not in table:
        raise UnknownNameError("backend", name, table)
    module, owner = table[name]
    try:
        return cast("Backend", importlib.import_module(module))
    except ImportError as e:
        raise PluginError(
            f"backend {name!r} of plug-in {owner.name!r} cannot be imported: {e}",
            hint=f"reinstall the plug-in, or leave it out with EDGEKIT_DISABLE_PLUGINS={owner.name}",
        ) from e


def loader(kind: str) -> Loader:
    """The function ``load`` of the module that loads sources of ``kind``; a compression plan's is above this room."""
    table: dict[str, tuple[str, str]] = {}
    for plugin in plugins():
        for name, module in plugin.loaders.items():
            if name in table:
                raise clash("source kind", name, table[name][1], plugin.name)
            table[name] = (module, plugin.name)
    if kind not in table:
        raise UnknownNameError("source kind", kind, table)
    return cast("Loader", importlib.import_module(table[kind][0]).load)


def runner(name: str) -> Path:
    """The file that runs this backend's artifacts on a device."""
    table = backends()
    if name not in table:
        raise UnknownNameError("backend", name, table)
    path = table[name][1].data / name / "runner.py"
    if not path.is_file():
        raise PluginError(
            f"backend {name!r} has no runner at {path}",
            hint="a plug-in needs <backend>/runner.py in its data",
        )
    return path


def clash(kind: str, name: str, first: str, second: str) -> PluginError:
    """The error for a name that two owners claim."""
    return PluginError(
        f"{kind} {name!r} is defined twice: by {first!r} and by {second!r}",
        hint=f"uninstall one, or leave one out with EDGEKIT_DISABLE_PLUGINS={second}",
    )


def _load(point: importlib.metadata.EntryPoint) -> Plugin:
    disable = f"uninstall it, or leave it out with EDGEKIT_DISABLE_PLUGINS={point.name}"
    try:
        plugin = point.load()
    except Exception as e:
        raise PluginError(
            f"plug-in {point.name!r} ({point.value}) cannot be loaded: {e}", hint=disable
        ) from e
    if not isinstance(plugin, Plugin):
        raise PluginError(
            f"plug-in {point.name!r} ({point.value}) is a {type(plugin).__name__}, not a Plugin", hint=disable
        )
    return plugin
