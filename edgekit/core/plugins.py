"""The one door for targets and backends: the entry-point group ``edgekit.plugins``.

An entry point names a :class:`Plugin`. edgekit's own backends come in the same way (see
``[project.entry-points]`` in pyproject.toml). A plug-in must be cheap to import: what it adds is given by names of
modules, which are imported when they are used.

    # pyproject.toml of a third-party wheel
    [project.entry-points."edgekit.plugins"]
    acme = "edgekit_acme:plugin"

    # edgekit_acme/__init__.py
    plugin = Plugin(name="acme", data=Path(__file__).parent / "targets",
                    backends={"acme": "edgekit_acme.backend"})

``data`` is laid out like edgekit's own ``targets/``: ``<backend>/target.toml``, ``<backend>/runner.py`` and, for the
app packages that can carry the backend's artifacts, ``<backend>/package/<format>/``.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Literal, TypeAlias, cast

from edgekit.core.foreign import translated
from edgekit.core.root import PACKAGE
from edgekit.errors import PluginError, UnknownNameError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from edgekit.types import Backend, Loader

Kind: TypeAlias = Literal["backends", "loaders", "rules", "formats", "steps"]

GROUP = "edgekit.plugins"

_TITLES: Mapping[Kind, str] = {
    "backends": "backend",
    "loaders": "source kind",
    "rules": "placement rules",
    "formats": "package format",
    "steps": "step",
}


@dataclass(frozen=True, kw_only=True)
class Plugin:
    """What one distribution adds: a directory of targets, and names of modules by the name that users and rows say.

    Attributes:
        name: who it is, for messages and ``EDGEKIT_DISABLE_PLUGINS``.
        data: the directory of targets, runners and templates.
        backends: modules that fit :class:`edgekit.types.Backend`; they may have an ``INFO``.
        loaders: modules with a function ``load`` (:class:`edgekit.types.Loader`), by the kind of source.
        rules: modules with ``RULES``, placement tables by name; see :mod:`edgekit.quantize.rules`.
        formats: modules that write a package; see :mod:`edgekit.package.formats`.
        steps: modules with ``STEP``, a compression step's dataclass; see :class:`edgekit.compress.step.Step`.
    """

    name: str
    data: Path
    backends: Mapping[str, str] = field(default_factory=dict)
    loaders: Mapping[str, str] = field(default_factory=dict)
    rules: Mapping[str, str] = field(default_factory=dict)
    formats: Mapping[str, str] = field(default_factory=dict)
    steps: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class BackendInfo:
    """What a backend's module tells of its runtime, as its constant ``INFO``; every field may stay empty.

    Attributes:
        title: the runtime's name for people: ``"ONNX Runtime"``.
        requirement: what pip installs it from on this machine: ``"edgekit-deploy[openvino]"``.
        wheels: requirements that ``edgekit devices prepare`` puts onto a device, the best set first.
        packages: distributions whose versions ``edgekit doctor`` looks at.
        purl: package URL of what an app depends on, for bills of materials.
        counts_own_files: whether ``placement`` needs no more than the artifact's main file for a model.
        runner: the folder in the plug-in's data whose ``runner.py`` it is, when several backends share one.
        doctor: a module that fits :class:`edgekit.core.doctor.Doctor`.
        benchmark: a module that fits :class:`edgekit.backends.base.VendorTool`.
        form: a module that fits :class:`edgekit.diff.forms.Forms`.
        engines: a module that fits :class:`edgekit.backends.base.EngineBuilder`, where the device builds what it runs.
        narrow: a module that fits :class:`edgekit.package.narrowed.Narrow`, where models can take int32 for int64.
        received: a module with a function ``refuse(main)``, which raises ``SourceError`` for what files beside ``main``
            would make the runtime do besides running a model.
    """

    title: str = ""
    requirement: str = ""
    wheels: tuple[tuple[str, ...], ...] = ()
    packages: tuple[str, ...] = ()
    purl: str = ""
    counts_own_files: bool = False
    runner: str = ""
    doctor: str = ""
    benchmark: str = ""
    form: str = ""
    engines: str = ""
    narrow: str = ""
    received: str = ""


def data_dir() -> Path:
    """Where edgekit's own ``targets/`` and ``devices/`` are: in the wheel, or beside the source tree."""
    installed = PACKAGE / "_data"
    return installed if installed.is_dir() else PACKAGE.parent


builtin = Plugin(
    name="edgekit",
    data=data_dir() / "targets",
    backends={
        "onnxruntime": "edgekit.backends.onnxruntime",
        "onnxruntime_genai": "edgekit.backends.genai",
        "openvino": "edgekit.backends.openvino",
        "openvino_genai": "edgekit.backends.openvino_genai",
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
        "gguf": "edgekit.load.gguf",
        "savedmodel": "edgekit.load.tensorflow",
        "keras": "edgekit.load.tensorflow",
        "plan": "edgekit.compress.plan",
    },
    rules={
        "onnxruntime-x86": "edgekit.backends.onnxruntime.rules",
        "openvino": "edgekit.backends.openvino.rules",
        "tflite": "edgekit.backends.tflite.rules",
        "tflite-int16": "edgekit.backends.tflite.rules",
        "tensorrt": "edgekit.backends.nvidia.rules",
        "tensorrt-float8": "edgekit.backends.nvidia.rules",
    },
    formats={
        "bundle": "edgekit.package.bundle",
        "android-aar": "edgekit.package.android_aar",
        "ios-spm": "edgekit.package.ios_spm",
        "web": "edgekit.package.web",
        "react-native": "edgekit.package.react_native",
        "ai-pack": "edgekit.package.ai_pack",
        "ort": "edgekit.package.ort",
        "transformers-js": "edgekit.package.transformers_js",
        "tflite-metadata": "edgekit.package.tflite_metadata",
    },
    steps={
        "cluster": "edgekit.compress.steps.cluster",
        "depth": "edgekit.compress.structured.depth",
        "distill": "edgekit.compress.steps.distill",
        "fold": "edgekit.compress.steps.fold",
        "low-rank": "edgekit.compress.steps.low_rank",
        "prune": "edgekit.compress.steps.prune",
        "qat": "edgekit.compress.steps.qat",
        "shrink": "edgekit.compress.structured.shrink",
        "sparsify": "edgekit.compress.steps.sparsify",
    },
)


@functools.cache
def plugins() -> tuple[Plugin, ...]:
    """Every installed plug-in, edgekit's own first.

    Raises :class:`PluginError` when one cannot be loaded or edgekit itself is not installed.
    ``EDGEKIT_DISABLE_PLUGINS=name,…`` leaves some out.
    """
    import importlib.metadata  # a fifth of the command line's start-up time

    disabled = set(filter(None, os.environ.get("EDGEKIT_DISABLE_PLUGINS", "").split(",")))
    points = [p for p in importlib.metadata.entry_points(group=GROUP) if p.name not in disabled]
    installed = [_load(p) for p in sorted(points, key=lambda p: (p.name != "edgekit", p.name))]
    if not any(p.name == "edgekit" for p in installed):
        raise PluginError("edgekit's own targets are not registered", hint="install it: pip install -e .")
    return tuple(installed)


def table(kind: Kind) -> dict[str, tuple[str, Plugin]]:
    """Module name and owner of everything of one kind. A name claimed twice raises :class:`PluginError`."""
    modules: dict[str, tuple[str, Plugin]] = {}
    for plugin in plugins():
        for name, module in getattr(plugin, kind).items():
            if name in modules:
                raise clash(_TITLES[kind], name, modules[name][1].name, plugin.name)
            modules[name] = (module, plugin)
    return modules


def backends() -> dict[str, tuple[str, Plugin]]:
    """Module name and owner of every backend."""
    return table("backends")


def module(kind: Kind, name: str) -> ModuleType:
    """Import what is called ``name``. Raises :class:`UnknownNameError`, and :class:`PluginError` when it cannot be
    imported."""
    path, owner = _entry(kind, name)
    return _imported(path, f"{_TITLES[kind]} {name!r}", owner)


def backend(name: str) -> Backend:
    """Import the backend called ``name``."""
    return cast("Backend", module("backends", name))


@functools.cache
def info(name: str) -> BackendInfo:
    """What a backend tells of its runtime. One that is not installed here (an artifact's, made elsewhere) or that
    tells nothing has its name for a title."""
    stated = getattr(backend(name), "INFO", BackendInfo()) if name in backends() else BackendInfo()
    if not isinstance(stated, BackendInfo):
        raise PluginError(
            f"INFO of backend {name!r} is a {type(stated).__name__}",
            hint="make it an edgekit.plugins.BackendInfo",
        )
    return stated if stated.title else replace(stated, title=name)


def member(
    name: str, what: Literal["doctor", "benchmark", "form", "engines", "narrow"], protocol: type[object]
) -> ModuleType | None:
    """The module that a backend names in its ``INFO`` for ``what``, if it names one.

    Raises :class:`PluginError` for one that cannot be imported or does not fit ``protocol``.
    """
    path = getattr(info(name), what, "")
    if not path:
        return None
    owner = backends()[name][1]
    offered = _imported(path, f"{what} {path!r} of backend {name!r}", owner)
    if not isinstance(offered, protocol):
        raise PluginError(
            f"{path}, the {what} of backend {name!r}, does not fit {protocol.__qualname__}",
            hint=f"see its description in {protocol.__module__}",
        )
    return offered


def loader(kind: str) -> Loader:
    """The function ``load`` of the module that loads sources of ``kind``; a compression plan's is above this room."""
    return cast("Loader", module("loaders", kind).load)


def runner(name: str) -> Path:
    """The file that runs this backend's artifacts on a device."""
    path = _entry("backends", name)[1].data / (info(name).runner or name) / "runner.py"
    if not path.is_file():
        raise PluginError(
            f"backend {name!r} has no runner at {path}",
            hint="a plug-in needs <backend>/runner.py in its data",
        )
    return path


def refuse_received(name: str, main: Path) -> None:
    """Raise what the backend's ``received`` raises for the files beside ``main``; nothing where it has none."""
    if module := info(name).received:
        importlib.import_module(module).refuse(main)


def _entry(kind: Kind, name: str) -> tuple[str, Plugin]:
    modules = table(kind)
    if name not in modules:
        raise UnknownNameError(_TITLES[kind], name, modules)
    return modules[name]


def _imported(path: str, what: str, owner: Plugin) -> ModuleType:
    try:
        return importlib.import_module(path)
    except ImportError as e:
        raise PluginError(
            f"{what} of plug-in {owner.name!r} cannot be imported: {e}",
            hint=f"reinstall the plug-in, or leave it out with EDGEKIT_DISABLE_PLUGINS={owner.name}",
        ) from e


def clash(kind: str, name: str, first: str, second: str) -> PluginError:
    """The error for a name that two owners claim."""
    return PluginError(
        f"{kind} {name!r} is defined twice: by {first!r} and by {second!r}",
        hint=f"uninstall one, or leave one out with EDGEKIT_DISABLE_PLUGINS={second}",
    )


def _load(point: EntryPoint) -> Plugin:
    disable = f"uninstall it, or leave it out with EDGEKIT_DISABLE_PLUGINS={point.name}"
    with translated(
        f"plug-in {point.name!r} ({point.value}) cannot be loaded", hint=disable, kind=PluginError
    ):
        plugin = point.load()
    if not isinstance(plugin, Plugin):
        raise PluginError(
            f"plug-in {point.name!r} ({point.value}) is a {type(plugin).__name__}, not a Plugin", hint=disable
        )
    return plugin
